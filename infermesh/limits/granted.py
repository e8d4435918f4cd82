"""Quotas of a worker: credit that the hub of the run has dealt to it, in place of a rate or a count of its own."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from infermesh.limits.bucket import Bucket
from infermesh.limits.day import DayCount

__all__ = ["LIFE_S", "GrantedBucket", "GrantedDay"]

_TURN_S = 0.2  # credit that was there at one turn and is unused at the next lapses
LIFE_S = 2 * _TURN_S  # so this is the longest that it lasts
_LEAST = 8.0  # requests to ask for, where more than that wait and nothing is known of their pace
_LOOK_S = 0.25  # the line looks again by itself after so long; credit that comes serves it at once


class GrantedBucket(Bucket):
    """A :class:`~infermesh.limits.bucket.Bucket` that draws nothing: :meth:`grant` fills it."""

    __slots__ = ("_asked", "_at_turn", "_granted", "_mean", "_most", "_turn_at")

    def __init__(self, per_minute: float, burst: float | None = None) -> None:
        super().__init__(per_minute, burst)
        self._asked = 0.0  # credit when it was last asked for
        self._granted = 0.0  # since the last turn
        self._at_turn = 0.0
        self._turn_at = 0.0
        self._most = self._mean = 0.0  # units used between two asks

    @property
    def ready_at(self) -> float:
        return asyncio.get_running_loop().time() + _LOOK_S

    def covers(self, amount: float) -> bool:
        return self.credit >= amount

    def grant(self, amount: float) -> None:
        """Add credit that was dealt."""
        self.credit += amount
        self._asked += amount
        self._granted += amount

    def ask(self, waiting: float, head: float) -> float:
        """How much to ask for now; to be called at each exchange, after :meth:`lapse`.

        Twice what the busiest of the last exchanges saw used, as far as that much waits; half as much again as they
        used on average, where nothing waits, so that the next requests need not.

        Parameters
        ----------
        waiting
            What the requests in the line need.
        head
            What the first of them needs.
        """
        used = max(self._asked - self.credit, 0.0)
        self._most = max(used, 0.9 * self._most)
        self._mean += (used - self._mean) / 4
        wanted = min(waiting, max(head, _LEAST, 2 * self._most)) if waiting else math.floor(1.5 * self._mean)
        self._asked = self.credit
        return max(wanted - self.credit, 0.0)

    def lapse(self, now: float, head: float) -> float:
        """Give up credit that has been here for too long, and return how much; ``head`` is kept, which is gathered."""
        if now - self._turn_at < _TURN_S:
            return 0.0
        used = self._at_turn + self._granted - self.credit
        old = min(max(self._at_turn - used, 0.0), max(self.credit - head, 0.0))
        self.credit -= old
        self._asked -= old
        self._at_turn, self._granted, self._turn_at = max(self.credit, 0.0), 0.0, now
        return old


class GrantedDay(DayCount):
    """A day's quotas, of which the hub deals credit. A quota is used up once the hub says so.

    Attributes
    ----------
    used_up
        The quota, ``rpd`` or ``tpd``, of which the hub has nothing left today; ``None``: it deals more.
    """

    __slots__ = ("_calls", "_idle_since", "_taken", "_words", "used_up")

    def __init__(self, rpd: float | None, tpd: float | None, wall: Callable[[], float] = time.time) -> None:
        super().__init__(rpd, tpd, wall)
        self._calls = 0.0 if rpd is not None else math.inf
        self._words = 0.0 if tpd is not None else math.inf
        self._idle_since: float | None = None
        self._taken = [0.0, 0.0]  # since it was last asked for more
        self.used_up: str | None = None

    def grant(self, day: int, requests: float, tokens: float) -> None:
        """Add credit of a day."""
        if day > self._day:
            self._roll()
        if day == self._day:
            self._calls += requests
            self._words += tokens

    def _roll(self) -> int:
        before = self._day
        day = super()._roll()
        if day > before:
            self._calls = 0.0 if self._rpd != math.inf else math.inf
            self._words = 0.0 if self._tpd != math.inf else math.inf
            self.used_up = None
        return day

    def lacks(self, tokens: float) -> str | None:
        self._roll()
        if self._calls < min(1.0, self._rpd):
            return "rpd"
        return "tpd" if self._words < min(tokens, self._tpd) else None

    def held_for(self, tokens: float) -> float:
        """Seconds to midnight UTC where the hub has nothing left; a moment, where it only has to be asked."""
        if self.lacks(tokens) is None:
            return 0.0
        if self.used_up is None:
            return _LOOK_S
        return super()._until_midnight()

    def take(self, tokens: float) -> int:
        self._calls -= 1
        self._words -= tokens
        self._taken[0] += 1
        self._taken[1] += tokens
        return super().take(tokens)

    def give(self, day: int, requests: float, tokens: float) -> None:
        if day == self._roll():
            self._calls += requests
            self._words += tokens
        super().give(day, requests, tokens)

    def pull(self, unit: str, remaining: float) -> None:
        """What the server says is left is the hub's to count: it hears the same headers."""

    def ask(self, requests: float, tokens: float) -> tuple[float, float]:
        """How much to ask for now, where so many requests wait and need so many tokens.

        That, and twice what was taken since the last time, so that the next requests need not wait.
        """
        self._roll()
        taken, self._taken = self._taken, [0.0, 0.0]
        calls = 0.0 if self._calls == math.inf else max(requests + 2 * taken[0] - self._calls, 0.0)
        words = 0.0 if self._words == math.inf else max(tokens + 2 * taken[1] - self._words, 0.0)
        return calls, words

    def back(self, now: float, *, idle: bool, after_s: float = 1.0) -> tuple[int, float, float] | None:
        """Hand credit back that nobody has needed for a second: its day, requests and tokens. ``None``: none."""
        if not idle:
            self._idle_since = None
            return None
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < after_s:
            return None
        day = self._roll()
        calls = 0.0 if self._calls == math.inf else max(self._calls, 0.0)
        words = 0.0 if self._words == math.inf else max(self._words, 0.0)
        if not calls and not words:
            return None
        self._calls -= calls
        self._words -= words
        return day, calls, words
