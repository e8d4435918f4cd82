"""Requests, results, usage and metrics: the values that callers hold and that layers pass to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, get_args, overload

import orjson

from infermesh.errors import ConfigError

Endpoint = Literal["chat_completion", "text_completion", "responses"]
Operation = Literal["chat_completion", "text_completion", "responses", "embedding", "transcription", "function"]
RoutingStrategy = Literal["simple-shuffle", "least-busy", "latency-based-routing"]
TransportKind = Literal["auto", "native", "litellm"]
HeaderBucketScope = Literal["auto", "minute", "day"]


@dataclass(slots=True)
class Audio:
    """One clip, read and ready to send."""

    data: bytes
    filename: str


@dataclass(slots=True)
class Request:
    """What dispatch sends, whichever deployment it ends at.

    ``payload`` is the OpenAI wire body without ``model``, which belongs to the deployment. ``prompt_tokens`` is the
    estimate that token limits reserve, 0 where nobody asked for one; ``output_tokens`` the most the answer may have.
    """

    operation: Operation
    payload: dict[str, Any]
    audio: Audio | None = None
    timeout: float | None = None
    prompt_tokens: int = 0
    output_tokens: int | None = None
    encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)  # wire.payload_bytes' cache


@dataclass(slots=True)
class Reply:
    """A successful answer as it came: the decoded body, and a case-insensitive header lookup.

    ``status_code`` is ``None`` where no server answered, but a function; ``data`` is the JSON that ``body`` was read
    from, where there is one.
    """

    status_code: int | None
    body: dict[str, Any]
    header: Callable[[str], str | None]
    data: bytes | None = None


class Transport(Protocol):
    """The seam between infermesh and the network: one request, one answer.

    ``send`` raises :class:`~infermesh.errors.RequestError` subclasses and nothing else (besides ``CancelledError``).
    """

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request once. ``timeout`` in seconds covers it whole, ``None`` waits for ever."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


@dataclass(slots=True)
class TokenUsage:
    """Tokens of one answer, as the server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(slots=True)
class Attempt:
    """One request that went out: times in seconds, ``started_at`` in seconds since the epoch.

    ``attempt`` counts from 1; ``rows`` is how many inputs the request carried (a micro-batch carries several).
    """

    attempt: int
    deployment: str
    started_at: float
    queue_s: float
    service_s: float = 0.0
    status_code: int | None = None
    error_type: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    rows: int = 1


@dataclass(slots=True)
class RequestMetrics:
    """Where the time of one settled request went.

    ``queue_s`` is all waiting on this side (slots, limits, back-off), ``service_s`` the last attempt's time at the
    server, ``end_to_end_s`` the whole; ``retries`` is the number of attempts after the first.
    """

    deployment: str
    queue_s: float
    service_s: float
    end_to_end_s: float
    retries: int = 0
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class ToolCall:
    """One call the model asks for; ``arguments`` is the JSON text as the model wrote it."""

    id: str | None
    name: str
    arguments: str


@dataclass(slots=True)
class _Result:
    request_id: str | None = None
    model_id: str | None = None
    token_usage: TokenUsage | None = None
    cost: float | None = None
    metrics: RequestMetrics | None = None
    raw_body: bytes | dict[str, Any] | None = field(default=None, repr=False)

    @property
    def raw_response(self) -> dict[str, Any] | None:
        """The answer as it came, decoded at each access: a million results hold bytes, not trees of objects."""
        body = self.raw_body
        return orjson.loads(body) if isinstance(body, bytes) else body


@dataclass(slots=True)
class GenerationResult(_Result):
    """The answer to one generation request. ``str(result)`` is its text.

    ``output_parsed`` is the validated pydantic object or plain JSON value where a ``response_format`` was given and the
    text satisfied it, else ``None``. ``cost`` is in US dollars, ``None`` where no price is known.
    """

    output_text: str = ""
    output_parsed: Any = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    finish_reason: str | None = None

    def __str__(self) -> str:
        return self.output_text


@dataclass(slots=True)
class EmbeddingResult(_Result):
    """One text's embedding, a list of floats."""

    embedding: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.embedding)


@dataclass(slots=True)
class TranscriptionResult(_Result):
    """One clip's words. ``language`` and ``duration_s`` where the server tells them."""

    text: str = ""
    language: str | None = None
    duration_s: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class FunctionResult(_Result):
    """What a python stage's function returned: the values of the stage's columns."""

    values: tuple[Any, ...] = ()


T = TypeVar("T")


class StreamItem(NamedTuple, Generic[T]):
    """One settled item of a batch or stream: its input's position, and a result or an error, the other one ``None``."""

    index: int  # type: ignore[assignment]  # in place of tuple's method
    result: T | None
    error: BaseException | None


@dataclass(slots=True)
class BatchResult(Generic[T]):
    """Results in the order of the inputs; a failed item is ``None`` in ``results`` and an exception in ``errors``."""

    results: list[T | None]
    errors: list[BaseException | None]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[T | None]:
        return iter(self.results)

    @overload
    def __getitem__(self, index: int) -> T | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[T | None]: ...
    def __getitem__(self, index: int | slice) -> T | list[T | None] | None:
        return self.results[index]

    @property
    def failures(self) -> dict[int, BaseException]:
        """The failed items: index → exception."""
        return {i: error for i, error in enumerate(self.errors) if error is not None}


@dataclass(slots=True)
class DeploymentConfig:
    """One replica or account that can serve a model.

    Parameters
    ----------
    model
        The backend's name for the model, in LiteLLM's ``provider/model`` form.
    api_base
        Its base URL, e.g. ``http://host1:8000/v1``; ``None`` for the provider's own.
    api_key
        A key; better, ``api_key_env`` names the environment variable that holds it.
    weight
        Share of the load under ``simple-shuffle``.
    max_parallel_requests
        Requests in flight at once, over all stages and callers.
    rpm, tpm, rpd, tpd
        Requests and tokens per minute and per day for this deployment alone.
    transport
        ``native`` (OpenAI wire format), ``litellm`` (every other provider) or ``auto``.
    headers
        Further HTTP headers.
    input_cost_per_token, output_cost_per_token
        US dollars per token, over the price list.

    Raises
    ------
    ConfigError
        An unknown transport.
    """

    # Plain types, so that OmegaConf takes the class for a structured config.
    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    weight: float = 1.0
    max_parallel_requests: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    rpd: float | None = None
    tpd: float | None = None
    transport: str = "auto"
    headers: dict[str, str] | None = None
    input_cost_per_token: float | None = None
    output_cost_per_token: float | None = None

    def __post_init__(self) -> None:
        if self.transport not in get_args(TransportKind):
            raise ConfigError(
                f"transport: expected one of {', '.join(get_args(TransportKind))}, got {self.transport!r}"
            )
