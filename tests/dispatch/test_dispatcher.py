from __future__ import annotations

import asyncio
import pickle
import random
from contextlib import suppress
from typing import Any

import pytest

from infermesh.dispatch import Deployment, Router
from infermesh.dispatch.dispatcher import Dispatcher
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    InputError,
    MalformedResponseError,
    NoDeploymentError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    StoppedError,
)
from infermesh.limits import Limits, LocalRateLimiter, make_limiter
from infermesh.results import RequestMetrics, TokenUsage
from infermesh.transports.http.failures import NO_ANSWER, connection_failed
from infermesh.types import Reply, Request, RoutingStrategy
from tests.fakes import ScriptedTransport, header, now, parse_ok, reply, request, settle, virtual, worst_window

WALL = 1_700_000_000.0


class Rig:
    """A dispatcher over scripted deployments: ``Rig(a=[...], b=[...])``."""

    def __init__(
        self,
        scripts: dict[str, list[Any]],
        *,
        service_s: float = 0.0,
        retry: RetryPolicy | None = None,
        limits: Limits | None = None,
        strategy: Any = "least-busy",
        **fields: Any,
    ) -> None:
        self.transports = {label: ScriptedTransport(script, service_s) for label, script in scripts.items()}
        self.deployments = {
            label: Deployment(label, transport, None if limits is None else LocalRateLimiter(limits), **fields)
            for label, transport in self.transports.items()
        }
        router = Router(list(self.deployments.values()), strategy, rng=random.Random(1))
        start = now()
        self.dispatcher = Dispatcher(
            router, retry or RetryPolicy(jitter_s=0), rng=random.Random(1), clock=now, wall=lambda: WALL + now() - start
        )

    async def send(self, **fields: Any) -> RequestMetrics:
        _, metrics = await self.dispatcher.send(request(**fields), parse_ok)
        return metrics

    @property
    def idle(self) -> bool:
        return all(d.in_flight == 0 for d in self.deployments.values())


@virtual
async def test_a_request_and_its_metrics() -> None:
    rig = Rig({"a": [reply({"usage": [10, 5]})]}, service_s=2.0, price=lambda usage: usage.total_tokens * 0.1)
    body, metrics = await rig.dispatcher.send(request(), parse_ok)
    assert body == {"usage": [10, 5]}
    assert (metrics.deployment, metrics.retries) == ("a", 0)
    assert metrics.queue_s == 0
    assert metrics.service_s == pytest.approx(2)
    assert metrics.end_to_end_s == pytest.approx(2)
    (attempt,) = metrics.attempts
    assert (attempt.attempt, attempt.deployment, attempt.status_code, attempt.error_type) == (1, "a", 200, None)
    assert (attempt.prompt_tokens, attempt.completion_tokens, attempt.cost_usd) == (10, 5, 1.5)
    assert attempt.started_at == pytest.approx(WALL)
    assert rig.idle


@virtual
async def test_transient_failures_back_off_and_are_told() -> None:
    script = [ServerError("down", status_code=503), RequestTimeoutError("slow"), MalformedResponseError("html")]
    rig = Rig({"a": script}, service_s=1.0)
    start = now()
    metrics = await rig.send()
    assert [round(t - start) for t in rig.transports["a"].sent_at] == [0, 2, 5, 10]  # 1 s each and waits of 1, 2, 4
    assert metrics.retries == 3
    assert [a.error_type for a in metrics.attempts] == ["server", "timeout", "malformed_response", None]
    assert [a.status_code for a in metrics.attempts] == [503, None, None, 200]
    assert [a.attempt for a in metrics.attempts] == [1, 2, 3, 4]
    assert [round(a.queue_s) for a in metrics.attempts] == [0, 1, 2, 4]
    assert [round(a.started_at - WALL) for a in metrics.attempts] == [0, 2, 5, 10]
    assert metrics.queue_s == pytest.approx(7, abs=0.01)
    assert metrics.service_s == pytest.approx(1, abs=0.01)
    assert metrics.end_to_end_s == pytest.approx(11, abs=0.01)


@virtual
async def test_the_last_failure_is_raised_with_its_metrics() -> None:
    rig = Rig({"a": [ServerError(f"down {n}") for n in range(9)]})
    with pytest.raises(ServerError, match="down 3") as caught:
        await rig.send()
    assert caught.value.deployment == "a"
    assert caught.value.metrics is not None
    assert caught.value.metrics.retries == 3
    assert len(caught.value.metrics.attempts) == 4
    assert pickle.loads(pickle.dumps(caught.value)).metrics == caught.value.metrics
    assert rig.idle


@pytest.mark.parametrize("error", [BadRequestError("no", status_code=400), ContentFilterError("no", status_code=400)])
@virtual
async def test_what_stays_wrong_is_sent_once(error: RequestError) -> None:
    rig = Rig({"a": [error], "b": [error]})
    with pytest.raises(type(error)) as caught:
        await rig.send()
    assert caught.value is error
    assert caught.value.metrics is not None
    assert caught.value.metrics.retries == 0
    assert rig.idle


@virtual
async def test_no_retries() -> None:
    rig = Rig({"a": [ServerError("down")]}, retry=RetryPolicy(max_retries=0))
    with pytest.raises(ServerError):
        await rig.send()
    assert len(rig.transports["a"].sent_at) == 1


@pytest.mark.parametrize("error", [ServerError("down"), APIConnectionError("refused"), RequestTimeoutError("slow")])
@virtual
async def test_another_deployment_takes_over_at_once(error: RequestError) -> None:
    rig = Rig({"a": [error], "b": [error]})
    rig.transports["b"].script.clear()
    rig.deployments["b"].in_flight = 1  # so that a is asked first
    start = now()
    metrics = await rig.send()
    assert [a.deployment for a in metrics.attempts] == ["a", "b"]
    assert now() == start
    assert metrics.deployment == "b"


@virtual
async def test_when_all_were_tried_it_backs_off_and_alternates() -> None:
    rig = Rig({"a": [ServerError("a down")] * 9, "b": [ServerError("b down")] * 9})
    start = now()
    with pytest.raises(NoDeploymentError, match=r"a: server: a down.*b down|b: server: b down.*a down") as caught:
        await rig.send()
    error = caught.value
    assert error.metrics is not None
    labels = [a.deployment for a in error.metrics.attempts]
    assert labels in (["a", "b", "a", "b"], ["b", "a", "b", "a"])
    assert now() - start == pytest.approx(2 + 4, abs=0.01)  # none before the second, then 2 ** attempt
    assert set(error.failures) == {"a", "b"}
    assert isinstance(error.__cause__, ServerError)
    assert error.deployment == labels[-1]
    assert error.retryable


@virtual
async def test_a_verdict_on_the_request_is_not_hidden_behind_the_deployments() -> None:
    rig = Rig({"a": [ServerError("down")], "b": [ContentFilterError("no")]})
    rig.deployments["b"].in_flight = 1
    with pytest.raises(ContentFilterError) as caught:
        await rig.send()
    assert caught.value.deployment == "b"
    assert caught.value.metrics is not None
    assert [a.deployment for a in caught.value.metrics.attempts] == ["a", "b"]


@virtual
async def test_nothing_is_held_during_the_back_off() -> None:
    rig = Rig({"a": [ServerError("down")]}, max_parallel_requests=1)
    failing = asyncio.create_task(rig.send())
    await settle()
    start = now()
    assert rig.idle
    for _ in range(5):
        await rig.send()
    assert now() == start
    await failing


@virtual
async def test_a_429_pauses_the_deployment_for_everybody_once() -> None:
    limited = [RateLimitError("slow down", status_code=429, retry_after=10)] * 5
    rig = Rig({"a": limited}, service_s=1.0)
    start = now()
    results = await asyncio.gather(*(rig.send() for _ in range(20)))
    sent = [round(t - start) for t in rig.transports["a"].sent_at]
    assert sent == [0] * 20 + [11, 12, 12, 13, 13]  # one first, then twice as many with each round of answers
    assert sum(metrics.retries for metrics in results) == 5

    rig = Rig({"a": limited[:1]}, service_s=1.0, max_parallel_requests=1)
    start = now()
    results = await asyncio.gather(*(rig.send() for _ in range(4)))
    assert [round(t - start) for t in rig.transports["a"].sent_at] == [0, 11, 12, 13, 14]
    assert sum(metrics.retries for metrics in results) == 1  # those who waited burnt nothing


@virtual
async def test_a_429_goes_to_another_deployment_at_once() -> None:
    rig = Rig({"a": [RateLimitError("slow", retry_after=30)], "b": []})
    rig.deployments["b"].in_flight = 1
    start = now()
    metrics = await rig.send()
    assert [a.deployment for a in metrics.attempts] == ["a", "b"]
    assert now() == start
    assert rig.deployments["a"].limiter.paused_for == pytest.approx(30)
    assert {(await rig.send()).deployment for _ in range(10)} == {"b"}


@virtual
async def test_a_429_everywhere_waits_for_the_first_to_be_ready() -> None:
    rig = Rig({"a": [RateLimitError("slow", retry_after=30)], "b": [RateLimitError("slow", retry_after=20)]})
    start = now()
    metrics = await rig.send()
    assert metrics.deployment == "b"
    assert now() - start == pytest.approx(20, abs=0.01)


@virtual
async def test_a_wait_beyond_the_cap_of_the_back_off_is_taken_within_max_pause() -> None:
    rig = Rig({"a": [RateLimitError("hourly quota", retry_after=3600)]}, retry=RetryPolicy(max_pause_s=3600))
    start = now()
    metrics = await rig.send()
    assert metrics.retries == 1
    assert now() - start == pytest.approx(3600, abs=1)
    assert metrics.queue_s == pytest.approx(3600, abs=1)


@virtual
async def test_a_wait_that_is_too_long_is_the_requests_end_and_says_how_long() -> None:
    day = RateLimitError("daily quota", status_code=429, retry_after=86_400)
    rig = Rig({"a": [day]})
    start = now()
    with pytest.raises(RateLimitError, match=r"asks to wait 86,400 s, longer than max_pause \(60 s\)"):
        await rig.send()
    await rig.send()  # the next one is not held back for a day
    assert now() - start < 10
    rig = Rig({"a": [day], "b": []})
    rig.deployments["b"].in_flight = 1
    assert [attempt.deployment for attempt in (await rig.send()).attempts] == ["a", "b"]


@virtual
async def test_a_429_that_was_waited_for_costs_no_retry() -> None:
    rig = Rig({"a": [RateLimitError("slow", status_code=429, retry_after=5)] * 9}, retry=RetryPolicy(max_retries=1))
    start = now()
    metrics = await rig.send()
    assert len(metrics.attempts) == 10
    assert now() - start == pytest.approx(45, abs=9)


@pytest.mark.parametrize("asked", [5.0, 0.001])
@virtual
async def test_a_server_that_turns_away_for_ever_is_left_within_max_pause(asked: float) -> None:
    rig = Rig({"a": [RateLimitError("slow", status_code=429, retry_after=asked)] * 500})
    start = now()
    with pytest.raises(RateLimitError):
        await rig.send()
    assert 50 <= now() - start < 75
    assert len(rig.transports["a"].sent_at) < 40


@virtual
async def test_after_a_429_the_next_in_line_goes_where_it_is_answered() -> None:
    rig = Rig({"a": [RateLimitError("later", status_code=429, retry_after=50.0)], "b": []}, max_parallel_requests=1)
    rig.transports["a"].service_s, rig.transports["b"].service_s = 1.0, 1.5
    start = now()
    await asyncio.gather(*(rig.send() for _ in range(10)))
    assert now() - start < 20


@pytest.mark.parametrize(("max_pause_s", "within_s"), [(600.0, 150.0), (60.0, 60.0)])
@virtual
async def test_a_row_that_alone_is_turned_away_is_an_error_and_holds_nobody_up(
    max_pause_s: float, within_s: float
) -> None:
    times: list[float] = []

    async def send(sent: Request, timeout: float | None) -> Reply:
        await asyncio.sleep(1)
        if "alone" in sent.payload:
            times.append(now())
            raise RateLimitError("quota", status_code=429, retry_after=20.0)
        return reply()

    rig = Rig({"a": []}, retry=RetryPolicy(max_pause_s=max_pause_s, jitter_s=0))
    rig.transports["a"].send = send  # type: ignore[assignment,method-assign]
    gate, start = asyncio.Semaphore(64), now()
    ended: dict[int, float] = {}

    async def one(n: int) -> None:
        async with gate:
            try:
                await rig.dispatcher.send(Request("chat_completion", {"alone": True} if n == 0 else {}), parse_ok)
            except RateLimitError:
                ended[n] = now() - start

    await asyncio.gather(*(one(n) for n in range(2000)))
    assert list(ended) == [0]
    assert ended[0] < within_s
    assert len(times) <= 8
    assert now() - start < 150


@virtual
async def test_a_server_that_turns_away_half_of_what_it_is_sent_costs_no_row() -> None:
    rng = random.Random(3)

    async def send(sent: Request, timeout: float | None) -> Reply:
        await asyncio.sleep(0.1)
        if rng.random() < 0.5:
            raise RateLimitError("quota", status_code=429, retry_after=1.0)
        return reply()

    rig = Rig({"a": []}, retry=RetryPolicy(max_retries=3, max_pause_s=600.0))
    rig.transports["a"].send = send  # type: ignore[assignment,method-assign]
    await asyncio.gather(*(rig.send() for _ in range(500)))


@pytest.mark.parametrize("status", [500, 503, 529])
@virtual
async def test_a_wait_that_a_failing_server_asks_for_is_respected(status: int) -> None:
    start = now()

    async def answer() -> Reply:
        if now() < start + 300:
            raise ServerError("overloaded", status_code=status, retry_after=start + 300 - now())
        return reply()

    rig = Rig({"a": [answer] * 100}, retry=RetryPolicy(max_pause_s=600.0), patience_s=600.0)
    await asyncio.gather(*(rig.send() for _ in range(5)))
    assert sum(at < start + 300 for at in rig.transports["a"].sent_at) <= 5
    assert len(rig.transports["a"].sent_at) <= 10


@virtual
async def test_a_wait_that_all_deployments_ask_for_is_respected_by_who_comes_later() -> None:
    start = now()

    async def answer() -> Reply:
        if now() < start + 300:
            raise ServerError("overloaded", status_code=529, retry_after=start + 300 - now())
        return reply()

    rig = Rig({"a": [answer] * 99, "b": [answer] * 99}, retry=RetryPolicy(max_pause_s=600.0), service_s=1.0)
    tasks = [asyncio.create_task(rig.send()) for _ in range(6)]
    await asyncio.sleep(10)
    await asyncio.gather(*tasks, *(rig.send() for _ in range(6)))
    sent = [at - start for transport in rig.transports.values() for at in transport.sent_at]
    assert not [at for at in sent if 5 < at < 300]


@pytest.mark.parametrize("kind", [RateLimitError, ServerError])
@virtual
async def test_a_wait_that_is_too_long_is_told_whoever_has_the_last_word(kind: type[RequestError]) -> None:
    rig = Rig({"a": [kind("over", status_code=529, retry_after=7200.0)], "b": [REFUSALS[0]]})
    rig.deployments["b"].in_flight = 1
    with pytest.raises(NoDeploymentError, match=r"over\. It asks to wait 7,200 s, longer than max_pause \(60 s\); b: "):
        await rig.send()


@virtual
async def test_a_429_that_does_not_say_how_long_is_waited_for_where_the_policy_says_so() -> None:
    script = [RateLimitError("slow", status_code=429)] * 6
    policy = RetryPolicy(max_retries=1, max_pause_s=600, waits_unasked=True)
    rig = Rig({"a": list(script)}, retry=policy)
    assert len((await rig.send()).attempts) == 7
    rig = Rig({"a": list(script)}, retry=RetryPolicy(max_retries=1, max_pause_s=600))
    with pytest.raises(RateLimitError):
        await rig.send()
    assert len(rig.transports["a"].sent_at) == 2


async def crowd(rig: Rig, requests: int, window: int) -> float:
    """Seconds that so many requests take, with so many at once."""
    start, gate = now(), asyncio.Semaphore(window)

    async def one() -> None:
        async with gate:
            await rig.send()

    await asyncio.gather(*(one() for _ in range(requests)))
    return now() - start


@pytest.mark.parametrize("idle_s", [0.0, 120.0])
@virtual
async def test_a_429_of_a_lone_request_does_not_bound_those_that_follow(idle_s: float) -> None:
    rig = Rig({"a": [RateLimitError("slow", status_code=429, retry_after=1.0)]}, service_s=1.0)
    await rig.send()
    await asyncio.sleep(idle_s)
    assert await crowd(rig, 2560, 256) < 20


@virtual
async def test_a_slow_start_is_forgotten_while_nobody_asks_and_not_in_a_pause() -> None:
    limited = [RateLimitError("slow", status_code=429, retry_after=90.0)] * 2
    rig = Rig({"a": list(limited)}, service_s=1.0, retry=RetryPolicy(max_pause_s=600, jitter_s=0))
    start = now()
    await asyncio.gather(*(rig.send() for _ in range(20)))
    assert [round(at - start) for at in rig.transports["a"].sent_at[20:]] == [91, 92]
    rig.transports["a"].script.extend(limited)
    await asyncio.gather(rig.send(), rig.send())
    assert await crowd(rig, 2560, 256) > 60
    rig.transports["a"].script.extend(limited)
    await asyncio.gather(rig.send(), rig.send())
    await asyncio.sleep(120)
    assert await crowd(rig, 2560, 256) < 20


@virtual
async def test_a_slow_start_follows_a_long_pause_in_which_others_took_over() -> None:
    limited = RateLimitError("slow", status_code=429, retry_after=90.0)
    rig = Rig({"a": [limited], "b": []}, service_s=1.0, retry=RetryPolicy(max_pause_s=600, jitter_s=0))
    await asyncio.gather(*(rig.send() for _ in range(20)))
    await asyncio.sleep(95)
    sent = len(rig.transports["a"].sent_at)
    await asyncio.gather(*(rig.send() for _ in range(20)))
    assert len(rig.transports["a"].sent_at) == sent + 1


REFUSALS = [
    AuthenticationError("wrong key", status_code=401),
    PermissionDeniedError("no credit", status_code=402),
    NotFoundError("no such model", status_code=404),
    RateLimitError("quota used up", status_code=429, retryable=False),
]


@pytest.mark.parametrize("refusal", REFUSALS)
@virtual
async def test_who_refuses_everybody_is_passed_over_and_costs_no_retry(refusal: RequestError) -> None:
    rig = Rig({"a": [refusal] * 500, "b": []}, retry=RetryPolicy(max_retries=0), service_s=1.0, strategy="least-busy")
    results = []
    for _ in range(20):
        results += await asyncio.gather(*(rig.send() for _ in range(8)))
    assert all(metrics.deployment == "b" for metrics in results)
    assert len(rig.transports["a"].sent_at) < 16
    assert rig.idle


@virtual
async def test_where_all_refuse_each_ones_word_is_told_at_once() -> None:
    rig = Rig({"a": [REFUSALS[0]] * 50, "b": [REFUSALS[2]] * 50})
    start = now()
    for _ in range(10):
        with pytest.raises(NoDeploymentError) as caught:
            await rig.send()
        assert "a: authentication: wrong key" in str(caught.value)
        assert "b: not_found: no such model" in str(caught.value)
        assert not caught.value.retryable
    assert now() - start < 1  # nobody waits for a key to become right


@virtual
async def test_where_all_refuse_and_slots_are_few_nobody_waits() -> None:
    rig = Rig({"a": [REFUSALS[0]] * 500, "b": [REFUSALS[2]] * 500}, service_s=0.1, max_parallel_requests=2)
    start = now()
    results = await asyncio.gather(*(rig.send() for _ in range(100)), return_exceptions=True)
    assert {type(result) for result in results} == {NoDeploymentError}
    assert now() - start < 20
    assert rig.idle


@virtual
async def test_a_refusal_that_ends_is_noticed() -> None:
    rig = Rig({"a": [REFUSALS[0]], "b": []}, service_s=1.0)
    rig.deployments["b"].in_flight = 1
    await rig.send()
    await asyncio.sleep(6)
    used = [(await rig.send()).deployment for _ in range(20)]
    assert "a" in used


@virtual
async def test_a_window_that_is_too_small_sends_the_request_on_and_harms_nobody() -> None:
    small = ContextLengthError("too long", status_code=400)
    rig = Rig({"a": [small, small], "b": [small]}, retry=RetryPolicy(max_retries=0))
    rig.deployments["b"].in_flight = 1
    with pytest.raises(ContextLengthError, match=r"every deployment said so: a: .*; b: "):
        await rig.send()
    assert (await rig.send()).deployment == "b"
    assert rig.deployments["a"].health.accepts(now())


AWAY = [APIConnectionError("refused"), ServerError("loading model", status_code=503)]


@pytest.mark.parametrize("away", AWAY)
@virtual
async def test_a_server_that_is_away_is_waited_for_by_all_and_asked_by_one(away: RequestError) -> None:
    rig = Rig({"a": [away] * 16}, patience_s=600.0, max_parallel_requests=8)
    start = now()
    results = await asyncio.gather(*(rig.send() for _ in range(100)))
    assert len(results) == 100
    assert 30 < now() - start < 200
    assert len(rig.transports["a"].sent_at) == 116
    assert rig.idle


@virtual
async def test_a_request_that_alone_meets_503_does_not_wait_for_ever() -> None:
    rig = Rig({"a": [reply(), *[AWAY[1]] * 50]}, patience_s=600.0)
    await rig.send()
    with pytest.raises(ServerError):
        await rig.send()
    assert len(rig.transports["a"].sent_at) < 8
    await rig.send()  # that it happens to the next one, too, shows that the server is away
    assert len(rig.transports["a"].sent_at) > 50


@pytest.mark.parametrize("retries", [0, 3])
@virtual
async def test_one_row_at_a_time_waits_for_a_server_that_loads(retries: int) -> None:
    rig = Rig({"a": [AWAY[1]] * 12}, patience_s=600.0, retry=RetryPolicy(max_retries=retries))
    for _ in range(10):
        await rig.send()
    assert len(rig.transports["a"].sent_at) == 22


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("broken", [APIConnectionError("the connection broke"), ServerError("gone", status_code=502)])
@virtual
async def test_a_row_that_breaks_its_server_is_an_error_and_the_others_are_not(
    broken: RequestError, window: int
) -> None:
    async def send(sent: Request, timeout: float | None) -> Reply:
        await asyncio.sleep(0.1)
        if "poison" in sent.payload:
            raise broken
        return reply()

    rig = Rig({"a": []}, patience_s=600.0)
    rig.transports["a"].send = send  # type: ignore[assignment,method-assign]
    gate, start = asyncio.Semaphore(window), now()

    async def one(n: int) -> Any:
        async with gate:
            payload = {"poison": True} if n in (3, 50) else {}
            return await rig.dispatcher.send(Request("chat_completion", payload), parse_ok)

    results = await asyncio.gather(*(one(n) for n in range(100)), return_exceptions=True)
    assert [n for n, result in enumerate(results) if isinstance(result, RequestError)] == [3, 50]
    assert now() - start < 60


@virtual
async def test_who_cannot_connect_loses_no_retry_whoever_was_answered_before() -> None:
    refused = connection_failed("a", "http://a", NO_ANSWER, made=False)
    rig = Rig({"a": [reply(), *[refused] * 12]}, patience_s=600.0, retry=RetryPolicy(max_retries=0))
    await rig.send()
    await rig.send()
    assert len(rig.transports["a"].sent_at) == 14


@virtual
async def test_of_two_one_that_is_away_is_not_waited_for() -> None:
    rig = Rig({"a": [AWAY[0]] * 50, "b": []}, patience_s=600.0, service_s=0.1)
    start = now()
    await asyncio.gather(*(rig.send() for _ in range(50)))
    assert now() - start < 5


@virtual
async def test_a_wait_for_a_server_ends_with_stop() -> None:
    rig = Rig({"a": [AWAY[0]] * 500}, patience_s=600.0)
    tasks = [asyncio.create_task(rig.send()) for _ in range(5)]
    await asyncio.sleep(30)
    rig.dispatcher.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {StoppedError}


@virtual
async def test_stopped_twice_is_stopped_once() -> None:
    rig = Rig({"a": []}, service_s=5.0, max_parallel_requests=2)
    tasks = [asyncio.create_task(rig.send()) for _ in range(5)]
    await asyncio.sleep(1)
    rig.dispatcher.stop()
    rig.dispatcher.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [RequestMetrics] * 2 + [StoppedError] * 3


@virtual
async def test_headers_of_a_failure_are_read() -> None:
    failure = RateLimitError("slow", status_code=429)
    failure.header = header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "25s"})
    rig = Rig({"a": [failure]})
    start = now()
    await rig.send()
    assert now() - start == pytest.approx(25, abs=1)
    failure.retry_after = 1.0  # the reset says when the quota is full, and this when it serves
    rig = Rig({"a": [failure]})
    start = now()
    await rig.send()
    assert now() - start == pytest.approx(1, abs=0.5)


@virtual
async def test_a_429_without_a_wait_pauses_for_the_back_off_even_when_it_gives_up() -> None:
    rig = Rig({"a": [RateLimitError("slow")]}, retry=RetryPolicy(max_retries=0, jitter_s=0))
    with pytest.raises(RateLimitError):
        await rig.send()
    assert rig.deployments["a"].limiter.paused_for == pytest.approx(1)


@pytest.mark.parametrize(
    ("error", "requests", "tokens"),
    [
        (RateLimitError("slow", status_code=429, retry_after=0), 1, 30),
        (APIConnectionError("refused"), 1, 30),
        (BadRequestError("no", status_code=400), 1, 0),
        (RequestTimeoutError("slow"), 2, 130),
        (ServerError("down", status_code=500), 2, 130),
    ],
)
@virtual
async def test_what_a_failure_costs_of_the_quotas(error: RequestError, requests: int, tokens: int) -> None:
    rig = Rig({"a": [error, reply({"usage": [20, 10]})]}, limits=Limits(rpd=100, tpd=10_000))
    with suppress(BadRequestError):
        await rig.send(prompt_tokens=50, output_tokens=50)
    limiter = rig.deployments["a"].limiter
    assert isinstance(limiter, LocalRateLimiter)
    assert limiter.used_today is not None
    assert limiter.used_today[1:] == (requests, tokens)


@virtual
async def test_usage_of_a_failed_answer_is_booked() -> None:
    def parse(answer: Reply) -> tuple[None, TokenUsage | None]:
        error = ContentFilterError("filtered")
        error.usage = TokenUsage(7, 3, 10)
        raise error

    rig = Rig({"a": []}, limits=Limits(tpd=1000), price=lambda usage: 0.5)
    with pytest.raises(ContentFilterError) as caught:
        await rig.dispatcher.send(request(50, 50), parse)
    assert caught.value.metrics is not None
    (attempt,) = caught.value.metrics.attempts
    assert (attempt.prompt_tokens, attempt.completion_tokens, attempt.cost_usd) == (7, 3, 0.5)
    assert (attempt.status_code, attempt.error_type) == (200, "content_filter")
    limiter = rig.deployments["a"].limiter
    assert isinstance(limiter, LocalRateLimiter)
    assert limiter.used_today is not None
    assert limiter.used_today.tokens == 10


@virtual
async def test_who_waits_for_a_days_quota_goes_to_a_deployment_that_is_free() -> None:
    rig = Rig({"a": [], "b": []}, service_s=1.0, max_parallel_requests=8)
    start = now()
    limiter = LocalRateLimiter(Limits(rpm=60, rpd=5), wall=lambda: WALL + now() - start)
    rig.deployments["a"].limiter = limiter
    results = await asyncio.gather(*(rig.send() for _ in range(40)))
    assert [metrics.deployment for metrics in results].count("a") == 5
    assert now() - start < 30


@virtual
async def test_who_is_too_large_for_the_rest_of_a_day_goes_to_another_deployment() -> None:
    rig = Rig({"a": [], "b": [], "c": []}, limits=Limits(tpd=1000), service_s=1.0)
    a, b, c = (deployment.limiter for deployment in rig.deployments.values())
    for limiter in (a, b, c):
        assert isinstance(limiter, LocalRateLimiter)
        assert limiter.used_today is not None
        limiter.used_today = limiter.used_today._replace(tokens=0.0 if limiter is c else 990.0)
    start = now()
    results = await asyncio.gather(*(rig.send(prompt_tokens=50, output_tokens=50) for _ in range(4)))
    assert {metrics.deployment for metrics in results} == {"c"}
    assert now() - start < 10
    last = asyncio.create_task(rig.send(prompt_tokens=900, output_tokens=50))  # nobody takes it: it waits, and looks
    await asyncio.sleep(300)
    assert not last.done()
    assert isinstance(b, LocalRateLimiter)
    assert b.used_today is not None
    b.used_today = b.used_today._replace(tokens=0.0)
    assert (await last).deployment == "b"
    assert rig.idle


@virtual
async def test_headers_that_ask_for_a_long_wait_are_a_refusal() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12h0m0s"}
    rig = Rig({"a": [reply(headers=headers)]}, limits=Limits(rpm=600))
    await rig.send()
    start = now()
    for _ in range(3):
        with pytest.raises(RateLimitError, match=r"It asks to wait 43,[0-9]{3} s, longer than max_pause") as caught:
            await rig.send()
        assert caught.value.metrics is not None
        assert caught.value.metrics.attempts == []
    assert now() - start < 1
    assert rig.idle
    rig = Rig({"a": [reply(headers=headers)], "b": []}, limits=Limits(rpm=6000))
    rig.deployments["b"].in_flight = 1
    await rig.send()
    assert {(await rig.send()).deployment for _ in range(5)} == {"b"}


@virtual
async def test_headers_are_observed() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "25s"}
    rig = Rig({"a": [reply(headers=headers)]}, limits=Limits(rpm=6000))
    start = now()
    await rig.send()
    await rig.send()
    assert now() - start == pytest.approx(25, abs=0.1)
    assert header(headers)("X-RateLimit-Remaining-Requests") == "0"


@virtual
async def test_an_input_error_was_never_sent() -> None:
    rig = Rig({"a": [InputError("no such file")]}, limits=Limits(rpd=10))
    with pytest.raises(InputError) as caught:
        await rig.send()
    assert caught.value.metrics is not None
    assert caught.value.metrics.attempts == []
    limiter = rig.deployments["a"].limiter
    assert isinstance(limiter, LocalRateLimiter)
    assert limiter.used_today is not None
    assert limiter.used_today.requests == 0


@virtual
async def test_every_attempt_has_the_whole_timeout() -> None:
    rig = Rig({"a": [ServerError("down")]})
    await rig.dispatcher.send(request(), parse_ok, 30.0)
    await rig.dispatcher.send(request(), parse_ok)
    assert rig.transports["a"].timeouts == [30.0, 30.0, None]


@pytest.mark.parametrize("at", ["slot", "limit", "send", "back-off"])
@virtual
async def test_cancelled_anywhere_it_holds_nothing(at: str) -> None:
    script = [ServerError("down")] if at == "back-off" else []
    rig = Rig({"a": script}, service_s=5.0, max_parallel_requests=1, limits=Limits(rpm=60_000))
    deployment = rig.deployments["a"]
    blocker = asyncio.create_task(rig.send()) if at == "slot" else None
    await settle()
    if at == "limit":
        deployment.limiter.pause(100)
    task = asyncio.create_task(rig.send())
    await asyncio.sleep(5.5 if at == "back-off" else 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if blocker is not None:
        await blocker
    assert rig.idle
    assert deployment.limiter.waiting == 0
    await rig.send()
    assert rig.idle


@pytest.mark.parametrize("where", ["send", "parse"])
@virtual
async def test_a_bug_propagates_and_holds_nothing(where: str) -> None:
    def parse(answer: Reply) -> tuple[None, None]:
        raise KeyError("bug")

    rig = Rig({"a": [KeyError("bug")] if where == "send" else []}, max_parallel_requests=1)
    with pytest.raises(KeyError):
        await rig.dispatcher.send(request(), parse)
    assert rig.idle


@virtual
async def test_a_dead_replica_costs_a_job_little() -> None:
    down = [APIConnectionError("refused")] * 100_000
    rig = Rig({"dead": down, "a": [], "b": []}, service_s=0.1, max_parallel_requests=8, strategy="simple-shuffle")
    gate = asyncio.Semaphore(24)

    async def one() -> RequestMetrics:
        async with gate:
            return await rig.send()

    start = now()
    results = await asyncio.gather(*(one() for _ in range(4000)))
    assert {metrics.deployment for metrics in results} == {"a", "b"}
    assert now() - start < 1.1 * 4000 / 16 * 0.1
    assert len(rig.transports["dead"].sent_at) < 40


@virtual
async def test_an_outage_of_all_replicas_is_survived_and_probed() -> None:
    outage_ends = now() + 30

    async def answer() -> Reply:
        if now() < outage_ends:
            raise APIConnectionError("refused")
        return reply()

    rig = Rig({"a": [answer] * 100_000, "b": [answer] * 100_000}, service_s=0.1, max_parallel_requests=8)
    start = now()
    results = await asyncio.gather(*(rig.send() for _ in range(64)), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, NoDeploymentError) for error in failed)
    assert len(failed) <= 8
    assert now() - start < 60
    assert rig.idle


@virtual
async def test_a_long_cooldown_of_all_is_waited_for_no_longer_than_a_back_off() -> None:
    rig = Rig({"a": [], "b": []})
    for deployment in rig.deployments.values():
        deployment.health.cool_until = now() + 600
    start = now()
    await rig.send()
    assert now() - start == pytest.approx(60, abs=0.1)


@virtual
async def test_waiting_for_a_limit_holds_no_slot_that_another_could_use() -> None:
    rig = Rig({"a": []}, max_parallel_requests=2, limits=Limits(rpm=600), service_s=0.01)
    await asyncio.gather(*(rig.send() for _ in range(100)))
    times = rig.transports["a"].sent_at
    assert rig.transports["a"].peak <= 2
    assert worst_window(times, 1.0) <= 12
    assert times[-1] - times[0] == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize("seed", range(8))
@virtual
async def test_in_any_weather_nothing_hangs_and_nothing_leaks(seed: int) -> None:
    rng = random.Random(seed)
    account = LocalRateLimiter(Limits(rpm=6000, tpm=6_000_000))

    async def weather() -> Reply:
        await asyncio.sleep(rng.random())
        kind = rng.random()
        if kind < 0.1:
            raise RateLimitError("slow", status_code=429, retry_after=rng.choice([None, 0, 3, 90]))
        if kind < 0.3:
            raise rng.choice([ServerError("down"), APIConnectionError("reset"), RequestTimeoutError("slow")])
        if kind < 0.35:
            raise BadRequestError("no", status_code=400)
        return reply({"usage": [rng.randint(1, 500), rng.randint(0, 500)]})

    deployments = [
        Deployment(
            label,
            ScriptedTransport([weather] * 100_000),
            make_limiter(Limits(rpm=rng.choice([600, 6000])), *([account] if shared else [])),
            max_parallel_requests=slots,
        )
        for label, slots, shared in (("a", 3, True), ("b", 5, False), ("c", 2, True))
    ]
    strategies: list[RoutingStrategy] = ["simple-shuffle", "least-busy", "latency-based-routing"]
    dispatchers = [
        Dispatcher(Router(some, strategies[(n + seed) % 3], rng=rng), rng=rng, clock=now)
        for n, some in enumerate([deployments, deployments[:2], deployments[1:], deployments[:1]])
    ]
    tasks = [
        asyncio.create_task(rng.choice(dispatchers).send(request(rng.randint(1, 300)), parse_ok)) for _ in range(600)
    ]
    for task in rng.sample(tasks, 200):
        asyncio.get_running_loop().call_later(rng.random() * 60, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, (tuple, RequestError, asyncio.CancelledError)) for r in results)
    assert sum(isinstance(r, tuple) for r in results) > 200
    assert [d.in_flight for d in deployments] == [0, 0, 0]
    assert [d.limiter.waiting for d in deployments] == [0, 0, 0]
    for deployment in deployments:
        transport = deployment.transport
        assert isinstance(transport, ScriptedTransport)
        assert transport.in_flight == 0
        assert transport.peak <= (deployment.max_parallel_requests or 0)
