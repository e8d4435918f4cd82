"""Quotas that one process keeps and many spend: who asks for how much, and what each gets.

The many are the workers of a run, whose hub deals, or runs and clients of one account, one of which does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infermesh.limits.allotment import DayQuota, MinuteQuota
from infermesh.limits.bucket import Bucket
from infermesh.limits.day import DayCount
from infermesh.limits.granted import GrantedBucket, GrantedDay
from infermesh.limits.local import LocalRateLimiter
from infermesh.types import Limits

__all__ = ["Ask", "Credit", "Dealer", "ask_of", "grant"]

_MOST_IN_LINE = 2048  # requests whose tokens are summed up, of a limiter's line


@dataclass(slots=True)
class Credit:
    """Credit of one limiter: requests and tokens of a minute, and of a day.

    ``day_over`` is the quota of which the keeper has none left today.
    """

    requests: float = 0.0
    tokens: float = 0.0
    day: int = 0
    day_requests: float = 0.0
    day_tokens: float = 0.0
    day_over: str | None = None


@dataclass(slots=True)
class Ask:
    """What one could use of a limiter, beyond what it has; and what it hands back of a day."""

    requests: float = 0.0
    tokens: float = 0.0
    day_requests: float = 0.0
    day_tokens: float = 0.0
    back: Sequence[Any] | None = None


class Dealer:
    """The quotas of one limiter, what each asks for, and what is dealt to it and waits for its next call.

    Parameters
    ----------
    limits
        The quotas.
    count
        Today's count; ``None``: there is no quota a day.
    later_s
        As in :class:`~infermesh.limits.allotment.MinuteQuota`.
    buckets
        Where to draw requests and tokens from, if somebody else keeps the quotas.
    """

    def __init__(
        self,
        limits: Limits,
        count: DayCount | None,
        *,
        later_s: float = 0.0,
        buckets: tuple[Bucket | None, Bucket | None] = (None, None),
    ) -> None:
        self.count = count
        self._limits = limits
        self._minute: dict[str, MinuteQuota] = {}
        if limits.rpm is not None:
            self._minute["requests"] = MinuteQuota(
                limits.rpm, limits.max_request_burst, whole=True, later_s=later_s, bucket=buckets[0]
            )
        if limits.tpm is not None:
            self._minute["tokens"] = MinuteQuota(
                limits.tpm, limits.max_token_burst, whole=False, later_s=later_s, bucket=buckets[1]
            )
        self._day = None if count is None else DayQuota(count, limits.rpd, limits.tpd)
        self._asks: dict[int, Ask] = {}
        self._dealt: dict[int, Credit] = {}

    def change(self, limits: Limits) -> None:
        """Deal by other quotas from now on, which are kept here. Needs a running event loop."""
        before, self._limits = self._limits, limits
        for name, old, new, burst in (
            ("requests", before.rpm, limits.rpm, limits.max_request_burst),
            ("tokens", before.tpm, limits.tpm, limits.max_token_burst),
        ):
            if new is None:
                self._minute.pop(name, None)
            elif old is None:
                self._minute[name] = MinuteQuota(new, burst, whole=name == "requests")
            elif old != new:
                self._minute[name].change(new, burst)
        if self._day is not None:
            self._day.change(limits.rpd, limits.tpd)

    def take(self, who: int, ask: Ask) -> None:
        """Note what one could use, and take back what it returns."""
        self._asks[who] = ask
        if ask.back is not None and self._day is not None:
            day, requests, tokens = ask.back
            self._day.back(day, requests, tokens)

    def leave(self, who: int) -> None:
        """Deal no more to one. What it had counts as spent."""
        self._asks.pop(who, None)
        if (left := self._dealt.pop(who, None)) is not None and self._day is not None:
            self._day.back(left.day, left.day_requests, left.day_tokens)

    def credit(self, who: int) -> Credit:
        """Deal to all, and return what this one gets. Needs a running event loop."""
        self.deal()
        found = self._dealt.pop(who, None) or Credit()
        found.day_over = self.day_over
        return found

    def deal(self) -> None:
        """Deal what there is to those who ask for it."""
        for name, quota in self._minute.items():
            for each, amount in quota.deal(self._open(name)).items():
                setattr(self._of(each), name, getattr(self._of(each), name) + amount)
        if self._day is not None:
            self._deal_day(self._day)

    def _open(self, name: str) -> dict[int, float]:
        return {each: max(getattr(ask, name) - getattr(self._of(each), name), 0.0) for each, ask in self._asks.items()}

    def wanted(self) -> Ask:
        """What all of them could use beyond what is dealt: requests and tokens of a minute."""
        requests, tokens = (
            sum(self._open(name).values()) if name in self._minute else 0.0 for name in ("requests", "tokens")
        )
        return Ask(requests, tokens)

    def _of(self, who: int) -> Credit:
        return self._dealt.setdefault(who, Credit())

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
        """The quota a day that is used up; ``None``: none is."""
        return None if self.count is None else self.count.lacks(1.0)

    @property
    def is_waited_for(self) -> bool:
        """Whether requests wait for a quota a day."""
        return any(ask.day_requests >= 1 or ask.day_tokens >= 1 for ask in self._asks.values())


def ask_of(limiter: LocalRateLimiter, now: float, before: int) -> Ask:
    """What a limiter over granted credit could use now; credit that it has kept for too long lapses.

    Parameters
    ----------
    before
        Requests that wait to stand in its line: of those under several limiters, one at a time stands in each.
    """
    requests, tokens, day = limiter.parts
    in_line, need, head = limiter.needs(_MOST_IN_LINE)
    waiting = max(in_line, before)
    if in_line:
        need *= waiting / min(in_line, _MOST_IN_LINE)
    ask = Ask()
    if isinstance(requests, GrantedBucket):
        requests.lapse(now, min(waiting, 1))
        ask.requests = requests.ask(waiting, min(waiting, 1))
    if isinstance(tokens, GrantedBucket):
        head = min(head, tokens.quota)
        tokens.lapse(now, head)
        ask.tokens = tokens.ask(need, head)
    if isinstance(day, GrantedDay):
        ask.day_requests, ask.day_tokens = day.ask(waiting, need)
        ask.back = day.back(now, idle=not waiting and not ask.day_requests)
    return ask


def grant(limiter: LocalRateLimiter, credit: Credit) -> None:
    """Give a limiter over granted credit what was dealt to it, and let pass who fits."""
    requests, tokens, day = limiter.parts
    if isinstance(requests, GrantedBucket):
        requests.grant(credit.requests)
    if isinstance(tokens, GrantedBucket):
        tokens.grant(credit.tokens)
    if isinstance(day, GrantedDay):
        day.grant(credit.day, credit.day_requests, credit.day_tokens)
        day.used_up = credit.day_over
    limiter.serve()
