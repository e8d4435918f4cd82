from __future__ import annotations

import asyncio
import datetime as dt
import math
import random
from typing import Any

import pytest

from infermesh.errors import ConfigError
from infermesh.limits import (
    DayUsage,
    HeldError,
    Limits,
    LocalRateLimiter,
    OpenLimiter,
    Patience,
    RateLimiter,
    make_limiter,
    steady_rate,
)
from infermesh.limits.composite import CompositeLimiter
from tests.fakes import VirtualLoop, advance, header, now, settle, virtual, worst_window

MIDNIGHT = dt.datetime(2025, 3, 15, tzinfo=dt.UTC).timestamp()


def local(*, before_midnight: float = 12 * 3600, **limits: Any) -> LocalRateLimiter:
    start = now()
    return LocalRateLimiter(Limits(**limits), wall=lambda: MIDNIGHT - before_midnight + now() - start)


async def crowd(limiter: RateLimiter, sizes: list[tuple[int, int]]) -> list[float]:
    """Let all acquire at once; the times at which each got through, from now."""
    start = now()

    async def one(prompt: int, output: int) -> float:
        await limiter.acquire(prompt, output)
        return now() - start

    return await asyncio.gather(*(one(*size) for size in sizes))


@pytest.mark.parametrize(
    "fields",
    [
        {"rpm": 0},
        {"tpm": -1},
        {"rpd": float("nan")},
        {"tpd": float("inf")},
        {"rpm": "600"},
        {"rpm": True},
        {"max_request_burst": 0.5},
        {"max_token_burst": 0},
        {"default_output_tokens": -1},
        {"header_bucket_scope": "hour"},
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Limits(**fields)


# --- requests per minute


@pytest.mark.parametrize(
    ("rpm", "n", "least"), [(600, 1000, 0.95), (60, 200, 0.95), (30_000, 36_000, 0.98), (7, 30, 0.9)]
)
@virtual
@pytest.mark.long
async def test_a_strict_sliding_minute_is_never_overrun(rpm: float, n: int, least: float) -> None:
    limiter = local(rpm=rpm)
    rng = random.Random(3)
    start = now()
    seen: list[float] = []

    async def send() -> None:
        await limiter.acquire()
        seen.append(now() + rng.random() * 0.1)  # as the server sees it, after the network

    await asyncio.gather(*(send() for _ in range(n)))
    assert worst_window(seen) <= rpm
    assert n / (now() - start) >= least * rpm / 60
    # Smooth: no second holds more than its share and what a timer's piece brings.
    assert worst_window(seen, 1.0) <= max(rpm / 60 * 1.3, rpm / 60 + 2)


@virtual
async def test_after_an_idle_time_the_load_is_still_smooth() -> None:
    limiter = local(rpm=600)
    await limiter.acquire()
    await asyncio.sleep(3600)
    times = await crowd(limiter, [(0, 0)] * 30)
    assert worst_window(times, 1.0) <= 12


@virtual
async def test_a_burst_goes_out_at_once_when_asked_for() -> None:
    times = await crowd(local(rpm=600, max_request_burst=100), [(0, 0)] * 200)
    assert sum(t < 0.01 for t in times) == pytest.approx(100, abs=1)
    assert max(times) == pytest.approx(10, rel=0.02)
    times = await crowd(local(rpm=30_000, max_request_burst=1000), [(0, 0)] * 2000)
    assert sum(t < 0.01 for t in times) == pytest.approx(1000, abs=1)


@virtual
async def test_few_timers_at_high_rates() -> None:
    loop = asyncio.get_running_loop()
    limiter = local(rpm=30_000)
    timers = 0
    call_at = loop.call_at

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal timers
        timers += 1
        return call_at(*args, **kwargs)

    loop.call_at = counting  # type: ignore[method-assign,assignment]
    await crowd(limiter, [(0, 0)] * 5000)
    assert timers < 5000 / 10


@virtual
async def test_late_timers_cost_no_rate() -> None:
    limiter = local(rpm=30_000)
    start = now()

    async def lag() -> None:
        while True:
            await asyncio.sleep(0.01)
            advance(0.02)  # a busy loop

    lagging = asyncio.create_task(lag())
    await crowd(limiter, [(0, 0)] * 10_000)
    lagging.cancel()
    assert 10_000 / (now() - start) > 0.98 * 500


@virtual
async def test_first_come_first_served() -> None:
    limiter = local(rpm=600)
    times = await crowd(limiter, [(0, 0)] * 100)
    assert times == sorted(times)


@pytest.mark.parametrize("rpm", [1, 60, 90])
@virtual
async def test_a_low_rate_lets_one_through_at_a_time(rpm: float) -> None:
    times = await crowd(local(rpm=rpm), [(0, 0)] * 12)
    apart = 1 / steady_rate(rpm)
    assert times[0] == 0
    assert times[1:] == pytest.approx([n * apart for n in range(1, 12)], abs=max(0.002, 0.08 * apart))
    assert worst_window(times, 0.9 * apart) == 1
    assert times[-1] - times[1] == pytest.approx(10 * apart, abs=0.002)


@pytest.mark.parametrize("rpm", [600, 30_000, 600_000])
@virtual
async def test_a_loop_that_was_busy_lets_no_burst_follow(rpm: float) -> None:
    limiter = local(rpm=rpm)
    times: list[float] = []

    async def one() -> None:
        await limiter.acquire()
        times.append(now())

    tasks = [asyncio.create_task(one()) for _ in range(round(rpm / 60 * 2))]
    for _ in range(5):
        await asyncio.sleep(0.07)
        advance(3)  # in which nothing ran, and quota enough for all accrued
    await asyncio.gather(*tasks)
    at_once = max(2.0, rpm / 60 * 0.1 + 1)  # two pieces
    for window in (0, 0.05, 0.5):
        assert worst_window(times, window) <= at_once + rpm / 60 * window + 1


@virtual
async def test_a_line_has_one_timer() -> None:
    loop = asyncio.get_running_loop()
    limiter = local(rpm=600, tpm=60_000, rpd=1000)
    call_at, pending, most = loop.call_at, set[asyncio.TimerHandle](), 0

    def watching(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        nonlocal most
        timer = call_at(*args, **kwargs)
        pending.difference_update([old for old in pending if old.cancelled() or old.when() <= now()])
        pending.add(timer)
        most = max(most, len(pending))
        return timer

    loop.call_at = watching  # type: ignore[method-assign,assignment]
    tasks = [asyncio.create_task(limiter.acquire(100, 50)) for _ in range(100)]
    await settle()
    assert limiter.waiting > 90
    for number, task in enumerate(tasks):
        if number % 3:
            task.cancel()
    limiter.pause(0.3)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 1
    limiter.pause(60)
    last = asyncio.create_task(limiter.acquire())
    await settle()
    assert limiter.waiting == 1
    last.cancel()
    await settle()
    assert all(timer.cancelled() or timer.when() <= now() for timer in pending)


class CoarseLoop(VirtualLoop):
    """Tells the time in whole milliseconds and rounds its timers to them, as uvloop does."""

    def time(self) -> float:
        return math.floor(1000 * super().time()) / 1000

    def call_at(self, when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        return super().call_at(round(1000 * when) / 1000, *args, **kwargs)


@pytest.mark.parametrize("rpm", [601, 30_011, 601_007])
@pytest.mark.long
def test_whole_milliseconds_make_no_timer_ring_in_vain(rpm: float) -> None:
    timers = 0

    async def main() -> float:
        nonlocal timers
        loop, limiter = asyncio.get_running_loop(), local(rpm=rpm)
        call_at = loop.call_at

        def counting(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            nonlocal timers
            timers += 1
            return call_at(*args, **kwargs)

        loop.call_at = counting  # type: ignore[method-assign,assignment]
        return max(await crowd(limiter, [(0, 0)] * round(rpm / 6)))

    with asyncio.Runner(loop_factory=CoarseLoop) as runner:
        seconds = runner.run(main())
    assert seconds == pytest.approx(10, rel=0.03)
    assert timers <= seconds / max(0.05, 60 / rpm) + 2


# --- tokens per minute


@virtual
async def test_large_requests_are_not_starved_by_small_ones() -> None:
    limiter = local(tpm=600_000)
    rng = random.Random(5)
    sizes = [(rng.choice([10, 50, 200, 8000, 30_000]), 0) for _ in range(2000)]
    times = await crowd(limiter, sizes)
    fair = 0.0
    for (prompt, _), got in zip(sizes, times, strict=True):
        fair += prompt / 10_000
        assert got <= 2 * fair + 0.2
    assert max(times) == pytest.approx(fair, rel=0.02)


@virtual
async def test_a_stream_of_small_ones_does_not_starve_a_large_one_that_came_later() -> None:
    limiter = local(tpm=60_000)

    async def stream() -> None:
        while True:
            await limiter.acquire(100, 0)

    streams = [asyncio.create_task(stream()) for _ in range(20)]
    await asyncio.sleep(5)
    start = now()
    await limiter.acquire(5000, 0)
    assert now() - start < 5 + 2 + 1
    for task in streams:
        task.cancel()


@virtual
async def test_the_token_rate_is_reached() -> None:
    times = await crowd(local(tpm=6_000_000), [(400, 100)] * 4000)
    assert 2_000_000 / max(times) >= 0.98 * 100_000


@virtual
async def test_a_request_above_the_whole_quota_waits_for_the_quota() -> None:
    limiter = local(tpm=1000)
    start = now()
    grant = await limiter.acquire(50_000, 0)
    assert now() - start == pytest.approx(60, rel=0.02)
    grant.settle(50_000, 0)  # the debt is a minute's quota and no more
    start = now()
    await limiter.acquire(1, 0)
    assert now() - start == pytest.approx(60, rel=0.02)


@virtual
async def test_what_was_not_used_is_spent_by_the_next() -> None:
    limiter = local(tpm=60_000)
    grant = await limiter.acquire(1000, 9000)
    start = now()
    grant.settle(1000, 500)
    await limiter.acquire(0, 8500)
    assert now() - start < 0.01
    await limiter.acquire(0, 1000)
    assert now() - start == pytest.approx(1, abs=0.1)


@virtual
async def test_what_was_used_too_much_is_paid_by_the_next() -> None:
    limiter = local(tpm=60_000)
    grant = await limiter.acquire(100, 0)
    grant.settle(5100, 0)
    start = now()
    await limiter.acquire(10, 0)
    assert now() - start == pytest.approx(5, abs=0.2)


@virtual
async def test_a_refund_returns_everything_once() -> None:
    limiter = local(rpm=60, tpm=60_000, rpd=100, tpd=100_000)
    grant = await limiter.acquire(5000, 5000)
    grant.refund()
    grant.refund()
    grant.settle(5000, 5000)
    assert limiter.used_today is not None
    assert limiter.used_today[1:] == (0, 0)
    start = now()
    await limiter.acquire(5000, 5000)
    assert now() - start < 0.01
    await limiter.acquire(0, 2000)
    assert now() - start > 1.8


@virtual
async def test_returned_tokens_lose_their_worth_after_a_minute() -> None:
    limiter = local(tpm=60_000)
    (await limiter.acquire(30_000, 0)).refund()
    await asyncio.sleep(120)
    start = now()
    await limiter.acquire(30_000, 0)
    assert now() - start > 29


@virtual
async def test_a_return_reaches_those_who_wait() -> None:
    limiter = local(tpm=6000)
    grant = await limiter.acquire(3000, 0)
    start = now()
    asyncio.get_running_loop().call_later(1, grant.refund)
    times = await crowd(limiter, [(10, 0)] * 100)
    assert now() - start < 3
    assert times == sorted(times)


@virtual
async def test_the_prompt_ratio_is_learned() -> None:
    limiter = local(tpm=60_000_000)
    for _ in range(300):
        (await limiter.acquire(100, 0)).settle(150, 0)
    assert (await limiter.acquire(1000, 0)).size.tokens == pytest.approx(1500, rel=0.02)


@virtual
async def test_the_answers_length_is_learned_unless_given() -> None:
    limiter = local(tpm=60_000_000)
    assert (await limiter.acquire(0)).size.output == 256
    for _ in range(200):
        (await limiter.acquire(10)).settle(10, 40)
        (await limiter.acquire(10, 5000)).settle(10, 5000)  # says nothing about those without a maximum
    assert (await limiter.acquire(0)).size.output == pytest.approx(40, rel=0.05)
    assert (await limiter.acquire(0, 7)).size.output == 7
    fixed = local(tpm=60_000_000, default_output_tokens=100)
    (await fixed.acquire(10)).settle(10, 4000)
    assert (await fixed.acquire(0)).size.output == 100


@virtual
async def test_in_the_long_run_the_actual_tokens_keep_the_rate() -> None:
    limiter = local(tpm=600_000)
    rng = random.Random(9)
    used = 0

    async def one() -> None:
        nonlocal used
        grant = await limiter.acquire(300)
        await asyncio.sleep(rng.random() * 5)
        prompt, completion = rng.randint(300, 900), rng.randint(0, 2000)
        used += prompt + completion
        grant.settle(prompt, completion)

    async def worker() -> None:
        for _ in range(100):
            await one()

    start = now()
    await asyncio.gather(*(worker() for _ in range(50)))
    assert used / (now() - start) == pytest.approx(10_000, rel=0.05)


@virtual
async def test_nobody_overtakes_a_large_request() -> None:
    limiter = local(tpm=60_000)
    order: list[int] = []

    async def one(number: int, tokens: int) -> float:
        await limiter.acquire(tokens, 0)
        order.append(number)
        return now()

    start = now()
    sizes = [19_970, 10, 10, 3000, 10, 10]
    times = await asyncio.gather(*(one(*size) for size in enumerate(sizes)))
    assert order == sorted(order)
    assert times[0] - start == pytest.approx(20, rel=0.01)
    assert times[2] == times[0]  # what its last piece left over
    assert times[3] - start == pytest.approx(23, rel=0.01)


# --- days


@virtual
async def test_a_used_up_day_waits_for_midnight() -> None:
    limiter = local(rpd=3, before_midnight=7200)
    start = now()
    times = await crowd(limiter, [(0, 0)] * 7)
    assert [round(t) for t in times] == [0, 0, 0, 7200, 7200, 7200, 7200 + 86400]
    assert limiter.paused_for == 0
    assert now() - start == pytest.approx(7200 + 86400, abs=1)


@virtual
async def test_tokens_per_day() -> None:
    limiter = local(tpd=10_000, before_midnight=100)
    first = await limiter.acquire(4000, 2000)
    start = now()
    waiting = asyncio.create_task(limiter.acquire(5000, 0))
    await settle()
    assert not waiting.done()
    first.settle(4000, 500)  # frees 1,500: enough
    await waiting
    assert now() == start
    assert limiter.used_today is not None
    assert limiter.used_today.tokens == 9500
    await limiter.acquire(50_000, 0)  # above a whole day's: goes out on a fresh one
    assert now() - start == pytest.approx(100, abs=1)
    assert limiter.paused_for == pytest.approx(86400, abs=1)


@virtual
async def test_a_days_count_survives_a_restart() -> None:
    old = local(rpd=10, tpd=1000, before_midnight=50)
    for _ in range(8):
        await old.acquire(10, 0)
    saved = old.used_today
    assert saved == DayUsage(dt.date(2025, 3, 14), 8, 80)
    new = local(rpd=10, tpd=1000, before_midnight=50)
    new.used_today = saved
    times = await crowd(new, [(10, 0)] * 3)
    assert [round(t) for t in times] == [0, 0, 50]
    new.used_today = saved  # yesterday's by now
    assert new.used_today == DayUsage(dt.date(2025, 3, 15), 1, 10)
    undaily = local(rpm=5)
    undaily.used_today = saved
    assert undaily.used_today is None


@virtual
async def test_what_yesterday_returns_is_not_todays() -> None:
    limiter = local(rpd=10, tpd=1000, before_midnight=50)
    grant = await limiter.acquire(500, 0)
    await asyncio.sleep(60)
    await limiter.acquire(100, 0)
    grant.refund()
    assert limiter.used_today is not None
    assert limiter.used_today[1:] == (1, 100)


@virtual
async def test_all_four_quotas_at_once() -> None:
    limiter = local(rpm=6000, tpm=60_000, rpd=100, tpd=30_000, before_midnight=1000)
    times = await crowd(limiter, [(100, 100)] * 160)  # 30,000 tokens a day: 150 requests; 100 a day come first
    assert sum(t < 100 for t in times) == 100
    assert times[99] == pytest.approx(20, rel=0.03)  # tpm: 1,000 tokens a second
    assert times[100] == pytest.approx(1000, abs=1)


# --- pauses


@pytest.mark.parametrize("kind", ["local", "null", "composite"])
@virtual
async def test_a_pause_holds_everybody_once(kind: str) -> None:
    limiters: dict[str, RateLimiter] = {
        "local": local(rpm=60_000),
        "null": OpenLimiter(),
        "composite": CompositeLimiter([OpenLimiter(), local(rpm=60_000)]),
    }
    limiter = limiters[kind]
    assert limiter.paused_for == 0
    assert limiter.ready_at == 0
    for _ in range(20):  # twenty 429s at once do not make a longer pause
        limiter.pause(5)
    limiter.pause(2)
    assert limiter.paused_for == pytest.approx(5)
    assert limiter.ready_at == pytest.approx(now() + 5)
    asyncio.get_running_loop().call_later(3, limiter.pause, 4)  # grows while it is waited for
    times = await crowd(limiter, [(0, 0)] * 50)
    assert min(times) == pytest.approx(7, abs=0.01)
    assert max(times) < 7.2
    assert limiter.paused_for == 0
    assert limiter.ready_at == 0


@virtual
async def test_a_pause_reaches_whoever_is_already_in_line() -> None:
    limiter = local(rpm=60)
    asyncio.get_running_loop().call_later(2.5, limiter.pause, 60)
    times = await crowd(limiter, [(0, 0)] * 6)
    assert not [t for t in times if 2.5 < t < 62.5]
    assert worst_window(times, 0.9) <= 2


# --- cancellation


@virtual
async def test_cancelled_waiters_leave_nothing_taken() -> None:
    limiter = local(rpm=6000, tpm=60_000, tpd=1_000_000)
    await limiter.acquire(10, 0)
    start = now()
    rng = random.Random(1)
    tasks = [asyncio.create_task(limiter.acquire(rng.choice([10, 500, 4000]), 0)) for _ in range(200)]
    for task in rng.sample(tasks, 150):
        asyncio.get_running_loop().call_later(rng.random() * 30, task.cancel)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    granted = [grant for grant in done if not isinstance(grant, BaseException)]
    tokens = sum(grant.size.tokens for grant in granted)
    assert limiter.waiting == 0
    assert limiter.used_today is not None
    assert limiter.used_today[1:] == (len(granted) + 1, tokens + 10)
    assert tokens / (now() - start) >= 0.97 * 1000 or tokens < 40_000


@virtual
async def test_a_large_request_cancelled_half_way_returns_its_pieces() -> None:
    limiter = local(tpm=60_000)
    large = asyncio.create_task(limiter.acquire(20_000, 0))
    await asyncio.sleep(10)
    large.cancel()
    await settle()
    start = now()
    await limiter.acquire(9800, 0)
    assert now() - start < 0.2


@pytest.mark.parametrize("victims", [[0], [3], [9], [0, 1, 2], [0, 4, 9], list(range(10))])
@virtual
async def test_a_waiter_that_is_cancelled_passes_its_turn_on(victims: list[int]) -> None:
    limiter = local(rpm=600)
    await limiter.acquire()
    start, apart = now(), 1 / steady_rate(600)
    got: dict[int, float] = {}

    async def one(number: int) -> None:
        await limiter.acquire()
        got[number] = now() - start

    tasks = [asyncio.create_task(one(number)) for number in range(10)]
    await asyncio.sleep(apart / 4)
    assert limiter.waiting == 10
    for victim in victims:
        tasks[victim].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    left = [number for number in range(10) if number not in victims]
    assert list(got) == left
    # The bucket holds one and a half: half of the first wait is over before it begins.
    assert list(got.values()) == pytest.approx([(n + 0.5) * apart for n in range(len(left))], abs=0.002)
    assert limiter.waiting == 0
    await limiter.acquire()  # it left nothing taken
    assert now() - start == pytest.approx((len(left) + 0.5) * apart, abs=0.002)


@virtual
async def test_a_small_request_behind_a_large_one_that_is_cancelled_goes_at_once() -> None:
    limiter = local(tpm=60_000)
    large = asyncio.create_task(limiter.acquire(50_000, 0))
    small = asyncio.create_task(limiter.acquire(5000, 0))
    await asyncio.sleep(10)
    start = now()
    large.cancel()
    await small
    assert now() == start


@virtual
async def test_a_refund_ends_a_long_wait() -> None:
    limiter = local(rpm=1)
    grant = await limiter.acquire()
    waiting = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(5)
    assert not waiting.done()
    start = now()
    grant.refund()
    await waiting
    assert now() == start


@pytest.mark.parametrize("victim", [1, 24, 25, 26])
@virtual
async def test_cancelled_in_the_very_turn_that_serves_it(victim: int) -> None:
    limiter = local(
        rpm=30_000, rpd=1000
    )  # 25 requests for each timer: the head serves 24 others, and leaves one the line
    for _ in range(50):
        await limiter.acquire()
    tasks: list[asyncio.Task[object]] = []

    async def head() -> None:
        await limiter.acquire()
        tasks[victim].cancel()

    tasks.append(asyncio.create_task(head()))
    tasks += [asyncio.create_task(limiter.acquire()) for _ in range(60)]
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [n for n, task in enumerate(tasks) if task.cancelled()] == [victim]
    assert limiter.waiting == 0
    assert limiter.used_today is not None
    assert limiter.used_today.requests == 50 + 60


def test_another_event_loop_starts_with_an_empty_line() -> None:
    limiter = LocalRateLimiter(Limits(rpm=600))

    async def some() -> int:
        for _ in range(5):
            await limiter.acquire()
        for _ in range(3):
            asyncio.create_task(limiter.acquire()).add_done_callback(lambda task: None)
        await settle()
        return 5

    for _ in range(3):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            assert runner.run(some()) == 5


# --- several limiters


@virtual
async def test_no_limits_no_waiting() -> None:
    assert isinstance(make_limiter(), OpenLimiter)
    assert isinstance(make_limiter(Limits()), OpenLimiter)
    assert isinstance(make_limiter(Limits(rpm=1)), LocalRateLimiter)
    limiter = make_limiter()
    assert max(await crowd(limiter, [(1000, 1000)] * 100)) == 0
    grant = await limiter.acquire()
    grant.settle(1, 1)
    grant.refund()
    limiter.observe(header({"content-type": "text/plain"}))
    assert limiter.paused_for == 0
    assert limiter.waiting == 0


@virtual
async def test_without_a_limit_the_servers_headers_are_obeyed_from_the_first_answer_on() -> None:
    limiter = make_limiter()
    limiter.observe(header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}))
    start = now()
    await limiter.acquire()
    assert now() - start == pytest.approx(30, abs=0.1)
    await asyncio.sleep(1)
    limiter.observe(header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}))
    start = now()
    await limiter.acquire()
    assert now() - start == pytest.approx(60, abs=0.1)  # nobody has asked for more


@virtual
async def test_an_account_is_shared_and_own_limits_hold_too() -> None:
    account = local(rpm=600)
    one, two = make_limiter(Limits(rpm=120), account), make_limiter(None, account)
    times = await asyncio.gather(crowd(one, [(0, 0)] * 50), crowd(two, [(0, 0)] * 200))
    assert max(times[0]) == pytest.approx(25, rel=0.04)
    assert 250 / max(max(times[0]), max(times[1])) == pytest.approx(10, rel=0.04)


@virtual
async def test_own_permissions_are_not_hoarded_while_the_account_waits() -> None:
    account = local(rpm=60_000)
    deployment = make_limiter(Limits(rpm=600), account)
    account.pause(60)
    times = await crowd(deployment, [(0, 0)] * 100)
    assert min(times) > 59
    assert worst_window(times, 1.0) <= 13


@virtual
async def test_settling_and_pausing_reach_the_right_members() -> None:
    account = local(tpm=60_000, tpd=100_000)
    one, two = make_limiter(Limits(rpm=600), account), make_limiter(None, account)
    (await one.acquire(100, 900)).settle(100, 100)
    (await one.acquire(100, 900)).refund()
    assert account.used_today is not None
    assert account.used_today.tokens == 200
    one.pause(10)
    assert one.paused_for == pytest.approx(10)
    assert two.paused_for == 0
    two.observe(header({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20s"}))
    assert account.paused_for == pytest.approx(20)


@virtual
async def test_cancelled_at_the_account_the_own_permission_returns() -> None:
    account = local(rpm=600)
    own = local(rpd=10)
    limiter = CompositeLimiter([own, account])
    account.pause(100)
    task = asyncio.create_task(limiter.acquire())
    behind = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(1)
    assert limiter.waiting == 2
    task.cancel()
    behind.cancel()
    await settle()
    assert own.used_today is not None
    assert own.used_today.requests == 0
    assert limiter.waiting == 0


class TestHeld:
    """Requests that something other than the steady rate holds back for longer than they let themselves be."""

    @virtual
    async def test_a_used_up_day_sends_away_who_comes_and_who_is_in_line(self) -> None:
        limiter = local(rpm=60, rpd=3)
        choosy = [asyncio.create_task(limiter.acquire(0, None, Patience(1.0))) for _ in range(6)]
        patient = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(10)
        assert sum(task.exception() is None for task in choosy) == 3
        for task in choosy[3:]:
            held = task.exception()
            assert isinstance(held, HeldError)
            assert held.seconds == pytest.approx(12 * 3600, abs=20)
            assert not held.asked
        assert limiter.waiting == 1
        with pytest.raises(HeldError):
            await limiter.acquire(0, None, Patience(1.0))
        assert not patient.done()
        await patient

    @virtual
    async def test_who_stands_behind_one_that_is_held_is_held(self) -> None:
        limiter = local(tpd=1000)
        await limiter.acquire(950, 0)
        large = asyncio.create_task(limiter.acquire(100, 0))
        await settle()
        with pytest.raises(HeldError):
            await limiter.acquire(10, 0, Patience(1.0))
        large.cancel()
        await settle()
        await limiter.acquire(10, 0, Patience(1.0))
        with pytest.raises(HeldError):
            await limiter.acquire(100, 0, Patience(1.0))

    @virtual
    async def test_a_pause_sends_away_who_is_in_line_unless_it_is_short(self) -> None:
        for seconds, sent_away in ((30.0, True), (0.5, False)):
            limiter = local(rpm=60)
            await limiter.acquire()
            task = asyncio.create_task(limiter.acquire(0, None, Patience(1.0)))
            await settle()
            limiter.pause(seconds + 1.0)
            await asyncio.sleep(3)
            assert isinstance(task.exception(), HeldError) is sent_away

    @virtual
    async def test_the_steady_rate_sends_nobody_away(self) -> None:
        limiter = local(rpm=2, tpm=100)
        await asyncio.gather(*(limiter.acquire(40, 0, Patience(1.0, 1.0)) for _ in range(5)))

    @pytest.mark.parametrize(
        ("limits", "reset", "asked"),
        [
            ({"rpm": 600}, "12h0m0s", True),
            ({"rpm": 600}, "30s", False),
            ({"rpm": 600}, "", False),
            ({"rpm": 600, "header_bucket_scope": "day"}, "", True),
            ({"rpd": 1000}, "12h0m0s", False),
            ({"tpd": 1000}, "12h0m0s", True),
        ],
    )
    @virtual
    async def test_what_the_server_asks_for_is_told_from_what_the_user_declared(
        self, limits: dict[str, Any], reset: str, asked: bool
    ) -> None:
        limiter = local(**limits)
        names = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
        limiter.observe(header(names))
        assert limiter.paused_for > 0
        waiting = asyncio.create_task(limiter.acquire(1, 0, Patience(asked_s=40.0)))
        await settle()
        assert waiting.done() is asked
        if asked:
            held = waiting.exception()
            assert isinstance(held, HeldError)
            assert held.asked
        waiting.cancel()

    @virtual
    async def test_at_an_account_the_own_permission_returns(self) -> None:
        account = local(rpd=1)
        both = make_limiter(Limits(rpd=5), account)
        await both.acquire()
        with pytest.raises(HeldError):
            await both.acquire(0, None, Patience(1.0))
        assert both.waiting == 0
        own = both._members[0]  # type: ignore[attr-defined]
        assert own.used_today.requests == 1
