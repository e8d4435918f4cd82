"""The results of a batch in little memory: what is seldom looked at is kept for some hundred results together.

A result has its times, its tokens and the body of its answer in five objects, of 1,200 bytes for a short answer. A
batch of a million would take a gigabyte beyond the texts. A :class:`Block` has the numbers of its results in two
arrays, and their bodies compressed as one: together they take a tenth, as they repeat each other's keys. Results that
a :class:`Keeper` has put into a block make such an attribute when it is looked at.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from infermesh.results import Attempt, GenerationResult, RequestMetrics, TokenUsage, sole_attempt
from infermesh.runtime.zstandard import zstd

__all__ = ["Block", "Keeper"]

_RESULTS, _BYTES = 256, 1 << 17  # the most results in a block, and the bytes of their bodies that end one
_LEVEL = 1  # zstd's fastest but for its negative ones, which took longer over short bodies
_NUMBERS, _COUNTS = 6, 5  # of a result, in the two arrays
_NONE = -1  # a count that the server does not give
_TOO_MANY = 1 << 63


class Keeper:
    """Puts generation results into blocks, as they settle; others it leaves alone."""

    def __init__(self) -> None:
        self._open: list[GenerationResult] = []
        self._size = 0

    def keep(self, result: object) -> None:
        """Keep one more result of a batch."""
        if result.__class__ is not GenerationResult or result.raw_body.__class__ is not bytes:
            return
        assert isinstance(result, GenerationResult)
        self._open.append(result)
        self._size += len(result.raw_body or b"")
        if len(self._open) >= _RESULTS or self._size >= _BYTES:
            self.close()

    def close(self) -> None:
        """Put what has come since into a block."""
        found = [(result, only) for result in self._open if (only := _fitting(result)) is not None]
        self._open, self._size = [], 0
        if found:
            block = Block(found)
            for place, (result, _) in enumerate(found):
                result.keep_in(block, place)


class Block:
    """Attributes of some results, which it makes anew each time. A result knows its place in it."""

    __slots__ = ("_bodies", "_counts", "_deployments", "_ends", "_numbers")

    def __init__(self, results: Sequence[tuple[GenerationResult, Attempt]]) -> None:
        numbers: list[float] = []
        counts: list[int] = []
        parts: list[bytes] = []
        for result, only in results:
            metrics, usage, request_id = result.metrics, result.token_usage, result.request_id
            assert metrics is not None
            assert isinstance(result.raw_body, bytes)
            cost = math.nan if result.cost is None else result.cost
            numbers += (only.started_at, only.queue_s, only.service_s, metrics.queue_s, metrics.end_to_end_s, cost)
            if usage is None:
                counts += (_NONE, _NONE, _NONE, _NONE, _NONE)
            else:
                reasoning, cached = usage.reasoning_tokens, usage.cached_tokens
                counts += (
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    usage.total_tokens,
                    _NONE if reasoning is None else reasoning,
                    _NONE if cached is None else cached,
                )
            parts += (result.raw_body, b"" if request_id is None else request_id.encode("utf-8", "surrogatepass"))
        self._numbers, self._counts = array("d", numbers), array("q", counts)
        self._ends = array("I", accumulate(map(len, parts)))
        self._deployments = tuple([only.deployment for _, only in results])
        self._bodies = zstd.compress(b"".join(parts), _LEVEL)

    def value(self, place: int, name: str) -> Any:
        """The attribute of the result in a place. Raises ``KeyError`` for one that is not kept here."""
        return _MADE[name](self, place)

    def _cost(self, place: int) -> float | None:
        cost = self._numbers[place * _NUMBERS + _NUMBERS - 1]
        return None if math.isnan(cost) else cost

    def _usage(self, place: int) -> TokenUsage | None:
        prompt, completion, total, reasoning, cached = self._counts[place * _COUNTS : (place + 1) * _COUNTS]
        if total == _NONE:
            return None
        return TokenUsage(
            prompt,
            completion,
            total,
            None if reasoning == _NONE else reasoning,
            None if cached == _NONE else cached,
        )

    def _metrics(self, place: int) -> RequestMetrics:
        started, queued, service, all_queued, whole, _ = self._numbers[place * _NUMBERS : (place + 1) * _NUMBERS]
        label, usage, cost = self._deployments[place], self._usage(place), self._cost(place)
        prompt = None if usage is None else usage.prompt_tokens
        completion = None if usage is None else usage.completion_tokens
        only = Attempt(1, label, started, queued, service, 200, None, prompt, completion, cost)
        return RequestMetrics(label, all_queued, service, whole, 0, [only])

    def _body(self, place: int) -> bytes:
        return self._part(2 * place)

    def _request_id(self, place: int) -> str | None:
        return self._part(2 * place + 1).decode("utf-8", "surrogatepass") or None

    def _part(self, number: int) -> bytes:
        global _opened
        block, bodies = _opened
        if block is not self:
            bodies = zstd.decompress(self._bodies)
            _opened = self, bodies
        return bodies[self._ends[number - 1] if number else 0 : self._ends[number]]


_MADE = {
    "cost": Block._cost,
    "token_usage": Block._usage,
    "metrics": Block._metrics,
    "raw_body": Block._body,
    "request_id": Block._request_id,
}
# The block whose bodies were looked at last: a caller who takes them in order opens each block once.
_opened: tuple[Block | None, bytes] = (None, b"")


def _fitting(result: GenerationResult) -> Attempt | None:
    """The one request of a result that a block can hold as it is; ``None`` for another result."""
    only, metrics, usage = sole_attempt(result), result.metrics, result.token_usage
    if only is None or metrics is None or metrics.retries or metrics.service_s != only.service_s:
        return None
    if result.request_id == "" or result.cost != result.cost:  # neither would come back as it was
        return None
    if usage is None:
        return only
    if usage.details is not None:
        return None
    given = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    for count in (*given, usage.reasoning_tokens or 0, usage.cached_tokens or 0):
        if count.__class__ is not int or not 0 <= count < _TOO_MANY:
            return None
    return only
