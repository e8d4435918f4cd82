"""The hub's side of what its workers share: quotas, and the windows of stages and deployments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from infermesh.config.schema import DeploymentEntry
from infermesh.dispatch.fleet import WAITED_FOR, Fleet
from infermesh.limits import LocalRateLimiter
from infermesh.runs.crew.allotment import DayQuota, MinuteQuota, SharedSlots
from infermesh.runs.crew.messages import Ask, Credit, News, Share
from infermesh.stages import Stage

__all__ = ["Quotas", "Shares"]


_DEAL_S = 0.025  # half of what a bucket holds more than a piece


class _Account:
    """The quotas of one limiter, what each worker asks for, and what is dealt and waits for its next call."""

    def __init__(self, name: str, limiter: LocalRateLimiter) -> None:
        limits = limiter.limits
        self.name, self.limiter = name, limiter
        self._minute: dict[str, MinuteQuota] = {}
        if limits.rpm is not None:
            self._minute["requests"] = MinuteQuota(limits.rpm, limits.max_request_burst, whole=True)
        if limits.tpm is not None:
            self._minute["tokens"] = MinuteQuota(limits.tpm, limits.max_token_burst, whole=False)
        count = limiter.parts[2]
        self._day = None if count is None else DayQuota(count, limits.rpd, limits.tpd)
        self._asks: dict[int, Ask] = {}
        self._dealt: dict[int, Credit] = {}

    def take(self, worker: int, ask: Ask) -> None:
        self._asks[worker] = ask
        if ask.back is not None and self._day is not None:
            self._day.back(*ask.back)

    def leave(self, worker: int) -> None:
        self._asks.pop(worker, None)
        if (left := self._dealt.pop(worker, None)) is not None and self._day is not None:
            self._day.back(left.day, left.day_requests, left.day_tokens)

    def credit(self, worker: int) -> Credit:
        """Deal to all, and return what this worker gets with its call."""
        self.deal()
        found = self._dealt.pop(worker, None) or Credit()
        found.day_over = self.day_over
        return found

    def deal(self) -> None:
        """Deal what there is to those who ask for it."""
        for name, quota in self._minute.items():
            asks = {
                each: max(getattr(ask, name) - getattr(self._of(each), name), 0.0) for each, ask in self._asks.items()
            }
            for each, amount in quota.deal(asks).items():
                setattr(self._of(each), name, getattr(self._of(each), name) + amount)
        if self._day is not None:
            self._deal_day(self._day)

    def _of(self, worker: int) -> Credit:
        return self._dealt.setdefault(worker, Credit())

    def _deal_day(self, quota: DayQuota) -> None:
        day = quota.day
        asks: list[dict[int, float]] = [{}, {}]
        for each, ask in self._asks.items():
            dealt = self._of(each)
            if dealt.day != day:  # of a day that is over
                dealt.day, dealt.day_requests, dealt.day_tokens = day, 0.0, 0.0
            asks[0][each] = max(ask.day_requests - dealt.day_requests, 0.0)
            asks[1][each] = max(ask.day_tokens - dealt.day_tokens, 0.0)
        for each, (requests, tokens) in quota.deal(*asks).items():
            self._of(each).day_requests += requests
            self._of(each).day_tokens += tokens

    @property
    def day_over(self) -> str | None:
        count = self.limiter.parts[2]
        return None if count is None else count.lacks(1.0)

    @property
    def is_waited_for(self) -> bool:
        """Whether requests wait for a quota a day."""
        return any(ask.day_requests >= 1 or ask.day_tokens >= 1 for ask in self._asks.values())


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

    def take(self, worker: int, asks: Mapping[str, Ask]) -> None:
        """Note what a worker could use."""
        for key, ask in asks.items():
            self._accounts[key].take(worker, ask)

    def leave(self, worker: int) -> None:
        """Deal no more to a worker. What it had counts as spent."""
        for account in self._accounts.values():
            account.leave(worker)

    def credit(self, worker: int) -> dict[str, Credit]:
        """What a worker gets with its next call. Needs a running event loop."""
        return {key: account.credit(worker) for key, account in self._accounts.items()}

    async def deal_on(self) -> None:
        """Deal between calls too, until cancelled: what accrues while all workers are late would be lost."""
        while self._accounts:
            await asyncio.sleep(_DEAL_S)
            for account in self._accounts.values():
                account.deal()

    def heard(self, news: Sequence[News]) -> None:
        """Take headers into account that say what is left of a day: other clients may use the account."""
        for each in news:
            if each.headers:
                self._fleet.deployments[each.label].limiter.observe(each.headers.get)

    def used_up(self) -> list[str]:
        """A line for each quota a day that holds requests back, once a day."""
        return [
            line
            for account in self._accounts.values()
            if (quota := account.day_over) is not None and account.is_waited_for
            for line in self._fleet.day_is_over(account.name, account.limiter, quota, WAITED_FOR)
        ]


class Shares:
    """The windows of stages and the slots of deployments, divided among workers."""

    def __init__(self, stages: Mapping[str, Stage], deployments: Mapping[str, DeploymentEntry]) -> None:
        self._slots = {("stage", name): SharedSlots(stage.window) for name, stage in stages.items()}
        for label, entry in deployments.items():
            if entry.max_parallel_requests is not None:
                self._slots["slots", label] = SharedSlots(entry.max_parallel_requests)

    def join(self, worker: int) -> None:
        for slots in self._slots.values():
            slots.join(worker)

    def leave(self, worker: int) -> None:
        for slots in self._slots.values():
            slots.leave(worker)

    def report(self, worker: int, shares: Mapping[tuple[str, str], Share]) -> None:
        for key, share in shares.items():
            self._slots[key].report(worker, share.used, share.wants)

    def of(self, worker: int) -> dict[tuple[str, str], int]:
        """What a worker may use from now on."""
        return {key: slots.share(worker) for key, slots in self._slots.items()}
