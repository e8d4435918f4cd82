"""A limiter whose limits change while requests wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infermesh.limits import Limits, LocalRateLimiter, OpenLimiter
from tests.fakes import now, settle, virtual, worst_window


async def passed(limiter: Any, count: int, times: list[float]) -> None:
    async def one() -> None:
        await limiter.acquire(1, 1)
        times.append(now())

    await asyncio.gather(*(one() for _ in range(count)))


@virtual
async def test_a_higher_rate_holds_at_once_and_is_kept() -> None:
    limiter, times, start = LocalRateLimiter(Limits(rpm=1)), list[float](), now()
    work = asyncio.create_task(passed(limiter, 1200, times))
    await asyncio.sleep(10)
    assert len(times) == 1
    limiter.change(Limits(rpm=600))
    await work
    assert times[1] - start < 11  # and not after a minute
    assert worst_window(times[1:], 60) <= 600
    assert now() - start < 10 + 2 * 60 + 3


@virtual
async def test_a_lower_rate_holds_at_once() -> None:
    limiter, times = LocalRateLimiter(Limits(rpm=6000)), list[float]()
    work = asyncio.create_task(passed(limiter, 130, times))
    await asyncio.sleep(1)
    before = len(times)
    assert 90 <= before <= 110
    limiter.change(Limits(rpm=6))
    await asyncio.sleep(60)
    assert before + 4 <= len(times) <= before + 6
    limiter.change(Limits())
    await work


@virtual
async def test_a_change_gives_no_second_burst() -> None:
    limits = Limits(rpm=60, max_request_burst=50)
    limiter, times = LocalRateLimiter(limits), list[float]()
    await passed(limiter, 50, times)
    limiter.change(Limits(rpm=120, max_request_burst=50))
    work = asyncio.create_task(passed(limiter, 10, times))
    await settle()
    assert len(times) == 50
    await work
    assert now() - times[0] > 4


@virtual
async def test_quotas_come_and_go() -> None:
    limiter = LocalRateLimiter(Limits())
    assert not limiter.counts_tokens
    limiter.change(Limits(rpm=60, tpm=600))
    assert limiter.counts_tokens
    times: list[float] = []
    work = asyncio.create_task(passed(limiter, 100, times))
    await asyncio.sleep(2)
    assert len(times) < 6
    limiter.change(Limits())
    await settle()
    assert work.done()
    limiter.change(Limits(rpm=60))
    with pytest.raises(ValueError, match="no count of today"):
        limiter.change(Limits(rpd=5))


@virtual
async def test_a_days_quota_is_raised_with_what_is_counted() -> None:
    limiter, times = LocalRateLimiter(Limits(rpd=5)), list[float]()
    work = asyncio.create_task(passed(limiter, 8, times))
    await asyncio.sleep(1)
    assert (len(times), limiter.used_up) == (5, "rpd")
    limiter.change(Limits(rpd=7))
    await settle()
    assert (len(times), limiter.used_up) == (7, "rpd")
    limiter.change(Limits(rpd=8))
    await work


@virtual
async def test_a_deployment_without_limits_gets_some() -> None:
    limiter, times = OpenLimiter(), list[float]()
    await passed(limiter, 100, times)
    limiter.change(Limits(rpm=60))
    work = asyncio.create_task(passed(limiter, 10, times))
    await asyncio.sleep(1)
    assert (len(times) < 103, limiter.binding) == (True, "rpm")
    await work
    assert now() - times[0] > 8
