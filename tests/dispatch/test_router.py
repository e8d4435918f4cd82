from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from infermesh.dispatch import Deployment, Lease, Router
from infermesh.dispatch.blame import blame
from infermesh.dispatch.health import Health
from infermesh.errors import (
    APIConnectionError,
    BadRequestError,
    ConfigError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)
from infermesh.limits import Limits, LocalRateLimiter
from tests.fakes import InstantTransport, now, settle, virtual


def deployment(label: str, **fields: Any) -> Deployment:
    return Deployment(label, InstantTransport(), **fields)


def router(*deployments: Deployment, strategy: Any = "simple-shuffle") -> Router:
    return Router(deployments, strategy, rng=random.Random(11))


async def break_it(target: Deployment, times: int = 3) -> None:
    for _ in range(times):
        target.lease(now()).failed(APIConnectionError("refused"), "failure", 0.0)


# --- strategies


@virtual
async def test_shuffle_follows_the_weights() -> None:
    routes = router(deployment("a", weight=3), deployment("b", weight=1))
    counts = Counter([(await routes.lease()).deployment.label for _ in range(4000)])
    assert counts["a"] == pytest.approx(3000, abs=120)


@virtual
async def test_least_busy_evens_out_what_is_in_flight() -> None:
    routes = router(deployment("a"), deployment("b"), deployment("c", weight=2), strategy="least-busy")
    leases = [await routes.lease() for _ in range(40)]
    assert Counter(lease.deployment.label for lease in leases) == {"a": 10, "b": 10, "c": 20}
    for lease in leases:
        if lease.deployment.label == "b":
            lease.succeeded(1.0)
    assert [(await routes.lease()).deployment.label for _ in range(8)] == ["b"] * 8


@virtual
async def test_least_busy_counts_slots() -> None:
    a, b = deployment("a", max_parallel_requests=30), deployment("b", max_parallel_requests=10)
    routes = router(a, b, strategy="least-busy")
    for _ in range(20):
        await routes.lease()
    assert (a.in_flight, b.in_flight) == (15, 5)


@virtual
async def test_least_busy_takes_turns_among_equals() -> None:
    routes = router(*(deployment(label) for label in "abc"), strategy="least-busy")
    seen: Counter[str] = Counter()
    for _ in range(30):
        lease = await routes.lease()
        seen[lease.deployment.label] += 1
        lease.succeeded(0.1)
    assert seen == {"a": 10, "b": 10, "c": 10}


@virtual
async def test_latency_prefers_the_fast_one_and_fills_it_in_proportion() -> None:
    fast, slow = deployment("fast"), deployment("slow")
    routes = router(fast, slow, strategy="latency-based-routing")
    for lease in [await routes.lease(), await routes.lease()]:  # one to measure for each
        lease.succeeded(0.1 if lease.deployment is fast else 0.4)
    assert {fast.latency_s, slow.latency_s} == {0.1, 0.4}
    for _ in range(50):
        await routes.lease()
    assert fast.in_flight == pytest.approx(40, abs=1)


@virtual
async def test_latency_measures_the_unmeasured_with_one_request() -> None:
    known, new = deployment("known"), deployment("new")
    routes = router(known, new, strategy="latency-based-routing")
    known.record_latency(0.01, now())
    assert (await routes.lease()).deployment is new
    assert (await routes.lease()).deployment is known  # the first has not come back: no flood


@virtual
async def test_latency_measures_again_what_was_slow_long_ago() -> None:
    a, b = deployment("a"), deployment("b")
    routes = router(a, b, strategy="latency-based-routing")
    a.record_latency(0.1, now())
    b.record_latency(9.0, now())
    assert (await routes.lease()).deployment is a
    await asyncio.sleep(61)
    a.record_latency(0.1, now())
    assert (await routes.lease()).deployment is b


@virtual
async def test_quick_failures_do_not_look_like_speed() -> None:
    a = deployment("a")
    a.record_latency(1.0, now())
    a.lease(now()).failed(APIConnectionError("refused"), "failure", 0.001)
    assert a.latency_s == 1.0
    a.lease(now()).failed(RequestTimeoutError("slow"), "failure", 30.0)
    assert a.latency_s is not None
    assert a.latency_s > 5


@pytest.mark.parametrize(
    "build",
    [
        lambda: router(),
        lambda: router(deployment("a"), deployment("a")),
        lambda: router(deployment("a"), strategy="fastest"),
        lambda: deployment("a", weight=-1),
        lambda: router(deployment("a", weight=0)),
        lambda: deployment("a", max_parallel_requests=0),
    ],
)
def test_nonsense_is_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()


# --- slots


@virtual
async def test_slots_are_given_in_order_and_never_exceeded() -> None:
    a, b = deployment("a", max_parallel_requests=2), deployment("b", max_parallel_requests=3)
    routes = router(a, b, strategy="least-busy")
    order: list[int] = []

    async def use(number: int) -> None:
        lease = await routes.lease()
        order.append(number)
        assert a.in_flight <= 2
        assert b.in_flight <= 3
        await asyncio.sleep(1)
        lease.succeeded(1.0)

    start = now()
    await asyncio.gather(*(use(n) for n in range(50)))
    assert order == list(range(50))
    assert now() - start == pytest.approx(10, abs=0.1)
    assert a.in_flight == b.in_flight == 0


@virtual
async def test_a_lease_releases_once() -> None:
    a = deployment("a", max_parallel_requests=2)
    lease = await router(a).lease()
    lease.succeeded(0.1)
    lease.succeeded(0.1)
    lease.failed(ServerError("x"), "failure", 0.1)
    lease.cancel()
    assert a.in_flight == 0
    assert a.health.failures == 0


@virtual
async def test_models_share_a_deployments_slots() -> None:
    shared = deployment("shared", max_parallel_requests=1)
    other = deployment("other", max_parallel_requests=1)
    one, two = router(shared), router(shared, other)
    first, second = await two.lease(), await two.lease()
    third = asyncio.create_task(one.lease())
    await settle()
    fourth = asyncio.create_task(two.lease())
    await settle()
    (first if first.deployment is shared else second).cancel()
    await settle()
    assert third.done()  # it came first, through another router
    assert not fourth.done()
    (await third).cancel()
    assert (await fourth).deployment is shared


@virtual
async def test_cancelled_waiters_leave_no_slot_taken() -> None:
    a, b = deployment("a", max_parallel_requests=1), deployment("b", max_parallel_requests=1)
    routes = router(a, b)
    held = [await routes.lease(), await routes.lease()]
    rng = random.Random(4)
    waiting = [asyncio.create_task(routes.lease()) for _ in range(40)]
    while waiting:
        await settle(rng.randint(0, 2))
        rng.choice(held).cancel()  # may hand a slot to one that …
        for task in rng.sample(waiting, min(2, len(waiting))):
            task.cancel()  # … is cancelled in the same turn
        await settle()
        held = [lease for lease in held if lease._held]
        for task in [task for task in waiting if task.done()]:
            waiting.remove(task)
            if not task.cancelled():
                held.append(task.result())
    assert a.in_flight + b.in_flight == len(held)
    for lease in held:
        lease.cancel()
    assert a.has_free_slot()
    assert b.has_free_slot()
    assert {(await routes.lease()).deployment.label for _ in range(2)} == {"a", "b"}


@virtual
async def test_waiters_served_elsewhere_do_not_pile_up() -> None:
    stuck, quick = deployment("stuck", max_parallel_requests=1), deployment("quick", max_parallel_requests=1)
    routes = router(stuck, quick)
    leases = [await routes.lease(), await routes.lease()]
    lease = next(lease for lease in leases if lease.deployment is quick)
    stuck.health.cool_until = now() + 1e6
    for _ in range(200):
        task = asyncio.create_task(routes.lease())
        await settle(2)
        lease.succeeded(0.1)
        lease = await task
    assert len(stuck._waiters) <= 2


# --- pauses and lines


@virtual
async def test_a_paused_deployment_is_passed_over() -> None:
    a, b = deployment("a"), deployment("b")
    routes = router(a, b)
    a.limiter.pause(10)
    assert {(await routes.lease()).deployment.label for _ in range(20)} == {"b"}
    b.limiter.pause(20)
    assert (await routes.lease()).deployment is a  # both: the one that is ready first
    await asyncio.sleep(15)
    assert {(await routes.lease()).deployment.label for _ in range(20)} == {"a"}


@virtual
async def test_a_slot_that_is_soon_free_is_better_than_a_pause() -> None:
    a, b = deployment("a"), deployment("b", max_parallel_requests=1)
    routes = router(a, b)
    a.limiter.pause(10)
    busy = await routes.lease()
    one, two = asyncio.create_task(routes.lease()), asyncio.create_task(routes.lease())
    await asyncio.sleep(1)
    assert not one.done()
    busy.succeeded(1.0)
    assert (await one).deployment is b
    start = now()
    assert (await two).deployment is a  # its pause was over first
    assert now() - start == pytest.approx(9, abs=0.1)


@virtual
async def test_a_line_at_a_limiter_sends_the_next_elsewhere() -> None:
    slow = deployment("slow", limiter=LocalRateLimiter(Limits(rpm=60)))
    fast = deployment("fast")
    routes = router(slow, fast)

    async def use() -> str:
        lease = await routes.lease()
        await lease.deployment.limiter.acquire()
        await asyncio.sleep(0.1)
        lease.succeeded(0.1)
        return lease.deployment.label

    async def worker() -> list[str]:
        return [await use() for _ in range(100)]

    start = now()
    labels = Counter(label for part in await asyncio.gather(*(worker() for _ in range(8))) for label in part)
    assert now() - start < 30
    assert labels["slow"] == pytest.approx(now() - start, abs=3)


# --- health


def test_the_breaker() -> None:
    health = Health()
    for _ in range(2):
        health.failed(0, probe=False)
    health.succeeded()
    assert not health.failed(0, probe=False)
    assert not health.failed(0, probe=False)
    assert health.failed(0, probe=False)
    assert not health.accepts(4.9)
    assert not health.failed(1, probe=False)  # under way when it opened
    for cooldown in (10, 20, 40, 60, 60):
        at = health.cool_until
        assert health.accepts(at)
        assert health.begin(at)
        assert not health.accepts(at)
        assert not health.begin(at)
        assert health.failed(at, probe=True)
        assert health.cool_until == at + cooldown
    assert health.begin(health.cool_until)
    health.abandoned(probe=True)
    assert health.accepts(health.cool_until)
    health.succeeded()
    assert health.accepts(0)


@virtual
async def test_three_failures_in_a_row_cool_a_deployment_down() -> None:
    a, b = deployment("a"), deployment("b")
    routes = router(a, b)
    await break_it(a)
    assert {(await routes.lease()).deployment.label for _ in range(20)} == {"b"}
    assert not routes.alternative(["b"])
    await asyncio.sleep(5.1)
    labels = [(await routes.lease()).deployment.label for _ in range(20)]
    assert labels.count("a") == 1  # the probe


@virtual
async def test_a_probe_decides() -> None:
    a, b = deployment("a"), deployment("b", max_parallel_requests=1)
    routes = router(a, b)
    await routes.lease(["a"])
    await break_it(a)
    tasks = [asyncio.create_task(routes.lease()) for _ in range(4)]
    await asyncio.sleep(4.9)
    assert not any(task.done() for task in tasks)
    await asyncio.sleep(0.2)
    assert [task.done() for task in tasks] == [True, False, False, False]
    (await tasks[0]).failed(ServerError("still"), "failure", 0.1)
    await asyncio.sleep(9.8)
    assert not tasks[1].done()
    await asyncio.sleep(0.3)
    (await tasks[1]).cancel()  # tells nothing: the next one probes
    await settle()
    assert not tasks[3].done()
    (await tasks[2]).succeeded(0.1)
    assert (await tasks[3]).deployment is a
    assert a.health.failures == 0


@pytest.mark.parametrize(
    "error", [BadRequestError("no", status_code=400), RateLimitError("slow", status_code=429), RequestError("local")]
)
@virtual
async def test_what_says_nothing_about_the_server_is_no_failure(error: RequestError) -> None:
    a = deployment("a")
    for _ in range(10):
        a.lease(now()).failed(error, blame(error, 60.0), 0.1)
    assert a.health.accepts(now())


@virtual
async def test_an_only_deployment_never_cools() -> None:
    a = deployment("a", max_parallel_requests=1)
    alone, both = router(a), router(a, deployment("b"))
    await break_it(a, 5)
    lease = await alone.lease()
    assert {(await both.lease()).deployment.label for _ in range(10)} == {"b"}
    waiting = asyncio.create_task(alone.lease())
    await settle()
    lease.failed(ServerError("still"), "failure", 0.1)
    await settle()
    assert waiting.done()
    (await waiting).succeeded(0.1)
    assert a.health.accepts(now())


@virtual
async def test_all_out_waits_for_the_first_that_is_due() -> None:
    a, b = deployment("a"), deployment("b")
    routes = router(a, b)
    await break_it(a)
    await asyncio.sleep(1)
    await break_it(b)
    start = now()
    assert (await routes.lease(cooldown_timeout=60)).deployment is a
    assert now() - start == pytest.approx(4, abs=0.1)
    assert (await routes.lease(cooldown_timeout=60)).deployment is b


@virtual
async def test_the_cooldown_timeout_has_an_end() -> None:
    a, b = deployment("a"), deployment("b")
    routes = router(a, b)
    for target in (a, b):
        await break_it(target)
        target.health.cool_until = now() + 600
    start = now()
    leases = await asyncio.gather(*(routes.lease(cooldown_timeout=60) for _ in range(5)))
    assert now() - start == pytest.approx(60, abs=0.1)
    assert len(leases) == 5


@virtual
async def test_the_cooldown_timeout_starts_when_the_last_deployment_fails() -> None:
    a, b = deployment("a", max_parallel_requests=1), deployment("b", max_parallel_requests=1)
    routes = router(a, b)
    held = [await routes.lease(), await routes.lease()]
    task = asyncio.create_task(routes.lease(cooldown_timeout=60))
    await asyncio.sleep(100)  # slots are waited for without an end
    assert not task.done()
    for target in (a, b):
        await break_it(target, 3)
        target.health.cool_until = now() + 600
    start = now()
    for lease in held:
        lease.cancel()
    await task
    assert now() - start == pytest.approx(60, abs=0.1)


@virtual
async def test_avoid_is_kept_as_long_as_there_is_another() -> None:
    a, b = deployment("a"), deployment("b", max_parallel_requests=1)
    routes = router(a, b)
    assert routes.alternative(["a"])
    held = await routes.lease(["a"])
    assert held.deployment is b
    waiting = asyncio.create_task(routes.lease(["a"]))
    await settle()
    assert not waiting.done()
    held.cancel()
    assert (await waiting).deployment is b
    b.limiter.pause(10)
    assert not routes.alternative(["a"])
    assert (await routes.lease(["a"])).deployment is a
    assert not routes.alternative(["a", "b"])
    assert (await routes.lease(["a", "b"])).deployment is a
    assert not router(a).alternative(["b"])


def test_a_lease_knows_its_deployment() -> None:
    a = deployment("a")
    lease = a.lease(0)
    assert isinstance(lease, Lease)
    assert lease.deployment is a
