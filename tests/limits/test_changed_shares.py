"""What a hub divides, where it is changed by hand meanwhile."""

from __future__ import annotations

import asyncio

from infermesh.limits import Limits
from infermesh.limits.allotment import SharedSlots
from infermesh.limits.dealing import Ask, Dealer
from tests.fakes import virtual


def test_fewer_slots_are_never_told_twice_and_hold_once_the_others_are_free() -> None:
    slots = SharedSlots(8)
    for worker in (1, 2):
        slots.join(worker)
    for worker in (1, 2):
        slots.report(worker, 0, 8)
    assert [slots.share(worker) for worker in (1, 2)] == [4, 4]
    slots.total = 2
    for worker in (1, 2):
        slots.report(worker, 4, 8)
    assert [slots.share(worker) for worker in (1, 2)] == [0, 0]  # eight are in use
    slots.report(1, 0, 8)
    slots.report(2, 1, 8)
    assert slots.share(1) + slots.share(2) <= 2
    slots.total = 20
    for _ in range(4):
        for worker in (1, 2):
            slots.report(worker, 1, 10)
            slots.share(worker)
    assert [slots.share(worker) for worker in (1, 2)] == [10, 10]


async def dealt(dealer: Dealer, seconds: float) -> float:
    """What one who always wants more gets of requests in some time."""
    found = 0.0
    for _ in range(int(seconds / 0.05)):
        dealer.take(1, Ask(requests=1000))
        found += dealer.credit(1).requests
        await asyncio.sleep(0.05)
    return found


@virtual
async def test_a_hub_deals_by_the_new_quota_at_once() -> None:
    dealer = Dealer(Limits(rpm=600), None)
    assert 80 <= await dealt(dealer, 10) <= 105
    dealer.change(Limits(rpm=6000))
    assert 800 <= await dealt(dealer, 10) <= 1050
    dealer.change(Limits(rpm=60))
    assert 5 <= await dealt(dealer, 10) <= 11
    dealer.change(Limits())
    assert await dealt(dealer, 1) == 0  # nothing is dealt of what has no quota
    dealer.change(Limits(rpm=6000))
    assert await dealt(dealer, 5) > 300
