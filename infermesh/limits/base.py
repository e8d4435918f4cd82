"""The interface through which dispatch asks for permission to send."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["ENDLESS", "DayUsage", "Grant", "Header", "HeldError", "Patience", "RateLimiter"]

Header = Callable[[str], str | None]


class DayUsage(NamedTuple):
    """What one UTC day has used of its quotas. A caller that stores it can restore the count after a restart."""

    date: dt.date
    requests: float
    tokens: float


class Patience(NamedTuple):
    """How many seconds a request lets itself be held back by anything but the steady rate of its quotas.

    ``held_s`` is for whatever holds it: a pause, the server's headers, a day's quota. ``asked_s`` is for the server's
    headers alone, where they do not describe a quota a day that the user has declared.
    """

    held_s: float = math.inf
    asked_s: float = math.inf


ENDLESS = Patience()


class HeldError(Exception):
    """A request is held back for longer than its :class:`Patience`, and may go elsewhere.

    ``seconds`` is how long; ``asked`` whether the server's headers ask for more than the request's ``asked_s``.
    """

    def __init__(self, seconds: float, *, asked: bool) -> None:
        super().__init__(f"held back for {seconds:g} s")
        self.seconds = seconds
        self.asked = asked


class Grant(Protocol):
    """Permission to send one request: what the quotas have reserved for it.

    Call one of the two methods, once the request has ended. Further calls do nothing.
    """

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Book the tokens that were really used. Unused ones return to the quota, the next requests pay for overuse."""
        ...

    def refund(self) -> None:
        """Return the whole reservation, because the request never went out or the server turned it away."""
        ...


class RateLimiter(Protocol):
    """Gives permission to send requests.

    Dispatch knows no more than this protocol, so that a limiter that several processes share can replace the local one.
    """

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
        """Return a grant if the request may go out now and no other waits; else ``None``. Takes the same arguments."""
        ...

    async def acquire(
        self, prompt_tokens: int = 0, output_tokens: int | None = None, patience: Patience = ENDLESS
    ) -> Grant:
        """Wait until a request of this size may go out.

        Parameters
        ----------
        prompt_tokens
            The caller's estimate.
        output_tokens
            The most that the answer may have. ``None``: the request sets no maximum.
        patience
            How long it may be held back, now or once it waits.

        Raises
        ------
        HeldError
            It would be held back for longer.
        """
        ...

    def observe(self, header: Header) -> None:
        """Read the rate-limit headers of a reply."""
        ...

    def pause(self, seconds: float) -> None:
        """Let no request through for ``seconds``. Overlapping pauses do not add up: the latest end counts."""
        ...

    @property
    def counts_tokens(self) -> bool:
        """Whether ``prompt_tokens`` matters; if not, the caller need not estimate it."""
        ...

    @property
    def paused_for(self) -> float:
        """Seconds until a pause, the server or a day's quota lets requests go; 0 if only the steady rate holds them."""
        ...

    @property
    def ready_at(self) -> float:
        """The event loop's time at which ``paused_for`` ends; 0 if it is 0."""
        ...

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        ...

    @property
    def binding(self) -> str | None:
        """Which quota the request at the front waits for, such as ``rpm``; ``None``: none of the declared ones."""
        ...
