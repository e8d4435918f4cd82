"""What the server's headers allow: gates that close when it says that nothing is left.

A gate stands beside the user's own limits and can only make the rate lower. It holds the latest word of the server and
not the lowest: a server that refills continuously tells a little every time, and counting every request down from an
old word would stop a rate that the server is content with.
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

# Most self-hosted servers send no such headers: after so many replies without any, only every so-many-th is looked at.
PATIENCE = 32
LOOK_EVERY = 256

DAY_SCOPE_FROM_S = 600.0
MINUTE_S = 60.0

# A word so fresh is not replaced unless something has run out: counting down from it says the same, at a tenth of the
# cost.
FRESH_S = 0.05

# How far a reset may lie from "limit / 60 s refills what is missing" for the server to count as a token bucket.
REFILL_TOLERANCE = 0.05


class Size(NamedTuple):
    """One request in every unit that a header may count."""

    requests: float
    tokens: float
    input: float
    output: float


@dataclass(slots=True)
class _Gate:
    """One quota in the server's last word; ``refill`` in units per second, times on the event loop's clock."""

    unit: str
    left: float
    seen_at: float
    reset_at: float
    refill: float

    def held_until(self, need: float, now: float) -> float:
        left = self.left + self.refill * (now - self.seen_at)
        if left >= need:
            return 0.0
        return min(self.reset_at, now + (need - left) / self.refill) if self.refill else self.reset_at


class Gates:
    """The quotas that the server told of. ``active`` says whether there is any to check."""

    __slots__ = ("_day", "_families", "_gates", "_limits", "_seen_at", "_silent", "_skip", "_wall", "active")

    def __init__(self, limits: Limits, day: DayCount | None, wall: Callable[[], float]) -> None:
        self._limits = limits
        self._day = day
        self._wall = wall
        self._gates: dict[str, _Gate] = {}  # by the name of the remaining-header
        self._families: tuple[Family, ...] = FAMILIES
        self._seen_at = -FRESH_S
        self._silent = 0
        self._skip = 0
        self.active = False

    def observe(self, header: Header, clock: Callable[[], float]) -> bool:
        """Read one reply's headers; ``clock`` is the event loop's. Returns whether anything was there."""
        if self._skip:
            self._skip -= 1
            return False
        now = clock()
        if now - self._seen_at < FRESH_S and self._nothing_new(header):
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

    def _nothing_new(self, header: Header) -> bool:
        for gate in self._gates.values():
            if gate.left < 1:
                return False
        return "0" not in [header(family.remaining) for family in self._families]

    def _gate(self, seen: Reading, now: float, wall: float) -> _Gate:
        reset_s, refill = seen.reset_s, 0.0
        if self._is_day(seen):
            if self._day is not None:
                self._day.pull(seen.unit, seen.remaining)
            if reset_s is None:
                reset_s = DAY_S - wall % DAY_S
        else:
            if reset_s is None:
                reset_s = MINUTE_S
            elif self._limits.header_bucket_scope == "minute":
                reset_s = min(reset_s, MINUTE_S)
            refill = _refill(seen, reset_s)
        return _Gate(seen.unit, seen.remaining, now, now + reset_s, refill)

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

    def held_until(self, size: Size, now: float) -> float:
        """Loop time until which a request of this size must wait; 0 where no gate holds it."""
        until = 0.0
        for name, gate in list(self._gates.items()):
            if now >= gate.reset_at:
                del self._gates[name]
                self.active = bool(self._gates)
            else:
                until = max(until, gate.held_until(getattr(size, gate.unit), now))
        return until

    def take(self, size: Size, sign: int = 1) -> None:
        """Count one request down from the server's last word; ``sign`` -1 counts it back."""
        for gate in self._gates.values():
            gate.left -= sign * getattr(size, gate.unit)


def _refill(seen: Reading, reset_s: float) -> float:
    """Units per second that a token bucket refills, 0 for a server that resets at once.

    A bucket's reset is the time until it is full, so that what is missing over the reset is its rate, a sixtieth of the
    limit. With nothing left the two kinds look the same, and the whole reset is waited for.
    """
    if seen.limit is None or not seen.remaining or not reset_s:
        return 0.0
    rate = seen.limit / MINUTE_S
    return rate if abs((seen.limit - seen.remaining) / reset_s - rate) <= REFILL_TOLERANCE * rate else 0.0
