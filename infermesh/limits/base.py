"""The interface through which dispatch asks for permission to send."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["DayUsage", "Grant", "Header", "RateLimiter"]

Header = Callable[[str], str | None]


class DayUsage(NamedTuple):
    """What one UTC day has used of its quotas; kept by the caller, it restores the count after a restart."""

    date: dt.date
    requests: float
    tokens: float


class Grant(Protocol):
    """Permission to send one request, as the quotas reserved it. The first call ends it; later ones do nothing."""

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Book what the request really used: the unused part returns, overuse is paid by the next requests."""
        ...

    def refund(self) -> None:
        """Return the whole of it: the request never went out, or was turned away."""
        ...


class RateLimiter(Protocol):
    """Hands out permissions to send. A process-local one stands behind it today, a distributed one may tomorrow."""

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
        """Permission for one request of this size, if it may go out at once and nobody stands in line."""
        ...

    async def acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant:
        """Wait until one request of this size may go out.

        ``prompt_tokens`` is the caller's estimate; ``output_tokens`` the most the answer may have, ``None`` where the
        request sets no maximum.
        """
        ...

    def observe(self, header: Header) -> None:
        """Read the rate-limit headers of a reply."""
        ...

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long. Overlapping pauses do not add up: the latest end counts."""
        ...

    @property
    def counts_tokens(self) -> bool:
        """Whether ``prompt_tokens`` matters; if not, the caller need not estimate it."""
        ...

    @property
    def paused_for(self) -> float:
        """Seconds until requests may go out again; 0 where nothing but the steady rate holds them."""
        ...

    @property
    def ready_at(self) -> float:
        """The event loop's time at which ``paused_for`` ends; 0 where nothing holds requests."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in line."""
        ...
