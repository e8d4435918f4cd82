"""The Python client: one model behind one or more deployments, from scripts, threads, notebooks and event loops.

Every method is here twice, plain and with an ``a`` in front, and only hands on what it was given. What they do is
written once, in :mod:`infermesh.client.operations` and :mod:`infermesh.client.batches`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from infermesh.client.batches import Callbacks, Inputs, abatch, astream, batch, stream
from infermesh.client.build import client_model, deployment_configs, spread_slots
from infermesh.client.lifetime import ClientLoop
from infermesh.client.operations import AudioInput, Operations, check_choice, default_timeout
from infermesh.config.deployment import DeploymentConfig
from infermesh.dispatch.model import OnInvalid
from infermesh.dispatch.retry import RetryPolicy
from infermesh.inputs.audio import DEFAULT_MAX_BYTES
from infermesh.limits import Limits
from infermesh.results import BatchResult, EmbeddingResult, GenerationResult, StreamItem, TranscriptionResult
from infermesh.transports import make_transport
from infermesh.types import USE_CLIENT_DEFAULT, Endpoint, HeaderBucketScope, RoutingStrategy, Timeout
from infermesh.wire.requests import GenerationInput
from infermesh.wire.structured import ResponseFormatSpec

__all__ = ["LMClient"]

R = TypeVar("R")
OnResult = Callable[[int, R | None, BaseException | None], object]
OnProgress = Callable[[int, int | None], object]


class LMClient:
    """Sends requests to one model, one at a time or by the million.

    All work is done on an event loop in a thread of the client's own, whoever calls from wherever: the limits, the
    slots and the connections are shared by all callers, synchronous and asynchronous. The thread starts with the first
    call and ends with :meth:`close`; use ``with`` or ``async with``, which may be entered again later.

    Parameters
    ----------
    model
        ``provider/model`` as LiteLLM writes it; with ``deployments``, any name.
    api_base
        The server's base URL; several make a replica each. ``None`` for the provider's own.
    api_key
        A key; by default the provider's usual environment variable is looked at.
    deployments
        Label → :class:`~infermesh.config.deployment.DeploymentConfig` (or its fields as a mapping), instead of
        ``api_base``. Their limits are each deployment's own.
    endpoint
        ``chat_completion``, ``text_completion`` or ``responses``.
    max_parallel_requests
        Requests in hand at once over all callers, and the window of each batch.
    rpm, tpm, rpd, tpd
        Requests and tokens per minute and per UTC day, shared by all deployments. Nothing is sent over them.
    max_request_burst, max_token_burst
        What may go out at once after an idle time; by default the load is smooth.
    header_bucket_scope
        Which limits the server's ``x-ratelimit-*`` headers speak of: ``auto``, ``minute`` or ``day``.
    default_output_tokens
        Tokens to reserve for an answer without ``max_tokens``; by default the mean of the answers so far.
    timeout
        Seconds for one attempt, above 0; ``None`` waits for ever. One in ``default_request_kwargs`` stands over it.
    max_retries
        Attempts after the first, for failures that may pass.
    default_request_kwargs
        Options and wire parameters of every request, under those of the call.
    routing_strategy
        ``simple-shuffle``, ``least-busy`` or ``latency-based-routing``.
    max_transcription_bytes
        Larger clips are refused; ``None`` sends any.
    input_cost_per_token, output_cost_per_token
        US dollars, over the price list; for deployments that do not say their own.

    Raises
    ------
    ConfigError
        A parameter is out of its range, or names something that does not exist.
    """

    def __init__(
        self,
        model: str,
        *,
        api_base: str | Sequence[str] | None = None,
        api_key: str | None = None,
        deployments: Mapping[str, DeploymentConfig | Mapping[str, Any]] | None = None,
        endpoint: Endpoint = "chat_completion",
        max_parallel_requests: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        rpd: float | None = None,
        tpd: float | None = None,
        max_request_burst: float | None = None,
        max_token_burst: float | None = None,
        header_bucket_scope: HeaderBucketScope = "auto",
        default_output_tokens: int | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 3,
        default_request_kwargs: Mapping[str, Any] | None = None,
        routing_strategy: RoutingStrategy = "simple-shuffle",
        max_transcription_bytes: int | None = DEFAULT_MAX_BYTES,
        input_cost_per_token: float | None = None,
        output_cost_per_token: float | None = None,
    ) -> None:
        self.model = model
        defaults = dict(default_request_kwargs or {})
        configs, slots, window = spread_slots(
            deployment_configs(model, api_base, api_key, deployments), max_parallel_requests
        )
        logical_model, deployed = client_model(
            model,
            configs,
            account=Limits(
                rpm, tpm, rpd, tpd, max_request_burst, max_token_burst, header_bucket_scope, default_output_tokens
            ),
            strategy=routing_strategy,
            endpoint=check_choice("endpoint", endpoint, Endpoint),
            retry=RetryPolicy(max_retries=max_retries),
            timeout=default_timeout(timeout, defaults),
            costs=(input_cost_per_token, output_cost_per_token),
        )
        self._operations = Operations(logical_model, slots, defaults, max_transcription_bytes)
        self._loop = ClientLoop(deployed, lambda label: make_transport(configs[label], label=label), window)

    def __repr__(self) -> str:
        return f"LMClient({self.model!r})"

    def __enter__(self) -> Self:
        self._loop.reopen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._loop.reopen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """End the calls that are under way, in whichever thread, and close every connection."""
        self._loop.close()

    async def aclose(self) -> None:
        """Do what :meth:`close` does, without blocking the event loop."""
        await self._loop.aclose()

    def generate(
        self,
        input: GenerationInput,
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> GenerationResult:
        """Answer one prompt.

        Parameters
        ----------
        input
            A prompt; a list of messages; or a mapping with the endpoint's own fields (``messages``, ``prompt``,
            ``input`` …).
        response_format
            A pydantic class or a JSON schema, which the answer is asked for, checked against and parsed into.
        parse_output
            ``False`` leaves ``output_parsed`` empty.
        on_invalid
            ``"null"`` (default): an answer that does not satisfy the format is a warning, and ``output_parsed`` is
            ``None``. ``"retry"``: the model is told and asked again, at most twice.
        endpoint
            Over the client's.
        timeout
            Seconds for one attempt, above 0. ``None`` waits for ever. ``USE_CLIENT_DEFAULT``, the default, takes the
            client's.
        system
            The system message.
        params
            Wire parameters: ``temperature``, ``max_tokens``, ``tools`` and so on.

        Raises
        ------
        RequestError
            The last failure; its class says what kind.
        """
        handler = self._operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return self._loop.run(handler.one, input)

    async def agenerate(
        self,
        input: GenerationInput,
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> GenerationResult:
        """Do what :meth:`generate` does."""
        handler = self._operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return await self._loop.arun(handler.one, input)

    def generate_batch(
        self,
        inputs: Inputs[GenerationInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[GenerationResult] | None = None,
        on_progress: OnProgress | None = None,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[GenerationResult]:
        """Answer many prompts.

        Parameters
        ----------
        inputs
            Any iterable of what :meth:`generate` takes, asynchronous ones included.
        return_exceptions
            ``True`` (default): a failed item is ``None`` among the results, and its exception stands in
            ``batch.errors``. ``False``: the first failure ends the batch and is raised.
        on_result
            Called with ``(index, result, error)`` as each item settles, in the caller's thread or loop. One that raises
            ends the batch.
        on_progress
            Called after it with ``(done, total)``; ``total`` is ``None`` where the inputs have no length.
        response_format, parse_output, on_invalid, endpoint, system, timeout, params
            As for :meth:`generate`.

        Returns
        -------
        BatchResult
            Results in the order of the inputs.

        Raises
        ------
        BaseException
            What ended the batch early, Ctrl-C included. Its attribute ``batch`` has what had settled by then.
        """
        handler = self._operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return batch(self._loop, handler, inputs, Callbacks(on_result, on_progress, not return_exceptions))

    async def agenerate_batch(
        self,
        inputs: Inputs[GenerationInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[GenerationResult] | None = None,
        on_progress: OnProgress | None = None,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[GenerationResult]:
        """Do what :meth:`generate_batch` does."""
        handler = self._operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return await abatch(self._loop, handler, inputs, Callbacks(on_result, on_progress, not return_exceptions))

    def generate_stream(
        self,
        inputs: Inputs[GenerationInput],
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> Iterator[StreamItem[GenerationResult]]:
        """Answer prompts one by one as they settle, for inputs and outputs of any length.

        Inputs are pulled as results are taken: at most twice ``max_parallel_requests`` (64 where nothing says how many)
        are on their way, so that a slow consumer slows the requests down. Leaving the loop early ends those under way.

        Yields
        ------
        StreamItem
            ``(index, result, error)``, in the order in which they settle.
        """
        handler = self._operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return stream(self._loop, handler, inputs)

    def agenerate_stream(
        self,
        inputs: Inputs[GenerationInput],
        *,
        response_format: ResponseFormatSpec | None = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> AsyncIterator[StreamItem[GenerationResult]]:
        """Do what :meth:`generate_stream` does, for ``async for``."""
        handler = self._operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return astream(self._loop, handler, inputs)

    def embed(
        self,
        text: str,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> EmbeddingResult:
        """Embed one text. ``params`` are wire parameters (``dimensions`` …). Raises ``RequestError``."""
        handler = self._operations.embedding(params, timeout)
        return self._loop.run(handler.one, text)

    async def aembed(
        self,
        text: str,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> EmbeddingResult:
        """Do what :meth:`embed` does."""
        handler = self._operations.embedding(params, timeout)
        return await self._loop.arun(handler.one, text)

    def embed_batch(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        return_exceptions: bool = True,
        on_result: OnResult[EmbeddingResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[EmbeddingResult]:
        """Embed many texts, ``micro_batch_size`` to a request; one that the server refuses costs only itself.

        The other parameters are those of :meth:`generate_batch`.
        """
        handler = self._operations.embedding(params, timeout)
        return batch(
            self._loop, handler, texts, Callbacks(on_result, on_progress, not return_exceptions), micro_batch_size
        )

    async def aembed_batch(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        return_exceptions: bool = True,
        on_result: OnResult[EmbeddingResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[EmbeddingResult]:
        """Do what :meth:`embed_batch` does."""
        handler = self._operations.embedding(params, timeout)
        return await abatch(
            self._loop, handler, texts, Callbacks(on_result, on_progress, not return_exceptions), micro_batch_size
        )

    def transcribe(
        self,
        audio: AudioInput,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> TranscriptionResult:
        """Transcribe one clip: a path, bytes, or an open binary file. ``params``: ``language``, ``prompt`` and so on.

        Raises ``RequestError``: an ``InputError`` where the clip cannot be read or is too large.
        """
        handler = self._operations.transcription(params, timeout)
        return self._loop.run(handler.one, audio)

    async def atranscribe(
        self,
        audio: AudioInput,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> TranscriptionResult:
        """Do what :meth:`transcribe` does."""
        handler = self._operations.transcription(params, timeout)
        return await self._loop.arun(handler.one, audio)

    def transcribe_batch(
        self,
        audio: Inputs[AudioInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[TranscriptionResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[TranscriptionResult]:
        """Transcribe many clips. The other parameters are those of :meth:`generate_batch`."""
        handler = self._operations.transcription(params, timeout)
        return batch(self._loop, handler, audio, Callbacks(on_result, on_progress, not return_exceptions))

    async def atranscribe_batch(
        self,
        audio: Inputs[AudioInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[TranscriptionResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> BatchResult[TranscriptionResult]:
        """Do what :meth:`transcribe_batch` does."""
        handler = self._operations.transcription(params, timeout)
        return await abatch(self._loop, handler, audio, Callbacks(on_result, on_progress, not return_exceptions))
