"""How what belongs to many is divided among them: quotas, windows, slots. The many are workers of a run, or runs.

Each is divided by max-min fairness: who wants less than an equal share gets what it wants, and the others share the
rest equally (Bertsekas and Gallager, Data Networks, section 6.5.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from infermesh.limits.bucket import Bucket
from infermesh.limits.day import DayCount
from infermesh.limits.granted import LIFE_S

__all__ = ["DayQuota", "MinuteQuota", "SharedSlots", "max_min", "whole_shares"]

# The longest from a draw at the hub to the request: what was dealt waits for the worker's next exchange, travels, and
# lapses in the worker after LIFE_S.
_DELAY_S = LIFE_S + 0.2
_LATE_S, _FEW = 0.3, 3.0


def max_min(total: float, wants: Mapping[int, float]) -> dict[int, float]:
    """Divide ``total`` among those who want some of it: worker → amount, at most what it wants.

    Examples
    --------
    >>> max_min(10, {1: 2, 2: 100, 3: 100})
    {1: 2, 2: 4.0, 3: 4.0}
    """
    shares = dict.fromkeys(wants, 0.0)
    left, open_ended = total, len(wants)
    for worker, want in sorted(wants.items(), key=lambda each: each[1]):
        shares[worker] = min(want, left / open_ended)
        left -= shares[worker]
        open_ended -= 1
    return shares


def whole_shares(total: int, wants: Mapping[int, float], turn: int = 0) -> dict[int, int]:
    """:func:`max_min` in whole units. Those that are left over go round: ``turn`` says where the round begins.

    Examples
    --------
    >>> whole_shares(4, {1: 9, 2: 9, 3: 9}, turn=1)
    {1: 1, 2: 2, 3: 1}
    """
    wants = {worker: math.floor(want) for worker, want in wants.items()}
    shares = {worker: math.floor(share) for worker, share in max_min(total, wants).items()}
    left = total - sum(shares.values())
    order = list(wants)
    for place in range(len(order)):
        worker = order[(turn + place) % len(order)]
        if left and shares[worker] < wants[worker]:
            shares[worker] += 1
            left -= 1
    return shares


class MinuteQuota:
    """A quota a minute of the whole run, dealt as credit to workers.

    It draws from the same bucket that a run of one process sends by, at a rate that is lower by a share: what the
    bucket promises of draws, that no 60 s window sees more than the quota, then holds for requests that leave up to
    ``_DELAY_S`` after their draw. Credit that a worker does not use lapses there, and is not dealt again: used later,
    it would count in a window that its draw is not in.

    Parameters
    ----------
    per_minute, burst
        As in :class:`~infermesh.limits.bucket.Bucket`.
    whole
        Deal whole units, such as requests.
    later_s
        How much later than ``_DELAY_S`` a request may leave, where what is dealt is dealt on.
    bucket
        Where to draw from, if somebody else keeps the quota.
    """

    def __init__(
        self,
        per_minute: float,
        burst: float | None,
        *,
        whole: bool,
        later_s: float = 0.0,
        bucket: Bucket | None = None,
    ) -> None:
        self._later_s = later_s
        self._bucket = bucket or Bucket(*_of_bucket(per_minute, burst, later_s))
        self._whole = whole
        self._turn = 0

    def change(self, per_minute: float, burst: float | None) -> None:
        """Deal by another quota from now on."""
        self._bucket.change(*_of_bucket(per_minute, burst, self._later_s))

    def deal(self, asks: Mapping[int, float]) -> dict[int, float]:
        """What each worker gets now of what it asks for. Needs a running event loop, whose clock it goes by."""
        wanted = sum(asks.values())
        if wanted <= 0:
            return {}
        bucket = self._bucket
        bucket.covers(wanted)
        there = min(bucket.credit, wanted)
        if there <= 0:
            return {}
        shares: Mapping[int, float]
        if self._whole:
            self._turn += 1
            shares = whole_shares(math.floor(there), asks, self._turn)
        else:
            shares = max_min(there, asks)
        bucket.credit -= sum(shares.values())
        return {worker: share for worker, share in shares.items() if share}


def _of_bucket(per_minute: float, burst: float | None, later_s: float) -> tuple[float, float | None]:
    """The rate and the burst of a quota's bucket."""
    rate = per_minute * (1 - (_DELAY_S + later_s) / 60)
    late = per_minute / 60 * _LATE_S
    # Many units accrue while a busy machine lets everybody come late. The bucket keeps them, and the rate pays.
    return (rate - late, late) if burst is None and late > _FEW else (rate, burst)


class DayQuota:
    """The quotas a day of one account: a count of what was dealt. What a worker hands back can be dealt again.

    Parameters
    ----------
    count
        Today's count.
    rpd, tpd
        The quotas; ``None``: there is none.
    """

    def __init__(self, count: DayCount, rpd: float | None, tpd: float | None) -> None:
        self._count = count
        self._quotas = rpd, tpd
        self._turn = 0

    def change(self, rpd: float | None, tpd: float | None) -> None:
        """Deal by other quotas from now on."""
        self._quotas = rpd, tpd

    @property
    def day(self) -> int:
        """The UTC day of what is dealt now, in days since 1970-01-01."""
        self._count.lacks(0)  # begins a new day
        return self._count.today()

    def deal(self, requests: Mapping[int, float], tokens: Mapping[int, float]) -> dict[int, tuple[float, float]]:
        """Worker → the requests and tokens that it gets of those it asks for."""
        used = self._count.used
        rpd, tpd = self._quotas
        self._turn += 1
        calls: Mapping[int, float] = {} if rpd is None else self._whole(rpd - used.requests, requests)
        words = {} if tpd is None else max_min(max(tpd - used.tokens, 0.0), tokens)
        self._count.give(self.day, -sum(calls.values()), -sum(words.values()))
        return {
            worker: (calls.get(worker, 0.0), words.get(worker, 0.0))
            for worker in {*calls, *words}
            if calls.get(worker) or words.get(worker)
        }

    def _whole(self, left: float, asks: Mapping[int, float]) -> dict[int, int]:
        return whole_shares(max(math.floor(left), 0), asks, self._turn)

    def back(self, day: int, requests: float, tokens: float) -> None:
        """Take back what a worker has not used of a day's."""
        self._count.give(day, requests, tokens)


class SharedSlots:
    """A number of slots for the whole run, such as a stage's window, of which each worker holds a part.

    A part is made smaller by asking for it: it counts as held until the worker says that it uses no more. So what all
    workers use is never more than the total. What nobody wants is spread over all, so that nobody waits for it.

    Parameters
    ----------
    total
        The slots. It may be set: where it is lower, parts are asked for until it holds.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held: dict[int, int] = {}  # worker → the most that it may be using
        self._told: dict[int, int] = {}  # worker → what it was told last
        self._wants: dict[int, int] = {}

    def join(self, worker: int) -> None:
        """Count a worker in; it holds nothing yet."""
        self._held[worker] = self._told[worker] = self._wants[worker] = 0

    def leave(self, worker: int) -> None:
        """Free what a worker held, which is dead or has ended."""
        for each in (self._held, self._told, self._wants):
            each.pop(worker, None)

    def report(self, worker: int, used: int, wants: int) -> None:
        """Take a worker's word, given after it has got what it was told last: slots in use, and wanted in all."""
        self._held[worker] = max(used, self._told[worker])
        self._wants[worker] = wants

    def share(self, worker: int) -> int:
        """What to tell a worker now: the most that it may use from now on."""
        wanted = whole_shares(self.total, self._wants)
        spare = self.total - sum(wanted.values())
        spread = whole_shares(spare, dict.fromkeys(self._wants, spare))
        aim = wanted[worker] + spread[worker]
        free = self.total - sum(self._held.values()) + self._held[worker]
        told = self._told[worker] = max(min(aim, free), 0)
        self._held[worker] = max(self._held[worker], told)
        return told
