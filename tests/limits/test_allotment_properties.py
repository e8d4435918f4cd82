"""Quotas and slots of a run over its workers: never more than there is, in no minute, and little less."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infermesh.limits.allotment import DayQuota, MinuteQuota, SharedSlots, max_min, whole_shares
from infermesh.limits.day import DayCount
from infermesh.limits.granted import GrantedBucket, GrantedDay
from tests.fakes import VirtualLoop, now, virtual

AMOUNTS = st.floats(0, 1e6)


@given(total=AMOUNTS, wants=st.dictionaries(st.integers(0, 9), AMOUNTS))
def test_max_min(total: float, wants: dict[int, float]) -> None:
    shares = max_min(total, wants)
    assert sum(shares.values()) <= total * (1 + 1e-9) + 1e-9
    assert sum(shares.values()) == pytest.approx(min(total, sum(wants.values())))
    short = [share for worker, share in shares.items() if share < wants[worker] * (1 - 1e-9)]
    for worker, share in shares.items():
        assert share <= wants[worker]
        assert all(share <= other * (1 + 1e-9) + 1e-9 for other in short), "who is short has less than another"


@given(total=st.integers(0, 999), wants=st.dictionaries(st.integers(0, 9), AMOUNTS), turn=st.integers(0, 99))
def test_whole_shares(total: int, wants: dict[int, float], turn: int) -> None:
    shares = whole_shares(total, wants, turn)
    assert sum(shares.values()) == min(total, sum(int(want) for want in wants.values()))
    assert all(0 <= share <= wants[worker] for worker, share in shares.items())


@settings(deadline=None, max_examples=50)
@given(total=st.integers(1, 40), seed=st.integers(0, 9999))
def test_slots_in_use_are_never_more_than_the_total(total: int, seed: int) -> None:
    rng = random.Random(seed)
    slots, share, used = SharedSlots(total), dict[int, int](), dict[int, int]()
    for worker in range(4):
        slots.join(worker)
        share[worker] = used[worker] = 0
    for step in range(400):
        worker = rng.choice([*share])
        if rng.random() < 0.02 and len(share) > 1:
            slots.leave(worker)
            del share[worker], used[worker]
            slots.join(100 + step)
            share[100 + step] = used[100 + step] = 0
            continue
        share[worker] = slots.share(worker)
        # Until its answer the worker ends some, and begins as many as it may.
        used[worker] = max(used[worker] - rng.randrange(4), 0)
        used[worker] = max(used[worker], min(share[worker], rng.randrange(total + 1)))
        assert sum(used.values()) <= total
        slots.report(worker, used[worker], rng.choice([0, used[worker], total * 2]))
    for _ in range(3):  # one alone wants all: it gets them, once the others have ended theirs
        for worker in share:
            share[worker] = slots.share(worker)
            used[worker] = min(used[worker], share[worker])
            slots.report(worker, used[worker], 2 * total if worker == worker_of(share) else 0)
    assert slots.share(worker_of(share)) == total


def worker_of(share: dict[int, int]) -> int:
    return next(iter(share))


class _Worker:
    """A worker with a line of requests, each of one unit, and credit from the hub."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.bucket = GrantedBucket(60)
        self.waiting = 0

    def send(self) -> int:
        count = min(self.waiting, int(self.bucket.credit))
        self.waiting -= count
        self.bucket.credit -= count
        return count


@pytest.mark.parametrize("demand", ["saturated", "skewed", "moving", "half"])
@pytest.mark.parametrize(("rpm", "workers"), [(30, 3), (600, 1), (600, 5), (6000, 2), (30_000, 4)])
def test_no_minute_sees_more_than_the_quota(rpm: int, workers: int, demand: str) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        sent = runner.run(_minutes(rpm, workers, demand, random.Random(workers)))
    window: deque[tuple[float, int]] = deque()
    inside, most = 0, 0
    for at, count in sent:
        window.append((at, count))
        inside += count
        while window[0][0] <= at - 60:
            inside -= window.popleft()[1]
        most = max(most, inside)
    assert most <= rpm
    if demand in ("saturated", "skewed") and rpm >= 600:
        span = sent[-1][0] - sent[0][0]
        assert sum(count for _, count in sent[1:]) / span >= 0.97 * rpm / 60


async def _minutes(rpm: int, workers: int, demand: str, rng: random.Random) -> list[tuple[float, int]]:
    """Three minutes of exchanges; returns when how many requests were sent."""
    quota = MinuteQuota(rpm, None, whole=True)
    crew = [_Worker(number) for number in range(workers)]
    asks: dict[int, float] = {}
    dealt: dict[int, float] = {}
    sent: list[tuple[float, int]] = []
    started = now()
    while now() < started + 180:
        for worker in crew:
            await asyncio.sleep(0.05 / workers * (0.5 + rng.random()))
            elapsed = now() - started
            rate = rpm / 60 * 0.06 / workers
            if demand == "saturated" or (demand == "skewed" and worker.number == 0):
                worker.waiting = 10**6
            elif demand == "skewed":
                worker.waiting += int(rate * 0.2 + rng.random())
            elif demand == "moving":
                worker.waiting = 10**6 if int(elapsed / 5) % workers == worker.number else 0
            else:
                worker.waiting += int(rate * 0.5 + rng.random())
            worker.bucket.grant(dealt.pop(worker.number, 0.0))
            if count := worker.send():
                sent.append((now(), count))
            worker.bucket.lapse(now(), 1.0 if worker.waiting else 0.0)
            asks[worker.number] = worker.bucket.ask(worker.waiting, 1.0)
            open_asks = {number: max(ask - dealt.get(number, 0.0), 0.0) for number, ask in asks.items()}
            for number, amount in quota.deal(open_asks).items():
                dealt[number] = dealt.get(number, 0.0) + amount
    return sent


@virtual
async def test_unused_credit_of_a_minute_lapses() -> None:
    bucket = GrantedBucket(600)
    bucket.lapse(now(), 0)
    bucket.grant(5)
    await asyncio.sleep(0.3)
    assert bucket.lapse(now(), 0) == 0  # it came since the last turn
    bucket.credit -= 2
    await asyncio.sleep(0.3)
    assert bucket.lapse(now(), 0) == 3
    assert bucket.credit == 0


@virtual
async def test_what_the_first_request_gathers_does_not_lapse() -> None:
    bucket = GrantedBucket(60_000)
    for _ in range(5):
        bucket.grant(100)
        await asyncio.sleep(0.3)
        bucket.lapse(now(), 500)
    assert bucket.covers(500)


@settings(max_examples=50, deadline=None)
@given(rpd=st.integers(1, 200), tpd=st.none() | st.integers(1, 2000), seed=st.integers(0, 999))
def test_a_day_is_dealt_to_its_end_and_no_further(rpd: int, tpd: int | None, seed: int) -> None:
    rng = random.Random(seed)

    def noon() -> float:
        return 86400 * 20_000 + 43_200.0

    quota = DayQuota(DayCount(rpd, tpd, noon), rpd, tpd)
    days = {worker: GrantedDay(rpd, tpd, noon) for worker in range(3)}
    sent, tokens, idle = 0, 0.0, 0
    while idle < 20:
        worker = rng.randrange(3)
        day = days[worker]
        mine = {worker: day.ask(rng.randrange(6), rng.randrange(60))}
        dealt = quota.deal({worker: mine[worker][0]}, {worker: mine[worker][1]})
        if worker in dealt:
            day.grant(quota.day, *dealt[worker])
        size, before = float(rng.randrange(1, 20)), sent
        while day.lacks(size) is None and rng.random() < 0.7:
            day.take(size)
            sent, tokens = sent + 1, tokens + size
        if (back := day.back(sent, idle=True, after_s=0)) is not None and rng.random() < 0.5:
            quota.back(*back)
        elif back is not None:
            day.grant(*back)
        idle = idle + 1 if sent == before else 0
    assert sent <= rpd
    assert tpd is None or tokens <= tpd + 20 * 3  # a request larger than a day's quota passes on a day of its own
    if tpd is None:
        for day in days.values():
            if (back := day.back(0, idle=True, after_s=0)) is not None:
                quota.back(*back)
        assert sent + sum(quota.deal({0: 1000}, {}).get(0, (0, 0))[:1]) == rpd
