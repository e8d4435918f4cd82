"""What a caller gets back: results, their token usage and metrics, and the outcome of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, overload

import orjson


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
class _ResultBase:
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
class GenerationResult(_ResultBase):
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
class EmbeddingResult(_ResultBase):
    """One text's embedding, a list of floats."""

    embedding: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.embedding)


@dataclass(slots=True)
class TranscriptionResult(_ResultBase):
    """One clip's words. ``language`` and ``duration_s`` where the server tells them."""

    text: str = ""
    language: str | None = None
    duration_s: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class FunctionResult(_ResultBase):
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
