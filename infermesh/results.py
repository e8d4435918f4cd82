"""What a caller gets: results with their token usage and metrics, and batches of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

from infermesh.exact_json import read


@dataclass(slots=True)
class TokenUsage:
    """Tokens of one answer, as the server counted them.

    ``reasoning_tokens`` are a part of ``completion_tokens``, ``cached_tokens`` of ``prompt_tokens``; ``None`` where the
    server does not report them. ``details`` holds what else decides the price, ``None`` where there is nothing: counts
    within the two (``cache_write_tokens``, ``cache_write_1h_tokens``, ``input_audio_tokens``, ``output_audio_tokens``),
    ``audio_seconds``, the ``service_tier`` (``flex``, ``priority``, ``batch`` …) or ``speed`` (``fast``) that served
    the request, unless it is the standard one, and ``reported_cost``, the dollars that the server says it bills.

    Examples
    --------
    >>> usage = client.generate("Hello.").token_usage
    >>> usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    True
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    details: dict[str, float | str] | None = None


@dataclass(slots=True)
class Attempt:
    """One request that was sent.

    Attributes
    ----------
    attempt
        Its number, from 1.
    deployment
        Label of the deployment that was asked.
    started_at
        When it was sent, in seconds since the epoch.
    queue_s
        Seconds that it waited on this side before: for a slot, a limit or a retry.
    service_s
        Seconds until the answer, or the failure.
    status_code
        HTTP status, ``None`` where no answer came.
    error_type
        ``kind`` of its error, such as ``rate_limit``; ``None`` where it succeeded.
    prompt_tokens, completion_tokens
        As the server counted them, ``None`` where it did not.
    cost_usd
        US dollars, ``None`` where no price is known.
    rows
        How many inputs it carried; a micro-batch of embeddings carries several.
    service_tier
        What served it at a price of its own, such as ``flex``; ``None``: the standard tier, or the server does not say.

    Examples
    --------
    >>> [attempt.status_code for attempt in client.generate("Hello.").metrics.attempts]
    [200]
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
    service_tier: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Where the time of one request went, over all its attempts.

    Attributes
    ----------
    deployment
        Label of the deployment that answered, or failed last.
    queue_s
        Seconds of waiting on this side: for slots, limits and retries.
    service_s
        Seconds of the last attempt at the server.
    end_to_end_s
        Seconds from the call to its result.
    retries
        Attempts after the first.
    attempts
        Each of them.

    Examples
    --------
    >>> metrics = client.generate("Hello.").metrics
    >>> metrics.retries, metrics.end_to_end_s >= metrics.service_s
    (0, True)
    """

    deployment: str
    queue_s: float
    service_s: float
    end_to_end_s: float
    retries: int = 0
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class ToolCall:
    """One function call that the model asks for, in ``GenerationResult.tool_calls``.

    ``arguments`` is the JSON text as the model wrote it, which need not be valid. ``id`` is ``None`` where the server
    gives none.

    Examples
    --------
    >>> import json
    >>> from infermesh import ToolCall
    >>> call = ToolCall("call_1", "weather", '{"city": "Paris"}')
    >>> json.loads(call.arguments)["city"]
    'Paris'
    """

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
        """The answer as it came; ``None`` where there is none. Decoded at each access, to hold a million as bytes."""
        body = self.raw_body
        return read(body) if isinstance(body, bytes) else body


def sole_attempt(result: _ResultBase) -> Attempt | None:
    """The request that led to an answer, where it was one, for this answer alone, and the answer has its values.

    Then whoever keeps the answer need not keep the request as well.
    """
    metrics = result.metrics
    if metrics is None or len(metrics.attempts) != 1:
        return None
    only, usage = metrics.attempts[0], result.token_usage
    alike = (
        only.attempt == only.rows == 1
        and only.status_code == 200
        and only.error_type is None
        and only.cost_usd == result.cost
        and only.service_tier is None
        and only.deployment == metrics.deployment
        and (only.prompt_tokens, only.completion_tokens)
        == ((None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens))
    )
    return only if alike else None


class _Block(Protocol):
    def value(self, place: int, name: str) -> Any: ...


class _Kept(_ResultBase):
    """Has the place for where a result's attributes are kept together with others', which is no field of it."""

    __slots__ = ("_block", "_place")
    _block: _Block
    _place: int

    def keep_in(self, block: _Block, place: int) -> None:
        """Take the attributes named in ``_IN_BLOCKS`` from a block from now on."""
        self._block, self._place = block, place
        del self.token_usage, self.metrics, self.cost, self.request_id, self.raw_body

    def __getattr__(self, name: str) -> Any:
        if name not in _IN_BLOCKS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        value = self._block.value(self._place, name)
        if name in _CHANGEABLE:  # whoever changes the object finds it changed
            setattr(self, name, value)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return _made, (type(self), values)


_CHANGEABLE = ("token_usage", "metrics")
_IN_BLOCKS = (*_CHANGEABLE, "cost", "request_id", "raw_body")


def _made(kind: Callable[..., Any], values: dict[str, Any]) -> Any:
    return kind(**values)


@dataclass(slots=True)
class GenerationResult(_Kept):
    """The answer to one prompt. ``str(result)`` is its text.

    Attributes
    ----------
    output_text
        The text, empty where the answer is a tool call alone.
    output_parsed
        A pydantic object or plain JSON value where a ``response_format`` was given and the text satisfies it, else
        ``None``.
    invalid
        Why the text does not satisfy the ``response_format``; ``None`` where it does, or none was given.
    reasoning
        The model's reasoning, ``None`` where the server sends none.
    tool_calls
        The functions that the model wants called, ``None`` where there are none.
    finish_reason
        Why the answer ends: ``stop``, ``length``, ``tool_calls``, ``content_filter``.
    request_id, model_id
        The provider's id of the request, and the model that answered, in the server's words.
    token_usage
        ``None`` where the server sends none.
    cost
        US dollars over all attempts, ``None`` where no price is known.
    metrics
        Where the time went.

    Examples
    --------
    >>> result = client.generate("What is the capital of France?")
    >>> result.finish_reason, result.token_usage.total_tokens, str(result) == result.output_text
    ('stop', 16, True)
    """

    output_text: str = ""
    output_parsed: Any = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = field(default=None, repr=False)
    invalid: str | None = None

    def __str__(self) -> str:
        return self.output_text


class _Packed(_ResultBase):
    """Has the place for a vector's bytes, which is no field of the result: it says the same as ``embedding``."""

    __slots__ = ("_bytes",)
    _bytes: bytes


@dataclass(slots=True)
class EmbeddingResult(_Packed):
    """One text's embedding, a list of floats.

    A server that answers in base64 sends float32 numbers. They stay as they came until ``embedding`` is first looked
    at: the list takes eight times the memory, and some 15 µs for 1,024 numbers. ``packed`` goes without it.

    Texts of one request share its ``metrics``. Its tokens and cost are shared out to them by their length.

    Examples
    --------
    >>> len(client.embed("The quick brown fox").embedding)
    64
    >>> from array import array
    >>> len(array("f", client.embed("One.").packed))  # or numpy.frombuffer(result.packed, numpy.float32)
    64
    """

    embedding: list[float] = field(default_factory=list)

    @classmethod
    def of_bytes(cls, packed: bytes) -> EmbeddingResult:
        """A result of float32 numbers in this machine's byte order."""
        result = cls()
        del result.embedding  # the next access makes it, in __getattr__
        result._bytes = packed
        return result

    def __getattr__(self, name: str) -> Any:
        if name != "embedding":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        numbers: list[float] = array("f", self._bytes).tolist()
        self.embedding = numbers
        del self._bytes  # the list may be changed
        return numbers

    @property
    def packed(self) -> bytes:
        """The embedding as float32 numbers of four bytes each, in this machine's byte order."""
        return self._bytes if hasattr(self, "_bytes") else array("f", self.embedding).tobytes()

    @property
    def dimensions(self) -> int:
        """How many numbers it has."""
        return len(self._bytes) // 4 if hasattr(self, "_bytes") else len(self.embedding)

    def __str__(self) -> str:
        return str(self.embedding)


@dataclass(slots=True)
class TranscriptionResult(_ResultBase):
    """One clip's words.

    ``language`` is an ISO 639-1 code and ``duration_s`` the clip's seconds. ``words`` and ``segments`` are lists of
    objects with their times in seconds, as the server gives them. Each is ``None`` where the server does not send it.

    Examples
    --------
    >>> result = client.transcribe("recording.wav")
    >>> result.text, result.language
    ('Good morning.', 'en')
    """

    text: str = ""
    language: str | None = None
    duration_s: float | None = None
    words: list[Any] | None = field(default=None, repr=False)
    segments: list[Any] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class FunctionResult(_ResultBase):
    """What a python stage's function returned: the values of the stage's columns."""

    values: tuple[Any, ...] = ()


T = TypeVar("T")


class StreamItem(NamedTuple, Generic[T]):
    """One settled item of a stream: its input's position, and a result or an error; the other is ``None``.

    Examples
    --------
    >>> for index, result, error in client.generate_stream(["Hello."]):
    ...     print(index, result, error)
    0 Hello. None
    """

    index: int  # type: ignore[assignment]  # in place of tuple's method
    result: T | None
    error: BaseException | None


@dataclass(slots=True)
class BatchResult(Generic[T]):
    """What became of a batch: a sequence of results in the order of the inputs.

    A failed item is ``None`` in ``results`` and an exception in ``errors``; one that succeeded, the other way round. In
    a batch that ended early, an item that had not settled is ``None`` in both.

    Examples
    --------
    >>> inputs = ["One.", None, "Three."]
    >>> batch = client.generate_batch(inputs)
    >>> str(batch[0]), len(batch)
    ('One.', 3)
    >>> [inputs[index] for index in batch.failures]  # what to look at, and to try again
    [None]
    """

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
        """The failed items, by index, and their exceptions."""
        return {i: error for i, error in enumerate(self.errors) if error is not None}
