"""One quota per minute: an aiolimiter bucket, and an account of what was drawn from it and not yet spent."""

from __future__ import annotations

import asyncio
import math

from aiolimiter import AsyncLimiter

__all__ = ["PIECE_S", "Bucket", "steady_rate"]

# Capacity is drawn from aiolimiter in pieces: what accrues in this time. One timer then serves all requests of a piece.
# Shorter pieces cost CPU, because the process sleeps between two pieces and a wake-up takes 0.1 ms and more. At 30,000
# requests a minute, a request took a third more CPU with pieces of 20 ms, and twice as much with 10 ms.
PIECE_S = 0.05

# A server that counts a strict sliding minute sees requests with the network's jitter added: two that left 60.1 s
# apart may arrive 60 s apart. Half a percent of a minute absorbs 300 ms of it.
PACE = 0.995

# Returned capacity expires after a minute: the server's window has then forgotten the request that it belonged to.
CREDIT_LIFE_S = 60.0


def steady_rate(per_minute: float, burst: float | None = None) -> float:
    """Units a second that a :class:`Bucket` lets through in the long run."""
    if burst is not None:
        return PACE * per_minute / 60
    piece, capacity = _sizes(per_minute)
    return PACE * (per_minute + 1 - (capacity + piece - 1)) / 60


def _sizes(per_minute: float) -> tuple[float, float]:
    """The size of a piece, and the bucket's capacity.

    The capacity is larger than a piece by one piece's accrual: what accrues while a timer is late is then not lost.
    """
    accrual = per_minute / 60 * PIECE_S
    piece = float(max(1, math.floor(accrual)))
    return piece, piece + accrual


class Bucket:
    """A smooth rate of ``per_minute`` units a minute, with refunds.

    aiolimiter keeps the rate. It has neither refunds nor debts, and an item larger than its capacity never fits. So an
    account stands beside it: ``credit`` is what was drawn from the limiter and not yet spent, plus what was returned.
    A negative ``credit`` is a debt, which the next draws pay. It stays within one minute's quota in both directions,
    because a server's window has forgotten everything older.

    Without a ``burst``, no 60 s window sees more than ``per_minute`` units, jitter included: the rate is lowered by
    what the bucket can let through at once. Only an item larger than the capacity may overshoot a strict window, by its
    size: it is gathered in pieces, and counts when they are drawn.
    """

    __slots__ = (
        "_capacity",
        "_empty_at",
        "_lead_s",
        "_limiter",
        "_loop",
        "_piece",
        "_rate",
        "_touched_at",
        "credit",
        "quota",
    )

    def __init__(self, per_minute: float, burst: float | None = None) -> None:
        self.credit = 0.0
        self._touched_at = 0.0
        self._empty_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._measure(per_minute, burst)

    def _measure(self, per_minute: float, burst: float | None) -> None:
        self.quota = per_minute  # units per minute as declared
        self._piece, capacity = _sizes(per_minute)
        self._rate = steady_rate(per_minute, burst)
        self._capacity = capacity if burst is None else max(capacity, burst)
        # How long before the limiter is empty it has room for a whole piece again.
        self._lead_s = (self._capacity - self._piece) / self._rate

    def change(self, per_minute: float, burst: float | None = None) -> None:
        """Set another rate. It begins with nothing to draw: a burst that was had is not had again."""
        self._measure(per_minute, burst)
        self.give(0.0)
        if self._loop is not None:
            self._move_to(self._loop)
            _take(self._limiter, self._capacity)
            self._empty_at = self._loop.time() + self._capacity / self._rate

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start over on another event loop, where an AsyncLimiter cannot follow. The account stays."""
        self._loop = loop
        self._limiter = AsyncLimiter(self._capacity, self._capacity / self._rate)
        self._empty_at = 0.0

    @property
    def ready_at(self) -> float:
        """The event loop's time at which the next piece can be drawn."""
        return self._empty_at - self._lead_s

    def covers(self, amount: float) -> bool:
        """Whether ``credit`` holds ``amount`` units, after drawing what it lacks. The caller subtracts them.

        Where the limiter has not enough, the pieces that were drawn stay in ``credit``. So asking again at each
        ``ready_at`` gathers any amount.
        """
        if self.credit > self._piece and asyncio.get_running_loop().time() - self._touched_at > CREDIT_LIFE_S:
            self.credit = self._piece
        return self.credit >= amount or self._draw(amount)

    def _draw(self, amount: float) -> bool:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        limiter, now = self._limiter, loop.time()
        while self.credit < amount:
            draw, missing = self._piece, amount - self.credit
            if limiter.has_capacity(draw):
                self.credit += draw
            elif missing < draw and limiter.has_capacity(missing):
                draw = missing  # the end of a burst, less than a piece
                self.credit = amount
            else:
                return False
            _take(limiter, draw)
            self._touched_at = now
            # AsyncLimiter tells only its own waiters when it will have room. This follows its level from outside.
            self._empty_at = max(self._empty_at, now) + draw / self._rate
        return True

    def give(self, amount: float) -> None:
        """Return ``amount`` units to the account. A negative amount is booked as a debt."""
        self.credit = min(max(self.credit + amount, -self.quota), self.quota)
        if amount > 0:
            self._touched_at = asyncio.get_running_loop().time()


def _take(limiter: AsyncLimiter, amount: float) -> None:
    """Take capacity that ``has_capacity`` has just confirmed.

    ``acquire`` is a coroutine. The callers here are no coroutines (a timer's callback, ``try_acquire``) and cannot
    await it, and a task for each piece would cost more than the piece. With room in the bucket ``acquire`` never
    suspends: one ``send`` runs it to its end. Waiting is the line's business (``LocalRateLimiter``): aiolimiter would
    serve small requests before large ones.
    """
    try:
        limiter.acquire(amount).send(None)
    except StopIteration:
        return
    raise RuntimeError(f"aiolimiter had room for {amount} and yet waits")
