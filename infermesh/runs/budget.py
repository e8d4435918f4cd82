"""A run's budget: what was spent, and what the requests in flight may still cost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from infermesh.results import RequestMetrics, TokenUsage
from infermesh.stages import Prepared, Stage
from infermesh.types import Request
from infermesh.wire.requests import estimate_tokens, text_tokens

__all__ = ["Budget", "Hold"]

_ASSUMED_TOKENS = 256  # of an answer without max_tokens, before the stage's first one


@dataclass(slots=True)
class _Seen:
    """What a stage's requests have been like."""

    held: int = 0
    ended: bool = False  # one has, well or not
    stretch: float = 1.0  # prompt tokens as counted, over those estimated
    completion: int = 0
    cost: float = 0.0  # of one request, with its retries

    def learn(self, metrics: Sequence[RequestMetrics], tokens: int | None) -> None:
        """Take note of what one has cost. ``tokens`` is the estimate of its prompt."""
        self.ended = True
        attempts = [attempt for each in metrics for attempt in each.attempts]
        self.cost = max(self.cost, sum(attempt.cost_usd or 0.0 for attempt in attempts))
        self.completion = max([self.completion, *(attempt.completion_tokens or 0 for attempt in attempts)])
        answered = [attempt for attempt in attempts if attempt.error_type is None and attempt.prompt_tokens]
        if tokens and answered:  # a request that was sent in parts has several
            self.stretch = max(self.stretch, sum(attempt.prompt_tokens or 0 for attempt in answered) / tokens)


class _Wish:
    """Requests of a stage's rows that are to be sent together."""

    __slots__ = ("_limit", "_stage", "future", "name", "tokens")

    def __init__(self, stage: Stage, items: Sequence[Prepared[Any]]) -> None:
        self.name = stage.name
        self._stage = stage
        estimates = [_prompt_tokens(item.request) for item in items]
        self.tokens = None if None in estimates else sum(filter(None, estimates))
        self._limit = _output_limit(items[0].request)
        self.future: asyncio.Future[Hold | None] | None = None

    @property
    def in_batch(self) -> bool:
        """Whether it goes into a batch: then nothing tells for hours what one costs, and the price list has to."""
        return self._stage.model is not None and self._stage.model.route is not None

    def cost(self, seen: _Seen) -> float:
        """US dollars that it may cost: as the price list says of its tokens, else as the dearest so far."""
        model = self._stage.model
        if self.tokens is None or model is None:
            return seen.cost
        most = seen.completion if seen.ended else _ASSUMED_TOKENS if self._limit is None else self._limit
        if self._limit is not None:
            most = min(most, self._limit)
        dollars = model.dearest(TokenUsage(round(self.tokens * seen.stretch), most))
        return seen.cost if dollars is None else dollars


class Hold:
    """A part of the budget, set aside for a request in flight; :meth:`end` it in any case."""

    __slots__ = ("_budget", "_wish", "amount")

    def __init__(self, budget: Budget, wish: _Wish, amount: float) -> None:
        self._budget = budget
        self._wish = wish
        self.amount = amount

    def end(self, metrics: Sequence[RequestMetrics]) -> None:
        """Give back what was set aside, once what it has cost is counted as spent."""
        self._budget._end(self._wish, self.amount, metrics)


class Budget:
    """Lets requests go as long as all in flight, and the next one, fit into what is left.

    What a request may cost is an estimate: its prompt, stretched as the server has counted the others, and the longest
    answer of its stage so far, at the price of the dearest deployment. A stage's first request goes alone, as long as
    anything is left, and tells, unless it goes into a batch: then the price list says what all of them cost. So a run
    ends about one answer below its budget, and not by as many above it as are in flight.

    Parameters
    ----------
    limit
        US dollars.
    spent
        What the run has cost so far, in US dollars.
    before
        Stage → the most completion tokens and US dollars of one request, in earlier sessions.

    Attributes
    ----------
    used_up
        Why the next request does not go, once there is none in flight that could make room; ``None`` before.
    """

    def __init__(
        self, limit: float, spent: Callable[[], float], before: Mapping[str, tuple[int, float]] = MappingProxyType({})
    ) -> None:
        self._limit = limit
        self._spent = spent
        self._held, self._reserved = 0, 0.0
        self._seen = {
            name: _Seen(ended=True, completion=completion, cost=cost) for name, (completion, cost) in before.items()
        }
        self._waiting: dict[str, deque[_Wish]] = {}  # by stage, in the order in which they came
        self._enqueued: dict[tuple[str, int | None], Hold] = {}  # of requests that are in a batch
        self._stopped = False
        self.used_up: str | None = None

    async def afford(
        self,
        stage: Stage,
        items: Sequence[Prepared[Any]],
        send: Callable[[], Awaitable[Sequence[RequestMetrics] | None]],
        *,
        whose: int | None = None,
    ) -> bool:
        """Send a request for these rows once there is room for what it may cost; false: there will be none.

        Parameters
        ----------
        send
            Sends it, and returns the metrics of all requests that this took. ``None``: it is in a batch, and what was
            set aside for it stays so until the same row is sent again.
        whose
            The row that it is for.
        """
        if stage.model is None:
            await send()
            return True
        hold = self._enqueued.pop((stage.name, whose), None) or await self.hold(stage, items)
        if hold is None:
            return False
        metrics: Sequence[RequestMetrics] | None = ()
        try:
            metrics = await send()
        finally:
            if metrics is None:
                self._enqueued[stage.name, whose] = hold
            else:
                hold.end(metrics)
        return True

    async def hold(self, stage: Stage, items: Sequence[Prepared[Any]]) -> Hold | None:
        """Wait until a request for these rows fits. ``None``: it will not, and is not to be sent."""
        if self._stopped or self.used_up is not None:
            return None
        wish = _Wish(stage, items)
        line = self._waiting.setdefault(wish.name, deque())
        if not line and (hold := self._take(wish)) is not None:
            return hold
        wish.future = asyncio.get_running_loop().create_future()
        line.append(wish)
        if not self._held:
            self._admit()
        return await wish.future

    def change(self, limit: float) -> None:
        """Set another limit, in US dollars."""
        self._limit = limit
        self._admit()

    @property
    def is_waited_for(self) -> bool:
        """Whether a request waits for room."""
        return any(self._waiting.values())

    def stop(self) -> None:
        """Let nothing go any more."""
        self._stopped = True
        self._release()

    def _take(self, wish: _Wish) -> Hold | None:
        seen = self._seen.setdefault(wish.name, _Seen())
        if seen.held and not seen.ended and not wish.in_batch:
            return None
        amount, left = wish.cost(seen), self._limit - self._spent() - self._reserved
        if not seen.ended and left > 0 and not wish.in_batch:
            amount = min(amount, left)  # nobody knows: it goes, and no other until it has told
        if amount > left:
            return None
        seen.held += 1
        self._held += 1
        self._reserved += amount
        return Hold(self, wish, amount)

    def _end(self, wish: _Wish, amount: float, metrics: Sequence[RequestMetrics]) -> None:
        seen = self._seen[wish.name]
        seen.held -= 1
        seen.learn(metrics, wish.tokens)
        self._held -= 1
        self._reserved = self._reserved - amount if self._held else 0.0  # no rest of rounding stays
        self._admit()

    def _admit(self) -> None:
        """Let those go that fit now, of each stage in turn. If none can, and none is in flight, the budget is used up.

        Where the first of a line does not fit, those behind it are not looked at: a line may be thousands long, and it
        is looked at after each answer.
        """
        first: list[_Wish] = []
        for line in self._waiting.values():
            while line:
                wish = line[0]
                if wish.future is not None and not wish.future.done():
                    if (hold := self._take(wish)) is None:
                        first.append(wish)
                        break
                    wish.future.set_result(hold)
                line.popleft()
        if first and not self._held:
            least = min(wish.cost(self._seen[wish.name]) for wish in first)
            self.used_up = (
                f"guards.max_cost_usd is {self._limit:g}, the run has cost ${self._spent():.4f}, and the next answer "
                f"may cost ${least:.4f}"
            )
            self._release()

    def _release(self) -> None:
        lines, self._waiting = self._waiting, {}
        for line in lines.values():
            for wish in line:
                if wish.future is not None and not wish.future.done():
                    wish.future.set_result(None)


def _prompt_tokens(request: Any) -> int | None:
    """A prompt's tokens, estimated; ``None`` for what has no text, such as a clip."""
    if isinstance(request, Request):
        return estimate_tokens(request)
    return text_tokens(request) if isinstance(request, str) else None


def _output_limit(request: Any) -> int | None:
    """The most tokens that an answer may have; ``None``: not set. A text to embed has no answer in tokens."""
    if isinstance(request, Request):
        return request.output_tokens
    return 0 if isinstance(request, str) else None
