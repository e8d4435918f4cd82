"""Quotas per UTC day, counted on the wall clock.

A provider resets them at midnight, so they are counters and no buckets: a day's quota may be used up by noon.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from infermesh.limits.base import DayUsage

__all__ = ["DAY_S", "EPOCH", "DayCount"]

DAY_S = 86400.0
EPOCH = dt.date(1970, 1, 1)


class DayCount:
    """Counts the requests and tokens of the current UTC day. A quota of ``None`` never runs out."""

    __slots__ = ("_day", "_requests", "_rpd", "_tokens", "_tpd", "_wall")

    def __init__(self, rpd: float | None, tpd: float | None, wall: Callable[[], float]) -> None:
        self._rpd = float("inf") if rpd is None else rpd
        self._tpd = float("inf") if tpd is None else tpd
        self._wall = wall
        self._day = self.today()
        self._requests = 0.0
        self._tokens = 0.0

    def change(self, rpd: float | None, tpd: float | None) -> None:
        """Set other quotas. What was counted today stays counted."""
        self._rpd = float("inf") if rpd is None else rpd
        self._tpd = float("inf") if tpd is None else tpd

    def today(self) -> int:
        """Days since 1970-01-01, UTC."""
        return int(self._wall() // DAY_S)

    def _roll(self) -> int:
        today = self.today()
        if today > self._day:  # a clock that is set back must not give the day's quota a second time
            self._day, self._requests, self._tokens = today, 0.0, 0.0
        return self._day

    def held_for(self, tokens: float) -> float:
        """Seconds until a request of ``tokens`` fits: 0, or the time to midnight UTC.

        A request larger than the whole quota counts as the whole quota, so that it can go out on a day of its own.
        """
        if self.lacks(tokens) is None:
            return 0.0
        return self._until_midnight()

    def _until_midnight(self) -> float:
        return (self._day + 1) * DAY_S - self._wall()

    def lacks(self, tokens: float) -> str | None:
        """Which quota, ``rpd`` or ``tpd``, has no room today for a request of ``tokens``. ``None``: it fits."""
        self._roll()
        if self._requests + min(1.0, self._rpd) > self._rpd:
            return "rpd"
        return "tpd" if self._tokens + min(tokens, self._tpd) > self._tpd else None

    def take(self, tokens: float) -> int:
        """Count one request. Returns its day, for :meth:`give`."""
        self._requests += 1
        self._tokens += tokens
        return self._day

    def give(self, day: int, requests: float, tokens: float) -> None:
        """Return what was counted on ``day`` and not used. Negative amounts are overuse. A past day is left alone."""
        if day == self._roll():
            self._requests = max(self._requests - requests, 0.0)
            self._tokens = max(self._tokens - tokens, 0.0)

    def pull(self, unit: str, remaining: float) -> None:
        """Raise the count where the server says that less is left: other clients use the same account."""
        self._roll()
        if unit == "requests" and self._rpd != float("inf"):
            self._requests = max(self._requests, self._rpd - remaining)
        elif unit == "tokens" and self._tpd != float("inf"):
            self._tokens = max(self._tokens, self._tpd - remaining)

    @property
    def used(self) -> DayUsage:
        """Today's count. A count of another day is ignored when it is set."""
        day = self._roll()
        return DayUsage(EPOCH + dt.timedelta(days=day), self._requests, self._tokens)

    @used.setter
    def used(self, usage: DayUsage) -> None:
        day = self._roll()
        if (usage.date - EPOCH).days == day:
            self._requests, self._tokens = usage.requests, usage.tokens
