"""One quota per minute, as an aiolimiter bucket with an account beside it."""

from __future__ import annotations

import asyncio
import math

from aiolimiter import AsyncLimiter

__all__ = ["Bucket", "steady_rate"]

# Capacity is drawn in pieces of what accrues in this time, so that one timer serves all requests of the piece: at
# 30,000 requests a minute 20 timers a second instead of 500, each of which would cost more than the request's
# bookkeeping.
PIECE_S = 0.05

# A server that counts a strict sliding minute sees requests with the network's jitter added: two that left 60.1 s
# apart may arrive 60 s apart. Half a percent of a minute absorbs 300 ms of it.
PACE = 0.995

# Returned capacity that nobody claims for this long has left the server's window, and is worth nothing any more.
CREDIT_LIFE_S = 60.0


def steady_rate(per_minute: float, burst: float | None = None) -> float:
    """Units a second that a :class:`Bucket` lets through in the long run."""
    if burst is not None:
        return PACE * per_minute / 60
    piece, capacity = _sizes(per_minute)
    return PACE * (per_minute + 1 - (capacity + piece - 1)) / 60


def _sizes(per_minute: float) -> tuple[float, float]:
    """What is drawn at once, and the capacity: room for one more piece's accrual, or a late timer would cost rate."""
    accrual = per_minute / 60 * PIECE_S
    piece = float(max(1, math.floor(accrual)))
    return piece, piece + accrual


class Bucket:
    """A smooth rate of ``per_minute`` units a minute, with refunds.

    ``credit`` is capacity drawn from the limiter and not yet spent, plus what was returned; negative, it is a debt
    that the next draws pay. It never leaves ± one minute's quota: a server's window has forgotten everything older.

    Without a ``burst``, no 60 s window sees more than ``per_minute`` units, jitter included: the rate is lowered by
    what the bucket can let through at once. (The reservation of a single item above that size counts when it is drawn,
    and such an item may overshoot a strict window by its own size.)
    """

    __slots__ = ("_capacity", "_limiter", "_piece", "_quota", "_rate", "_touched_at", "credit")

    def __init__(self, per_minute: float, burst: float | None = None) -> None:
        self._quota = per_minute
        self._piece, capacity = _sizes(per_minute)
        self._rate = steady_rate(per_minute, burst)
        self._capacity = capacity if burst is None else max(capacity, burst)
        self.credit = 0.0
        self._touched_at = 0.0
        self.rebind()

    def rebind(self) -> None:
        """Start over on another event loop; the account stays."""
        self._limiter = AsyncLimiter(self._capacity, self._capacity / self._rate)

    @property
    def quota(self) -> float:
        """Units per minute as declared."""
        return self._quota

    def covers(self, amount: float) -> bool:
        """Whether ``amount`` units are there; the caller takes them from ``credit``."""
        if self.credit > self._piece and asyncio.get_running_loop().time() - self._touched_at > CREDIT_LIFE_S:
            self.credit = self._piece
        return self.credit >= amount

    async def fill(self, amount: float) -> None:
        """Wait until ``amount`` units are there. Cancelled, it leaves what it drew in the account."""
        time = asyncio.get_running_loop().time
        while not self.covers(amount):
            missing = amount - self.credit
            draw = self._piece
            if missing < draw and not self._limiter.has_capacity(draw) and self._limiter.has_capacity(missing):
                draw = missing  # the rest of a burst, which is no whole piece
            await self._limiter.acquire(draw)
            self.credit += draw
            self._touched_at = time()

    def give(self, amount: float) -> None:
        """Return ``amount`` units; negative, book them as a debt."""
        self.credit = min(max(self.credit + amount, -self._quota), self._quota)
        if amount > 0:
            self._touched_at = asyncio.get_running_loop().time()
