"""The limiter of a deployment without a quota, and the limiter of one that is under several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from infermesh.limits.base import ENDLESS, Grant, Header, Patience, RateLimiter
from infermesh.limits.local import LocalRateLimiter
from infermesh.types import Limits

__all__ = ["CompositeLimiter", "OpenLimiter", "make_limiter"]


class _NullGrant:
    __slots__ = ()

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        pass

    def refund(self) -> None:
        pass


_NULL_GRANT = _NullGrant()


class OpenLimiter:
    """No quota of the user's. Every request passes at once, until the server speaks of a quota or asks for a pause.

    From then on its headers are obeyed as those of a server with a declared limit are, for a minute at a time: nobody
    has said that a longer wait is wanted. If the server means it, it says so with a 429.
    """

    def __init__(self, local: Callable[[Limits], LocalRateLimiter] = LocalRateLimiter) -> None:
        self._told = local(Limits(header_bucket_scope="minute"))
        self._open = True

    def change(self, limits: Limits) -> None:
        """Go by limits that the user sets all the same. Raises ``ValueError`` for quotas a day."""
        self._told.change(limits)
        self._open = self._open and limits.unlimited

    @property
    def told(self) -> LocalRateLimiter:
        """What keeps to what was told later."""
        return self._told

    @property
    def counts_tokens(self) -> bool:
        return self._told.counts_tokens

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
        return _NULL_GRANT if self._open else self._told.try_acquire(prompt_tokens, output_tokens)

    async def acquire(
        self, prompt_tokens: int = 0, output_tokens: int | None = None, patience: Patience = ENDLESS
    ) -> Grant:
        return _NULL_GRANT if self._open else await self._told.acquire(prompt_tokens, output_tokens, patience)

    def observe(self, header: Header) -> None:
        self._told.observe(header)
        if self._told.knows_quota:
            self._open = False

    def pause(self, seconds: float) -> None:
        self._open = False
        self._told.pause(seconds)

    @property
    def paused_for(self) -> float:
        return 0.0 if self._open else self._told.paused_for

    @property
    def ready_at(self) -> float:
        return 0.0 if self._open else self._told.ready_at

    @property
    def waiting(self) -> int:
        return 0 if self._open else self._told.waiting

    @property
    def binding(self) -> str | None:
        return self._told.binding


class _Grants:
    __slots__ = ("_parts",)

    def __init__(self, parts: list[Grant]) -> None:
        self._parts = parts

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        for part in self._parts:
            part.settle(prompt_tokens, completion_tokens)

    def refund(self) -> None:
        for part in self._parts:
            part.refund()


class CompositeLimiter:
    """A deployment's own limiter together with those that it shares, such as its account's.

    A request needs a grant of every member and asks them in the order given. Two composites over the same members
    cannot deadlock, because quotas refill with time and not when a holder lets go. Only one request at a time asks the
    members: if many waited at the second one, each would hold a grant of the first, and all of these would be spent at
    once.

    A pause goes to the first member, since it concerns the deployment whose server asked for it. Headers go to the
    first member that has a quota: they describe one quota, and the account's other models may have another.

    Parameters
    ----------
    members
        At least one limiter, the deployment's own first.
    """

    def __init__(self, members: Sequence[RateLimiter]) -> None:
        self._members = tuple(members)
        self._own = self._members[0]
        self._counting = next((m for m in self._members if not isinstance(m, OpenLimiter)), self._own)
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
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

    async def acquire(
        self, prompt_tokens: int = 0, output_tokens: int | None = None, patience: Patience = ENDLESS
    ) -> Grant:
        """Wait until the request fits every member. If it does not get there, grants it already has are refunded."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lock, self._waiting = loop, asyncio.Lock(), 0
        self._waiting += 1
        grants: list[Grant] = []
        try:
            async with self._lock:
                for member in self._members:
                    grant = await member.acquire(prompt_tokens, output_tokens, patience)
                    grants.append(grant)
        except BaseException:
            _Grants(grants).refund()
            raise
        finally:
            self._waiting -= 1
        return _Grants(grants)

    def observe(self, header: Header) -> None:
        self._counting.observe(header)

    def pause(self, seconds: float) -> None:
        """Pause this deployment, not the others of the account."""
        self._own.pause(seconds)

    @property
    def own(self) -> RateLimiter:
        """The deployment's own."""
        return self._own

    @property
    def counts_tokens(self) -> bool:
        return any(member.counts_tokens for member in self._members)

    @property
    def paused_for(self) -> float:
        return max(member.paused_for for member in self._members)

    @property
    def ready_at(self) -> float:
        return max(member.ready_at for member in self._members)

    @property
    def waiting(self) -> int:
        """How many requests wait here, or at the member where most do."""
        return max(self._waiting, *(member.waiting for member in self._members))

    @property
    def binding(self) -> str | None:
        return next((member.binding for member in self._members if member.binding is not None), None)


def make_limiter(
    limits: Limits | None = None,
    *shared: RateLimiter,
    local: Callable[[Limits], LocalRateLimiter] = LocalRateLimiter,
) -> RateLimiter:
    """Make the limiter of one deployment from its own limits and the limiters that it shares with others."""
    own = OpenLimiter(local) if limits is None or limits.unlimited else local(limits)
    return CompositeLimiter([own, *shared]) if shared else own
