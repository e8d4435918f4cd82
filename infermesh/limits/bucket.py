"""One quota per minute, as an aiolimiter bucket with an account beside it."""

from __future__ import annotations

import asyncio
import math

from aiolimiter import AsyncLimiter

__all__ = ["PIECE_S", "Bucket", "steady_rate"]

# Capacity is drawn in pieces of what accrues in this time, and the line's timer serves all requests of a piece. Shorter
# pieces are dear: under a quota the process sleeps between them, and waking it up costs 0.1 ms and more. At 30,000
# requests a minute a request of a batch took a third more CPU with pieces of 20 ms, and twice as much with 10 ms.
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
        self.quota = per_minute  # units per minute as declared
        self._piece, capacity = _sizes(per_minute)
        self._rate = steady_rate(per_minute, burst)
        self._capacity = capacity if burst is None else max(capacity, burst)
        # The limiter has room for a whole piece again this long before it has leaked empty.
        self._lead_s = (self._capacity - self._piece) / self._rate
        self.credit = 0.0
        self._touched_at = 0.0
        self._empty_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start over on another event loop; the account stays."""
        self._loop = loop
        self._limiter = AsyncLimiter(self._capacity, self._capacity / self._rate)
        self._empty_at = 0.0

    @property
    def ready_at(self) -> float:
        """Loop time at which the next piece can be drawn."""
        return self._empty_at - self._lead_s

    def covers(self, amount: float) -> bool:
        """Whether ``amount`` units are there; the caller takes them from ``credit``.

        Draws what they lack. Where that is not enough the pieces stay in the account, so that asking again at each
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
                draw = missing  # the rest of a burst, which is no whole piece
                self.credit = amount
            else:
                return False
            _take(limiter, draw)
            self._touched_at = now
            # The limiter knows what it holds, and only its own waiters hear when it will hold more.
            self._empty_at = max(self._empty_at, now) + draw / self._rate
        return True

    def give(self, amount: float) -> None:
        """Return ``amount`` units; negative, book them as a debt."""
        self.credit = min(max(self.credit + amount, -self.quota), self.quota)
        if amount > 0:
            self._touched_at = asyncio.get_running_loop().time()


def _take(limiter: AsyncLimiter, amount: float) -> None:
    """Take capacity that is there: the coroutine then ends in its first step, and a task for it is spared."""
    try:
        limiter.acquire(amount).send(None)
    except StopIteration:
        return
    raise RuntimeError(f"aiolimiter had room for {amount} and yet waits")
