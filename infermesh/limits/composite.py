"""Limiters made of others: none at all, and several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from infermesh.limits.base import Grant, Header, RateLimiter
from infermesh.limits.local import LocalRateLimiter
from infermesh.types import Limits

__all__ = ["CompositeLimiter", "NullLimiter", "make_limiter"]


class _NullGrant:
    __slots__ = ()

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Book nothing."""

    def refund(self) -> None:
        """Return nothing."""


_NULL_GRANT = _NullGrant()


class NullLimiter:
    """No quota: everything passes at once, unless the server asked for a pause."""

    counts_tokens = False

    def __init__(self) -> None:
        self._paused_until = 0.0
        self._waiting = 0

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
        """Permission, unless there is a pause."""
        return None if self._paused_until else _NULL_GRANT

    async def acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant:
        """Wait for the end of a pause, if there is one."""
        if self._paused_until:
            self._waiting += 1
            try:
                while True:  # a pause may grow while it is waited for
                    seconds = self.paused_for
                    if not seconds:
                        break
                    await asyncio.sleep(seconds)
            finally:
                self._waiting -= 1
        return _NULL_GRANT

    def observe(self, header: Header) -> None:
        """Ignore the headers: there is no quota of the user's to compare them with, and a 429 pauses anyway."""

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)

    @property
    def paused_for(self) -> float:
        """Seconds until the pause ends."""
        if not self._paused_until:
            return 0.0
        seconds = self._paused_until - asyncio.get_running_loop().time()
        if seconds <= 0:
            self._paused_until = seconds = 0.0
        return seconds

    @property
    def ready_at(self) -> float:
        """Loop time at which the pause ends; 0 where there is none."""
        return self._paused_until if self.paused_for else 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for the end of a pause."""
        return self._waiting


class _Grants:
    __slots__ = ("_parts",)

    def __init__(self, parts: list[Grant]) -> None:
        self._parts = parts

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Settle with every limiter."""
        for part in self._parts:
            part.settle(prompt_tokens, completion_tokens)

    def refund(self) -> None:
        """Return what every limiter gave."""
        for part in self._parts:
            part.refund()


class CompositeLimiter:
    """A deployment's own limiter together with those it shares, such as its account's.

    Every request passes all of them, in the order given. Quotas come back with time and not when somebody lets go, so
    that two composites over the same limiters cannot block each other. Only one request at a time is under way through
    the members: were a line to wait at the second, it would hoard permissions of the first, to spend them all at once.

    A pause belongs to the deployment whose server asked for it, and goes to the first member. Headers go to the first
    that counts anything: they tell of one quota, and the account's other models may have another.

    Parameters
    ----------
    members
        At least one limiter, the deployment's own first.
    """

    def __init__(self, members: Sequence[RateLimiter]) -> None:
        self._members = tuple(members)
        self._own = self._members[0]
        self._counting = next((m for m in self._members if not isinstance(m, NullLimiter)), self._own)
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
        """Permission of every member, if all of them give it at once."""
        if self._waiting:
            return None
        grants: list[Grant] = []
        for member in self._members:
            grant = member.try_acquire(prompt_tokens, output_tokens)
            if grant is None:
                _Grants(grants).refund()
                return None
            grants.append(grant)
        return _Grants(grants)

    async def acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant:
        """Wait until the request fits every member. Cancelled, it returns what the first ones gave."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lock, self._waiting = loop, asyncio.Lock(), 0
        self._waiting += 1
        grants: list[Grant] = []
        try:
            async with self._lock:
                for member in self._members:
                    grant = await member.acquire(prompt_tokens, output_tokens)
                    grants.append(grant)
        except BaseException:
            _Grants(grants).refund()
            raise
        finally:
            self._waiting -= 1
        return _Grants(grants)

    def observe(self, header: Header) -> None:
        """Read a reply's rate-limit headers."""
        self._counting.observe(header)

    def pause(self, seconds: float) -> None:
        """Pause this deployment, and not the others of the account."""
        self._own.pause(seconds)

    @property
    def counts_tokens(self) -> bool:
        """Whether a member counts tokens."""
        return any(member.counts_tokens for member in self._members)

    @property
    def paused_for(self) -> float:
        """Seconds until no member is paused."""
        return max(member.paused_for for member in self._members)

    @property
    def ready_at(self) -> float:
        """Loop time at which no member is paused; 0 where none is."""
        return max(member.ready_at for member in self._members)

    @property
    def waiting(self) -> int:
        """Requests in line here, or at the longest line behind."""
        return max(self._waiting, *(member.waiting for member in self._members))


def make_limiter(limits: Limits | None = None, *shared: RateLimiter) -> RateLimiter:
    """Build the limiter of one deployment: its own limits, and the limiters that it shares with others."""
    own = NullLimiter() if limits is None or limits.unlimited else LocalRateLimiter(limits)
    return CompositeLimiter([own, *shared]) if shared else own
