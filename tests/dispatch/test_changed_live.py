"""Deployments and dispatch that are changed while requests pass: weights, slots, a pause."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from infermesh.dispatch import Deployment, Router
from infermesh.dispatch.dispatcher import Dispatcher
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import AuthenticationError, NoDeploymentError, ServerError, StoppedError
from infermesh.limits import Limits, LocalRateLimiter
from tests.fakes import InstantTransport, ScriptedTransport, now, parse_ok, reply, request, settle, virtual


def deployment(label: str, **fields: Any) -> Deployment:
    return Deployment(label, InstantTransport(), **fields)


def set_weight(router: Router, target: Deployment, weight: float, *others: Deployment) -> None:
    """As a fleet does."""
    target.weight = weight
    router.refresh()
    for each in (target, *others):
        each.look_again()


@pytest.mark.parametrize("strategy", ["simple-shuffle", "least-busy", "latency-based-routing"])
@virtual
async def test_weight_0_takes_nothing_and_is_taken_back(strategy: Any) -> None:
    a, b = deployment("a"), deployment("b", weight=0)
    router = Router([a, b], strategy, rng=random.Random(1))
    assert {(await router.lease()).deployment.label for _ in range(50)} == {"a"}
    assert not router.alternative(("a",))
    set_weight(router, b, 1, a)
    assert {(await router.lease()).deployment.label for _ in range(150)} == {"a", "b"}


@virtual
async def test_who_waits_for_a_slot_goes_where_there_is_one_now() -> None:
    a, b, c = (
        deployment("a", max_parallel_requests=1),
        deployment("b", max_parallel_requests=1),
        deployment("c", weight=0),
    )
    router = Router([a, b, c], rng=random.Random(1))
    held = [await router.lease() for _ in range(2)]
    waiting = [asyncio.create_task(router.lease()) for _ in range(2)]
    await settle()
    set_weight(router, a, 0, b, c)
    for lease in held:
        lease.succeeded(1.0)
    await settle()
    assert [task.done() and task.result().deployment.label for task in waiting] == ["b", False]  # a's slot is nobody's
    set_weight(router, c, 1, a, b)
    assert (await waiting[1]).deployment.label == "c"


@virtual
async def test_a_request_that_all_others_have_refused_ends_with_their_word() -> None:
    refusal = AuthenticationError("no such key", status_code=401)
    transports = {
        "a": ScriptedTransport([refusal] * 9),
        "b": ScriptedTransport([ServerError("oops", status_code=500)] * 9),
    }
    a, b = (Deployment(label, each) for label, each in transports.items())
    b.weight = 1e-9  # a is asked first
    router = Router([a, b], rng=random.Random(1))
    dispatcher = Dispatcher(router, RetryPolicy(jitter_s=0), rng=random.Random(1), clock=now)
    task = asyncio.create_task(dispatcher.send(request(), parse_ok))
    await settle()
    set_weight(router, b, 0, a)  # it backs off between two tries at b
    with pytest.raises((AuthenticationError, NoDeploymentError)):
        await task
    assert len(transports["b"].sent_at) == 1


@virtual
async def test_slots_that_come_are_used_and_those_that_go_are_not_taken_again() -> None:
    a = deployment("a", max_parallel_requests=1)
    router = Router([a])
    held = [await router.lease()]
    waiting = [asyncio.create_task(router.lease()) for _ in range(5)]
    await settle()
    a.resize(3)
    await settle()
    assert (a.in_flight, sum(task.done() for task in waiting)) == (3, 2)
    a.resize(1)
    held[0].succeeded(1.0)
    await settle()
    assert (a.in_flight, sum(task.done() for task in waiting)) == (2, 2)
    a.resize(None)
    await asyncio.gather(*waiting)
    assert a.in_flight == 5


@virtual
async def test_a_pause_holds_what_is_not_sent_and_gives_its_grants_back() -> None:
    transport = ScriptedTransport([reply()] * 9, 5.0)
    limiter = LocalRateLimiter(Limits(rpm=60))
    dispatcher = Dispatcher(Router([Deployment("a", transport, limiter)]), clock=now)
    tasks = [asyncio.create_task(dispatcher.send(request(), parse_ok)) for _ in range(20)]
    await settle()
    assert len(transport.sent_at) == 1
    dispatcher.pause(True)
    await asyncio.sleep(60)  # the limiter would let them go
    assert (len(transport.sent_at), tasks[0].done(), tasks[1].done()) == (1, True, False)
    dispatcher.pause(False)
    await settle()
    assert len(transport.sent_at) <= 3  # one came back, one has accrued: no burst of what was let go meanwhile
    await asyncio.gather(*tasks)
    assert len(transport.sent_at) == 20
    assert now() - transport.sent_at[1] > 15


@virtual
async def test_a_stop_ends_a_pause() -> None:
    transport = ScriptedTransport([reply()] * 9)
    dispatcher = Dispatcher(Router([Deployment("a", transport)]), clock=now)
    dispatcher.pause(True)
    task = asyncio.create_task(dispatcher.send(request(), parse_ok))
    await settle()
    dispatcher.stop()
    with pytest.raises(StoppedError):
        await task
    assert not transport.sent_at
