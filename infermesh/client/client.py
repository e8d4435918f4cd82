"""The Python client: one model behind one or more deployments, from scripts, threads, notebooks and event loops.

Every method stands here twice, plain and with an ``a`` in front, and does nothing but hand what it was given to the
session: what they do is written once, in :mod:`infermesh.client.operations` and :mod:`infermesh.client.batches`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from infermesh.client.batches import Inputs, Watch
from infermesh.client.build import client_model, deployment_configs
from infermesh.client.lifetime import Session
from infermesh.client.operations import Operations, check_choice, check_timeout
from infermesh.config.deployment import DeploymentConfig
from infermesh.dispatch.model import OnInvalid
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import ConfigError
from infermesh.inputs.audio import DEFAULT_MAX_BYTES
from infermesh.limits import Limits
from infermesh.results import BatchResult, EmbeddingResult, GenerationResult, StreamItem, TranscriptionResult
from infermesh.transports import make_transport
from infermesh.types import Endpoint, HeaderBucketScope, RoutingStrategy
from infermesh.wire.requests import GenerationInput

__all__ = ["LMClient"]

R = TypeVar("R")
AudioInput = str | os.PathLike[str] | bytes | BinaryIO
OnResult = Callable[[int, R | None, BaseException | None], Any]
OnProgress = Callable[[int, int | None], Any]


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
        Seconds for one attempt; ``None`` waits for ever.
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
        if max_parallel_requests is not None and max_parallel_requests < 1:
            raise ConfigError(f"max_parallel_requests: expected at least 1, got {max_parallel_requests}")
        configs = deployment_configs(model, api_base, api_key, deployments)
        slots = max_parallel_requests
        if slots is not None and len(configs) == 1:  # then the deployment's slots are the client's
            ((label, config),) = configs.items()
            own_bound = config.max_parallel_requests
            bound = slots if own_bound is None else min(slots, own_bound)
            configs, slots = {label: replace(config, max_parallel_requests=bound)}, None
        own, deployed = client_model(
            model,
            configs,
            account=Limits(
                rpm=rpm,
                tpm=tpm,
                rpd=rpd,
                tpd=tpd,
                max_request_burst=max_request_burst,
                max_token_burst=max_token_burst,
                header_bucket_scope=header_bucket_scope,
                default_output_tokens=default_output_tokens,
            ),
            strategy=routing_strategy,
            endpoint=check_choice("endpoint", endpoint, Endpoint),
            retry=RetryPolicy(max_retries=max_retries),
            timeout=check_timeout(timeout),
            costs=(input_cost_per_token, output_cost_per_token),
        )
        window = max_parallel_requests
        if window is None:
            own_slots = [config.max_parallel_requests for config in configs.values()]
            window = None if None in own_slots else sum(n for n in own_slots if n is not None)
        self._session = Session(
            deployed,
            lambda label: make_transport(configs[label], label=label),
            partial(Operations, own, slots, default_request_kwargs or {}, max_transcription_bytes),
            window,
        )

    def __repr__(self) -> str:
        return f"LMClient({self.model!r})"

    def __enter__(self) -> Self:
        self._session.reopen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._session.reopen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """End the calls that are under way, in whichever thread, and close every connection."""
        self._session.close()

    async def aclose(self) -> None:
        """Do what :meth:`close` does, without blocking the event loop."""
        await self._session.aclose()

    def generate(
        self,
        input: GenerationInput,
        *,
        response_format: Any = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: float | None = None,
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
        endpoint, timeout
            Over the client's.
        system
            The system message.
        params
            Wire parameters: ``temperature``, ``max_tokens``, ``tools`` and so on.

        Raises
        ------
        RequestError
            The last failure; its class says what kind.
        """
        work = self._session.operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return self._session.call(work, input)

    async def agenerate(
        self,
        input: GenerationInput,
        *,
        response_format: Any = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> GenerationResult:
        """Do what :meth:`generate` does."""
        work = self._session.operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return await self._session.acall(work, input)

    def generate_batch(
        self,
        inputs: Inputs[GenerationInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[GenerationResult] | None = None,
        on_progress: OnProgress | None = None,
        response_format: Any = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: float | None = None,
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
        work = self._session.operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return self._session.batch(work, inputs, Watch(on_result, on_progress, not return_exceptions))

    async def agenerate_batch(
        self,
        inputs: Inputs[GenerationInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[GenerationResult] | None = None,
        on_progress: OnProgress | None = None,
        response_format: Any = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> BatchResult[GenerationResult]:
        """Do what :meth:`generate_batch` does."""
        work = self._session.operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return await self._session.abatch(work, inputs, Watch(on_result, on_progress, not return_exceptions))

    def generate_stream(
        self,
        inputs: Inputs[GenerationInput],
        *,
        response_format: Any = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: float | None = None,
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
        work = self._session.operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return self._session.stream(work, inputs)

    def agenerate_stream(
        self,
        inputs: Inputs[GenerationInput],
        *,
        response_format: Any = None,
        parse_output: bool | None = None,
        on_invalid: OnInvalid | None = None,
        endpoint: Endpoint | None = None,
        system: str | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> AsyncIterator[StreamItem[GenerationResult]]:
        """Do what :meth:`generate_stream` does, for ``async for``."""
        work = self._session.operations.generation(
            params,
            response_format=response_format,
            parse_output=parse_output,
            on_invalid=on_invalid,
            endpoint=endpoint,
            system=system,
            timeout=timeout,
        )
        return self._session.astream(work, inputs)

    def embed(
        self,
        text: str,
        *,
        timeout: float | None = None,
        **params: Any,
    ) -> EmbeddingResult:
        """Embed one text. ``params`` are wire parameters (``dimensions`` …). Raises ``RequestError``."""
        work = self._session.operations.embedding(params, timeout)
        return self._session.call(work, text)

    async def aembed(
        self,
        text: str,
        *,
        timeout: float | None = None,
        **params: Any,
    ) -> EmbeddingResult:
        """Do what :meth:`embed` does."""
        work = self._session.operations.embedding(params, timeout)
        return await self._session.acall(work, text)

    def embed_batch(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        return_exceptions: bool = True,
        on_result: OnResult[EmbeddingResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> BatchResult[EmbeddingResult]:
        """Embed many texts, ``micro_batch_size`` to a request; one that the server refuses costs only itself.

        The other parameters are those of :meth:`generate_batch`.
        """
        work = self._session.operations.embedding(params, timeout)
        return self._session.batch(work, texts, Watch(on_result, on_progress, not return_exceptions), micro_batch_size)

    async def aembed_batch(
        self,
        texts: Inputs[str],
        *,
        micro_batch_size: int = 32,
        return_exceptions: bool = True,
        on_result: OnResult[EmbeddingResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> BatchResult[EmbeddingResult]:
        """Do what :meth:`embed_batch` does."""
        work = self._session.operations.embedding(params, timeout)
        return await self._session.abatch(
            work, texts, Watch(on_result, on_progress, not return_exceptions), micro_batch_size
        )

    def transcribe(
        self,
        audio: AudioInput,
        *,
        timeout: float | None = None,
        **params: Any,
    ) -> TranscriptionResult:
        """Transcribe one clip: a path, bytes, or an open binary file. ``params``: ``language``, ``prompt`` and so on.

        Raises ``RequestError``: an ``InputError`` where the clip cannot be read or is too large.
        """
        work = self._session.operations.transcription(params, timeout)
        return self._session.call(work, audio)

    async def atranscribe(
        self,
        audio: AudioInput,
        *,
        timeout: float | None = None,
        **params: Any,
    ) -> TranscriptionResult:
        """Do what :meth:`transcribe` does."""
        work = self._session.operations.transcription(params, timeout)
        return await self._session.acall(work, audio)

    def transcribe_batch(
        self,
        audio: Inputs[AudioInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[TranscriptionResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> BatchResult[TranscriptionResult]:
        """Transcribe many clips. The other parameters are those of :meth:`generate_batch`."""
        work = self._session.operations.transcription(params, timeout)
        return self._session.batch(work, audio, Watch(on_result, on_progress, not return_exceptions))

    async def atranscribe_batch(
        self,
        audio: Inputs[AudioInput],
        *,
        return_exceptions: bool = True,
        on_result: OnResult[TranscriptionResult] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> BatchResult[TranscriptionResult]:
        """Do what :meth:`transcribe_batch` does."""
        work = self._session.operations.transcription(params, timeout)
        return await self._session.abatch(work, audio, Watch(on_result, on_progress, not return_exceptions))
