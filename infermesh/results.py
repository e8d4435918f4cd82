"""What a caller gets: results with their token usage and metrics, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, overload

import orjson


@dataclass(slots=True)
class TokenUsage:
    """The tokens of one answer, as the server counted them. ``None``: the server does not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(slots=True)
class Attempt:
    """One request that was sent.

    Attributes
    ----------
    attempt
        Counts from 1.
    started_at
        Seconds since the epoch.
    queue_s, service_s
        Seconds of waiting on this side before it, and at the server.
    rows
        How many inputs it carried. A micro-batch carries several.
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

    Attributes
    ----------
    queue_s
        Seconds of waiting on this side, over all attempts: for slots, limits and back-off.
    service_s
        Seconds at the server, of the last attempt.
    end_to_end_s
        Seconds in all.
    retries
        Attempts after the first.
    """

    deployment: str
    queue_s: float
    service_s: float
    end_to_end_s: float
    retries: int = 0
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class ToolCall:
    """One call that the model asks for. ``arguments`` is the JSON text as the model wrote it."""

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
        """The answer as it arrived. It is decoded at each access, so that a million results hold bytes alone."""
        body = self.raw_body
        return orjson.loads(body) if isinstance(body, bytes) else body


@dataclass(slots=True)
class GenerationResult(_ResultBase):
    """The answer to one generation request. ``str(result)`` is its text.

    Attributes
    ----------
    output_parsed
        With a ``response_format``: the validated pydantic object or JSON value. ``None``: the text did not satisfy it.
    cost
        US dollars. ``None``: no price is known.
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
    """The words of one clip. ``language`` and ``duration_s`` are ``None`` if the server does not tell them."""

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
    """One settled item of a batch or stream: the position of its input, and either a result or an error."""

    index: int  # type: ignore[assignment]  # in place of tuple's method
    result: T | None
    error: BaseException | None


@dataclass(slots=True)
class BatchResult(Generic[T]):
    """Results in the order of the inputs. A failed item is ``None`` in ``results`` and an exception in ``errors``."""

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
