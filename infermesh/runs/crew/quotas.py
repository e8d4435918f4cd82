"""The hub's side of what its workers share: quotas, and the windows of stages and deployments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from infermesh.config.schema import DeploymentEntry
from infermesh.dispatch.fleet import WAITED_FOR, Fleet
from infermesh.limits import LocalRateLimiter
from infermesh.limits.allotment import SharedSlots
from infermesh.limits.bucket import Bucket
from infermesh.limits.dealing import Ask, Credit, Dealer
from infermesh.limits.shared import SharedRateLimiter
from infermesh.runs.crew.messages import News, Share
from infermesh.stages import Stage

__all__ = ["Quotas", "Shares"]


_DEAL_S = 0.025  # half of what a bucket holds more than a piece


class _Account:
    """A limiter of the hub's, whose quotas are dealt to workers."""

    def __init__(self, name: str, limiter: LocalRateLimiter) -> None:
        self.name, self.limiter = name, limiter
        buckets: tuple[Bucket | None, Bucket | None] = (None, None)
        if isinstance(limiter, SharedRateLimiter):  # other runs use it too, and one of them keeps it
            buckets = limiter.parts[0], limiter.parts[1]
        self.dealer = Dealer(limiter.limits, limiter.parts[2], buckets=buckets)
        if isinstance(limiter, SharedRateLimiter):
            limiter.asks_for(self.dealer.wanted)


class Quotas:
    """The quotas of all accounts and deployments, which the hub deals and its workers spend.

    Parameters
    ----------
    fleet
        The hub's own, through which nothing is sent. It has the counts of today, and the names.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._accounts = {key: _Account(key, limiter) for key, limiter, _ in fleet.limiters()}

    def take_limits(self) -> None:
        """Deal by the limits that the fleet has now."""
        for key, limiter, _ in self._fleet.limiters():
            if key in self._accounts:
                self._accounts[key].dealer.change(limiter.limits)
            else:
                self._accounts[key] = _Account(key, limiter)

    def take(self, worker: int, asks: Mapping[str, Ask]) -> None:
        """Note what a worker could use."""
        for key, ask in asks.items():
            self._accounts[key].dealer.take(worker, ask)

    def leave(self, worker: int) -> None:
        """Deal no more to a worker. What it had counts as spent."""
        for account in self._accounts.values():
            account.dealer.leave(worker)

    def credit(self, worker: int) -> dict[str, Credit]:
        """What a worker gets with its next call. Needs a running event loop."""
        return {key: account.dealer.credit(worker) for key, account in self._accounts.items()}

    async def deal_on(self) -> None:
        """Deal between calls too, until cancelled: what accrues while all workers are late would be lost."""
        for account in self._accounts.values():
            if isinstance(account.limiter, SharedRateLimiter):
                account.limiter.begin()
        while True:
            await asyncio.sleep(_DEAL_S)
            for account in [*self._accounts.values()]:
                account.dealer.deal()

    def heard(self, news: Sequence[News]) -> None:
        """Take headers into account that say what is left of a day: other clients may use the account."""
        for each in news:
            if each.headers:
                self._fleet.deployments[each.label].limiter.observe(each.headers.get)

    def notes(self) -> list[str]:
        """What there is to say of quotas that other runs use too."""
        found = []
        for account in self._accounts.values():
            if isinstance(account.limiter, SharedRateLimiter):
                found += account.limiter.notes
                account.limiter.notes.clear()
        return found

    def used_up(self) -> list[str]:
        """A line for each quota a day that holds requests back, once a day."""
        return [
            line
            for account in self._accounts.values()
            if (quota := account.dealer.day_over) is not None and account.dealer.is_waited_for
            for line in self._fleet.day_is_over(account.name, account.limiter, quota, WAITED_FOR)
        ]


class Shares:
    """The windows of stages and the slots of deployments, divided among workers."""

    def __init__(self, stages: Mapping[str, Stage], deployments: Mapping[str, DeploymentEntry]) -> None:
        self._slots = {("stage", name): SharedSlots(stage.window) for name, stage in stages.items()}
        for label, entry in deployments.items():
            if entry.max_parallel_requests is not None:
                self._slots["slots", label] = SharedSlots(entry.max_parallel_requests)
        self._workers: set[int] = set()

    def resize(self, key: tuple[str, str], total: int | None) -> None:
        """Divide another number of slots from now on; ``None``: as many as anybody wants."""
        if total is None:
            self._slots.pop(key, None)
        elif key in self._slots:
            self._slots[key].total = total
        else:
            slots = self._slots[key] = SharedSlots(total)
            for worker in self._workers:
                slots.join(worker)

    def join(self, worker: int) -> None:
        self._workers.add(worker)
        for slots in self._slots.values():
            slots.join(worker)

    def leave(self, worker: int) -> None:
        self._workers.discard(worker)
        for slots in self._slots.values():
            slots.leave(worker)

    def report(self, worker: int, shares: Mapping[tuple[str, str], Share]) -> None:
        for key, share in shares.items():
            if key in self._slots:  # else it has not heard yet that there is no bound any more
                self._slots[key].report(worker, share.used, share.wants)

    def of(self, worker: int) -> dict[tuple[str, str], int]:
        """What a worker may use from now on."""
        return {key: slots.share(worker) for key, slots in self._slots.items()}
