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
from infermesh.config.deployment import MAX_RESPONSE_BYTES, DeploymentConfig
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
    """Sends requests to one model: one at a time, a list of them, or a stream.

    Use it where code of yours makes the prompts and takes the results: in scripts, threads, notebooks and asyncio. It
    keeps rate limits, retries failures that may pass, spreads requests over replicas, and returns typed results. For
    rows in files, and for jobs that must survive a crash, there is ``infermesh run``.

    All work is done on an event loop in a thread of the client's own. Every caller, synchronous or asynchronous, shares
    its limits, slots and connections. The thread starts with the first call and ends with :meth:`close`. Use the client
    in ``with`` or ``async with``, which may be entered again later.

    Parameters
    ----------
    model
        ``provider/model`` as LiteLLM writes it; with ``deployments``, any name.
    api_base
        The server's base URL, or a list of URLs with a replica each. ``None`` is the provider's own.
    api_key
        A key. ``None`` takes it from the provider's usual environment variable.
    deployments
        Label → :class:`~infermesh.config.deployment.DeploymentConfig` (or its fields as a mapping), instead of
        ``api_base``. Limits set there are that deployment's own.
    endpoint
        ``chat_completion``, ``text_completion`` or ``responses``.
    max_parallel_requests
        Requests in flight at once, over all callers, at least 1. ``None`` sets no bound, and a batch starts all its
        items at once.
    rpm, tpm, rpd, tpd
        Requests and tokens per minute and per UTC day, shared by all deployments. Requests wait until they fit.
        ``None`` is no limit.
    max_request_burst, max_token_burst
        Requests and tokens that may be sent at once after an idle time. ``None`` paces them evenly.
    header_bucket_scope
        Which limits the server's ``x-ratelimit-*`` headers speak of: ``minute`` or ``day``; ``auto`` infers it.
    default_output_tokens
        Tokens to reserve for an answer without ``max_tokens``. ``None`` takes the mean of the answers so far.
    timeout
        Seconds for one attempt, above 0. ``None`` waits for ever. One in ``default_request_kwargs`` takes its place.
    max_retries
        Attempts after the first, for failures that may pass. 0 sends every request once.
    default_request_kwargs
        Options and wire parameters of every request. Those of a call take their place.
    routing_strategy
        ``simple-shuffle``, ``least-busy`` or ``latency-based-routing``.
    max_transcription_bytes
        Largest clip that is sent. ``None`` sends any, and reads it into memory whole.
    max_response_bytes
        The most bytes that an answer may have, once it is decompressed, for deployments that do not set their own. A
        longer one is not read to its end, and fails with a ``MalformedResponseError``.
    input_cost_per_token, output_cost_per_token
        US dollars, for deployments that do not set their own. ``None`` goes by the price list.

    Raises
    ------
    ConfigError
        A parameter is out of its range, or names something that does not exist. Nothing was sent.

    Examples
    --------
    >>> from infermesh import LMClient
    >>> client = LMClient("hosted_vllm/llama-3-8b", api_base="http://localhost:8000/v1", max_parallel_requests=64)
    >>> with client:
    ...     batch = client.generate_batch([f"Name a city in region {n}." for n in range(100)])
    >>> len(batch), batch.failures
    (100, {})

    Under asyncio every method has a counterpart with an ``a`` in front:

    >>> import asyncio
    >>> async def main():
    ...     async with LMClient("hosted_vllm/llama-3-8b", api_base="http://localhost:8000/v1") as client:
    ...         return await client.agenerate("What is the capital of France?")
    >>> asyncio.run(main()).finish_reason
    'stop'

    The examples of the methods use an open ``client``.
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
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        input_cost_per_token: float | None = None,
        output_cost_per_token: float | None = None,
    ) -> None:
        self.model = model
        defaults = dict(default_request_kwargs or {})
        configs, slots, window = spread_slots(
            deployment_configs(model, api_base, api_key, deployments, max_response_bytes), max_parallel_requests
        )
        logical_model, deployed = client_model(
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
        """End all calls that are under way, in whichever thread, and close every connection.

        Calls that are ended so raise ``RuntimeError``. A closed client may be opened again with ``with client:``.
        """
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
        """Answer one prompt. For many, use :meth:`generate_batch` or :meth:`generate_stream`.

        Options that are ``None`` are those of ``default_request_kwargs``, or else as described here.

        Parameters
        ----------
        input
            A prompt; a list of messages; or a mapping with the endpoint's own fields (``messages``, ``prompt``,
            ``input`` …).
        response_format
            A pydantic class or a JSON schema. The server is asked for it, and the answer is checked and parsed into
            ``output_parsed``. ``None`` asks for plain text.
        parse_output
            ``False`` sends the schema and leaves ``output_parsed`` empty. ``None`` is as ``True``.
        on_invalid
            What to do with an answer that does not satisfy the format. ``"null"`` (as ``None``): warn, and leave
            ``output_parsed`` empty. ``"retry"``: tell the model what was wrong and ask again, at most twice.
        endpoint
            ``None`` takes the client's.
        system
            A system message, put first unless the conversation begins with one of its own.
        timeout
            Seconds for one attempt, above 0. ``None`` waits for ever. ``USE_CLIENT_DEFAULT`` takes the client's.
        params
            Wire parameters: ``temperature``, ``max_tokens``, ``tools`` and so on. ``None`` sends none of that name.

        Raises
        ------
        RequestError
            The failure of the last attempt; its class says what kind.
        ConfigError
            An option is wrong. Nothing was sent.

        Examples
        --------
        >>> result = client.generate("What is the capital of France?", max_tokens=64, timeout=30)
        >>> result.output_text
        'What is the capital of France?'

        (The server of these examples repeats the prompt.)

        >>> from pydantic import BaseModel
        >>> class City(BaseModel):
        ...     name: str
        ...     population: int
        >>> type(client.generate("A city, as JSON.", response_format=City).output_parsed).__name__
        'City'
        """
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
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
        """Do what :meth:`generate` does, for ``await``."""
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
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
        """Answer many prompts, and return when all have settled.

        A failed item does not end the batch. For inputs or results that do not fit into memory there is
        :meth:`generate_stream`.

        Parameters
        ----------
        inputs
            Any iterable of what :meth:`generate` takes, asynchronous ones included.
        return_exceptions
            ``True``: a failed item is ``None`` in ``batch.results``, and its exception is in ``batch.errors``.
            ``False``: the first failure ends the batch and is raised.
        on_result
            Called with ``(index, result, error)`` as each item settles, in the caller's thread or loop, one call at a
            time. If it raises, the batch ends.
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
            What ended the batch early, Ctrl-C included. Its attribute ``batch`` holds what had settled by then.

        Examples
        --------
        >>> batch = client.generate_batch(["One.", "Two.", None], on_progress=lambda done, total: None)
        >>> [str(result) for result in batch]
        ['One.', 'Two.', 'None']
        >>> batch.failures
        {2: InputError(...)}
        """
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
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
        """Do what :meth:`generate_batch` does, for ``await``. Callbacks may be ``async def``."""
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
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
        are between the iterator and the caller, so that a slow consumer slows the requests down. Leaving the loop early
        ends the requests under way.

        Yields
        ------
        StreamItem
            ``(index, result, error)``, in the order in which they settle.

        Examples
        --------
        >>> def rows():
        ...     for number in range(1_000_000):
        ...         yield f"Name city number {number}."
        >>> for index, result, error in client.generate_stream(rows()):
        ...     if index == 100:
        ...         break
        """
        handler = self._operations.generation(
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
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
            params, response_format, parse_output, on_invalid, endpoint, system, timeout
        )
        return astream(self._loop, handler, inputs)

    def embed(
        self,
        text: str,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> EmbeddingResult:
        """Embed one text. For many, use :meth:`embed_batch`: texts that travel together cost far less.

        Parameters
        ----------
        text
            What to embed.
        timeout
            As for :meth:`generate`.
        params
            Wire parameters: ``dimensions`` and so on.

        Raises
        ------
        RequestError
            The failure of the last attempt.

        Examples
        --------
        >>> len(client.embed("The quick brown fox", dimensions=32).embedding)
        32
        """
        handler = self._operations.embedding(params, timeout)
        return self._loop.run(handler.one, text)

    async def aembed(
        self,
        text: str,
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **params: Any,
    ) -> EmbeddingResult:
        """Do what :meth:`embed` does, for ``await``."""
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
        """Embed many texts.

        Parameters
        ----------
        texts
            Any iterable of strings, asynchronous ones included.
        micro_batch_size
            Texts that travel in one request, at least 1. A request that the server refuses is split until only the text
            that is to blame fails.
        return_exceptions, on_result, on_progress
            As for :meth:`generate_batch`.
        timeout, params
            As for :meth:`embed`.

        Examples
        --------
        >>> batch = client.embed_batch(["sentence one", "sentence two", "sentence three"], micro_batch_size=2)
        >>> len([result.embedding for result in batch if result is not None])
        3
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
        """Do what :meth:`embed_batch` does, for ``await``."""
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
        """Transcribe one clip.

        Parameters
        ----------
        audio
            A path, bytes, or an open binary file.
        timeout
            As for :meth:`generate`.
        params
            Wire parameters: ``language``, ``prompt`` and so on.

        Raises
        ------
        RequestError
            The failure of the last attempt; an ``InputError`` where the clip cannot be read or is too large.

        Examples
        --------
        >>> client.transcribe("recording.wav", language="en").text
        'Good morning.'
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
        """Do what :meth:`transcribe` does, for ``await``."""
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
        """Transcribe many clips, each in a request of its own. Other parameters are those of :meth:`generate_batch`.

        Examples
        --------
        >>> batch = client.transcribe_batch(["recording.wav", "missing.wav"])
        >>> batch.failures.keys()
        dict_keys([1])
        """
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
        """Do what :meth:`transcribe_batch` does, for ``await``."""
        handler = self._operations.transcription(params, timeout)
        return await abatch(self._loop, handler, audio, Callbacks(on_result, on_progress, not return_exceptions))
