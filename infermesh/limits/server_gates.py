"""What the server's rate-limit headers allow.

A gate is one quota as the server last described it. It stands beside the user's own limits and can only lower the rate.

Two choices need a reason. A gate goes by the newest headers and not by the lowest count: a server that refills
continuously always reports a low number, and counting every request down from an old one would stop a rate that the
server accepts. And requests sent since those headers are counted down (``take``), since the server had not seen them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from infermesh.limits.base import Header
from infermesh.limits.day import DAY_S, DayCount
from infermesh.limits.headers import FAMILIES, Family, Reading, read
from infermesh.types import Limits

__all__ = ["Gates", "Size"]

# Most self-hosted servers send no such headers. After PATIENCE replies without any, one in LOOK_EVERY is looked at.
PATIENCE = 32
LOOK_EVERY = 256

# With the scope "auto", a quota whose reset is further away than this is a day's.
DAY_SCOPE_FROM_S = 600.0
MINUTE_S = 60.0

# Headers are not read again for so long, unless a quota has run out: counting down from the last ones gives the same
# number at a tenth of the cost.
FRESH_S = 0.05

# How far a reset may lie from "limit / 60 s refills what is missing" for the server to count as a token bucket.
REFILL_TOLERANCE = 0.05


class Size(NamedTuple):
    """The size of one request, in every unit that a header may count."""

    requests: float
    tokens: float
    input: float
    output: float


@dataclass(slots=True)
class _Gate:
    """One quota as the server last described it. ``refill`` is in units per second, times are the event loop's.

    ``asked``: the server told when it resets, or it is a day's, and the user has declared no such quota a day.
    """

    unit: str
    left: float
    seen_at: float
    reset_at: float
    refill: float
    asked: bool

    def held_until(self, need: float, now: float) -> float:
        left = self.left + self.refill * (now - self.seen_at)
        if left >= need:
            return 0.0
        return min(self.reset_at, now + (need - left) / self.refill) if self.refill else self.reset_at


class Gates:
    """All quotas that the server has described. ``active``: whether there is one to check."""

    __slots__ = ("_day", "_families", "_gates", "_limits", "_seen_at", "_share", "_silent", "_skip", "_wall", "active")

    def __init__(self, limits: Limits, day: DayCount | None, wall: Callable[[], float], share: float = 1.0) -> None:
        self._share = share  # of what is left, where several processes use the account and each sees all of it
        self._limits = limits
        self._day = day
        self._wall = wall
        self._gates: dict[str, _Gate] = {}  # by the name of the remaining-header
        self._families: tuple[Family, ...] = FAMILIES
        self._seen_at = -FRESH_S
        self._silent = 0
        self._skip = 0
        self.active = False

    def change(self, limits: Limits) -> None:
        """Go by other limits of the user's."""
        self._limits = limits

    def observe(self, header: Header, clock: Callable[[], float]) -> bool:
        """Read one reply's headers; ``clock`` gives the event loop's time. Returns whether there were any."""
        if self._skip:
            self._skip -= 1
            return False
        now = clock()
        if now - self._seen_at < FRESH_S and not self._ran_out(header):
            return False
        wall = self._wall()
        found = read(header, self._families, wall)
        if not found:
            self._silent += 1
            if self._silent >= PATIENCE:
                self._skip, self._families = LOOK_EVERY, FAMILIES
            return False
        self._silent = 0
        if self._families is FAMILIES:
            self._families = tuple(family for family, _ in found)
        self._seen_at = now
        for family, reading in found:
            self._gates[family.remaining] = self._gate(reading, now, wall)
        self.active = True
        return True

    def _ran_out(self, header: Header) -> bool:
        """Whether nothing is left of a quota, by our count or by these headers."""
        for gate in self._gates.values():
            if gate.left < 1:
                return True
        return "0" in [header(family.remaining) for family in self._families]

    def _gate(self, seen: Reading, now: float, wall: float) -> _Gate:
        reset_s, refill, asked = seen.reset_s, 0.0, seen.reset_s is not None
        if self._is_day(seen):
            if self._day is not None:
                self._day.pull(seen.unit, seen.remaining)
            asked = (self._limits.rpd if seen.unit == "requests" else self._limits.tpd) is None
            if reset_s is None:
                reset_s = DAY_S - wall % DAY_S
        else:
            if reset_s is None:
                reset_s = MINUTE_S
            elif self._limits.header_bucket_scope == "minute":
                reset_s = min(reset_s, MINUTE_S)
            refill = _refill(seen, reset_s)
        return _Gate(seen.unit, seen.remaining * self._share, now, now + reset_s, refill * self._share, asked)

    def _is_day(self, seen: Reading) -> bool:
        limits = self._limits
        if limits.header_bucket_scope != "auto":
            return limits.header_bucket_scope == "day"
        if seen.reset_s is not None and seen.reset_s > DAY_SCOPE_FROM_S:
            return True
        if seen.limit is None or seen.unit not in ("requests", "tokens"):
            return False
        minute, day = (limits.rpm, limits.rpd) if seen.unit == "requests" else (limits.tpm, limits.tpd)
        return seen.limit == day != minute

    def held_until(self, size: Size, now: float, *, asked: bool = False) -> float:
        """The event loop's time until which a request of this size must wait; 0 if no gate holds it.

        With ``asked``, only what the server has asked for counts: neither a quota a day that the user has declared, nor
        a minute that is waited for because the server did not say how long.
        """
        until = 0.0
        for name, gate in list(self._gates.items()):
            if now >= gate.reset_at:
                del self._gates[name]
                self.active = bool(self._gates)
            elif gate.asked or not asked:
                until = max(until, gate.held_until(getattr(size, gate.unit), now))
        return until

    def take(self, size: Size, sign: int = 1) -> None:
        """Count down one request that the server has not seen yet. ``sign`` -1 undoes it."""
        for gate in self._gates.values():
            gate.left -= sign * getattr(size, gate.unit)


def _refill(seen: Reading, reset_s: float) -> float:
    """Units per second that the server's quota refills; 0 for a server that resets the whole quota at once.

    The headers do not say which kind it is. For a token bucket the reset is the time until it is full: what is missing,
    divided by the reset, is its rate, and that is a sixtieth of the limit. With nothing left both kinds look the same,
    so the whole reset is waited for.
    """
    if seen.limit is None or not seen.remaining or not reset_s:
        return 0.0
    rate = seen.limit / MINUTE_S
    return rate if abs((seen.limit - seen.remaining) / reset_s - rate) <= REFILL_TOLERANCE * rate else 0.0
