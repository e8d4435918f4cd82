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
from contextlib import suppress
from itertools import accumulate
from typing import Any

from infermesh.results import Attempt, GenerationResult, RequestMetrics, TokenUsage, sole_attempt
from infermesh.runtime.zstandard import zstd

__all__ = ["Block", "Keeper"]

_RESULTS, _BYTES = 256, 1 << 17  # the most results in a block, and the bytes of their bodies that end one
# A longer body stays by itself: to compress it would hold the event loop, and it repeats little of the others.
_LONGEST = 1 << 16
_LEVEL = 1  # zstd's fastest but for its negative ones, which took longer over short bodies
_NUMBERS, _COUNTS = 6, 5  # of a result, in the two arrays
_NONE, _NO_COST = -(1 << 63), math.nan  # for what the server does not give
_NO_COUNTS = (_NONE,) * _COUNTS


class Keeper:
    """Puts generation results into blocks, as they settle; others it leaves alone."""

    def __init__(self) -> None:
        self._open: list[GenerationResult] = []
        self._size = 0

    def keep(self, result: Any) -> None:
        """Keep one more result of a batch."""
        if result.__class__ is not GenerationResult or result.raw_body.__class__ is not bytes:
            return
        if len(result.raw_body) <= _LONGEST:
            self._open.append(result)
            self._size += len(result.raw_body)
            if len(self._open) >= _RESULTS or self._size >= _BYTES:
                self.close()

    def close(self) -> None:
        """Put what has come since into a block."""
        results, self._open, self._size = self._open, [], 0
        with suppress(OverflowError, TypeError):  # a count of more than 64 bits: then they stay as they are
            block, kept = _block_of(results)
            for place, result in enumerate(kept):
                result.keep_in(block, place)


def _block_of(results: Sequence[GenerationResult]) -> tuple[Block, list[GenerationResult]]:
    """A block of those results that would come back as they are, and these results."""
    numbers: list[float] = []
    counts: list[int] = []
    parts: list[bytes] = []
    deployments, kept = [], []
    for result in results:
        only, metrics, usage = sole_attempt(result), result.metrics, result.token_usage
        cost, request_id, body = result.cost, result.request_id, result.raw_body
        if only is None or metrics is None or metrics.retries or metrics.service_s != only.service_s:
            continue
        if request_id == "" or cost != cost or body.__class__ is not bytes:
            continue
        if usage is None:
            counts += _NO_COUNTS
        elif usage.details is None:
            reasoning, cached = usage.reasoning_tokens, usage.cached_tokens
            counts += (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.total_tokens,
                _NONE if reasoning is None else reasoning,
                _NONE if cached is None else cached,
            )
        else:
            continue
        whole = metrics.end_to_end_s
        numbers += (
            only.started_at,
            only.queue_s,
            only.service_s,
            metrics.queue_s,
            whole,
            _NO_COST if cost is None else cost,
        )
        parts += (body, b"" if request_id is None else request_id.encode("utf-8", "surrogatepass"))
        deployments.append(only.deployment)
        kept.append(result)
    return Block(numbers, counts, parts, deployments), kept


class Block:
    """Attributes of some results, which it makes anew each time. A result knows its place in it.

    Parameters
    ----------
    numbers, counts
        ``_NUMBERS`` and ``_COUNTS`` for each result.
    parts
        Two for each: its body and its ``request_id``, empty for none.
    deployments
        One for each.
    """

    __slots__ = ("_bodies", "_counts", "_deployments", "_ends", "_numbers")

    def __init__(
        self, numbers: Sequence[float], counts: Sequence[int], parts: Sequence[bytes], deployments: Sequence[str]
    ) -> None:
        self._numbers, self._counts = array("d", numbers), array("q", counts)
        self._ends = array("I", accumulate(map(len, parts)))
        self._deployments = tuple(deployments)
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
