"""Latency, capacity, quotas, faults and counts."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from pydantic import ValidationError

from infermesh.simulator.errors import ApiError
from infermesh.simulator.quota import Quota, format_duration
from infermesh.simulator.service import FaultPlan, Service
from infermesh.simulator.settings import BatchSettings, Faults, SimulatorSettings
from tests.support import wait_until

Start = Callable[..., Any]
Ask = Callable[..., Any]

ANY_FORMAT = {"type": "json_object"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def together(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_latency_and_decode_speed(start: Start, chat: Ask, ask: Ask) -> None:
    simulator = start(latency_s=0.05, embedding_latency_factor=0, tokens_per_second=100)
    prompt = "Forty characters make ten of our tokens."
    assert 0.15 <= timed(lambda: chat(simulator, prompt)) < 0.5
    assert 0.15 <= timed(lambda: chat(simulator, prompt, stream=True)) < 0.5
    assert timed(lambda: ask(simulator, "/v1/embeddings", {"model": "m", "input": "x"})) < 0.05


def test_latencies_are_lognormal(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async def think(service: Service) -> None:
        for _ in range(2001):
            await service.think("chat")

    monkeypatch.setattr(asyncio, "sleep", nap)
    settings = SimulatorSettings(latency_s=2, latency_spread=0.5, seed=3)
    asyncio.run(think(Service(settings)))
    first = naps.copy()
    naps.clear()
    asyncio.run(think(Service(settings)))
    assert naps == first
    ordered = sorted(first)
    assert ordered[1000] == pytest.approx(2, rel=0.05)
    # One sigma up: e to the 0.5.
    assert ordered[1682] == pytest.approx(2 * 1.6487, rel=0.08)


def test_capacity_makes_others_wait(start: Start, chat: Ask) -> None:
    simulator = start(latency_s=0.05, capacity=2)
    calls = [lambda: chat(simulator) for _ in range(6)]
    assert 0.15 <= timed(lambda: together(*calls)) < 1
    counts = simulator.stats()["endpoints"]["chat"]
    assert 2 < counts["max_in_flight"] <= 6
    assert counts["in_flight"] == 0


def test_a_client_that_leaves_frees_its_place(start: Start, chat: Ask) -> None:
    simulator = start(latency_s=0.3, capacity=1)

    def counts() -> dict[str, Any]:
        found: dict[str, Any] = simulator.stats()["endpoints"]["chat"]
        return found

    async def leave() -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(f"{simulator.url}/chat/completions", json=body))
            await asyncio.to_thread(wait_until, lambda: counts()["in_flight"] == 1, "the request")
            asking.cancel()

    asyncio.run(leave())
    assert chat(simulator).status == 200
    assert (counts()["received"], counts()["answered"], counts()["abandoned"]) == (2, 1, 1)


def test_durations() -> None:
    written = {0: "0ms", 0.12: "120ms", 1: "1s", 1.5: "1.5s", 60: "1m0s", 360: "6m0s", 61.25: "1m1.25s", 3600: "1h0m0s"}
    assert {seconds: format_duration(seconds) for seconds in written} == written


def test_no_sixty_seconds_hold_more_than_rpm() -> None:
    clock = Clock()
    quota = Quota(2, None, clock)
    quota.admit(1)
    clock.now += 40
    headers = quota.admit(1)
    assert headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    for _ in range(5):
        with pytest.raises(ApiError) as caught:
            quota.admit(1)
        assert caught.value.headers["retry-after"] == "20"
        assert caught.value.headers["retry-after-ms"] == "20000"
    # Refusals are not charged: the first request leaves the window, and one more fits.
    clock.now += 20
    quota.admit(1)
    with pytest.raises(ApiError) as caught:
        quota.admit(1)
    assert caught.value.headers["retry-after"] == "40"


def test_tpm() -> None:
    clock = Clock()
    quota = Quota(100, 50, clock)
    quota.admit(30)
    clock.now += 10
    quota.admit(20)
    clock.now += 0.5
    with pytest.raises(ApiError) as caught:
        quota.admit(31)
    assert caught.value.kind == "tokens"
    assert caught.value.headers["retry-after"] == "60"
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "0"
    assert caught.value.headers["x-ratelimit-remaining-requests"] == "98"
    with pytest.raises(ApiError) as caught:
        quota.admit(51)
    assert "retry-after" not in caught.value.headers


def test_quotas_on_the_wire(start: Start, chat: Ask) -> None:
    simulator = start(rpm=2, tpm=1000)
    first = chat(simulator)
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - first.json()["usage"]["total_tokens"])
    chat(simulator)
    refused = chat(simulator)
    assert (refused.status, refused.code()) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-limit-tokens"] == "1000"
    assert chat(start()).headers["x-ratelimit-limit-requests"] is None
    assert simulator.stats()["endpoints"]["chat"]["status"] == {"200": 2, "429": 1}


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"),
    [("rate_limit", 429, "0.25"), ("unavailable", 503, "0.25"), ("server_error", 500, None)],
)
def test_error_faults(start: Start, chat: Ask, ask: Ask, fault: str, status: int, retry_after: str | None) -> None:
    simulator = start(faults={fault: 1, "retry_after_s": 0.25, "endpoints": ["chat"]})
    reply = chat(simulator)
    assert reply.status == status
    assert reply.headers["retry-after"] == retry_after
    assert reply.json()["error"]["message"]
    assert ask(simulator, "/v1/embeddings", {"model": "m", "input": "x"}).status == 200
    counts = simulator.stats()["endpoints"]
    assert counts["chat"]["faults"] == {fault: 1}
    assert counts["embeddings"]["faults"] == {}


@pytest.mark.parametrize("stream", [False, True])
def test_drop_and_truncate(start: Start, chat: Ask, stream: bool) -> None:
    dropping = start(faults={"drop": 1})
    with pytest.raises(RemoteDisconnected):
        chat(dropping, stream=stream)
    counts = dropping.stats()["endpoints"]["chat"]
    assert (counts["received"], counts["answered"], counts["abandoned"], counts["in_flight"]) == (1, 0, 0, 0)
    truncating = start(faults={"truncate": 1})
    with pytest.raises(IncompleteRead) as caught:
        chat(truncating, stream=stream)
    assert len(caught.value.partial) > 10
    assert truncating.stats()["endpoints"]["chat"]["faults"] == {"truncate": 1}


def test_malformed(start: Start, chat: Ask) -> None:
    simulator = start(faults={"malformed": 1})
    reply = chat(simulator)
    assert reply.status == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()
    first = chat(simulator, stream=True).body.split(b"\n\n")[0].removeprefix(b"data: ")
    with pytest.raises(json.JSONDecodeError):
        json.loads(first)


def test_invalid_json_content(start: Start, chat: Ask) -> None:
    simulator = start(faults={"invalid_json_content": 1})
    with pytest.raises(json.JSONDecodeError):
        json.loads(chat(simulator, response_format=ANY_FORMAT).text())
    assert chat(simulator, "Plain words.").text() == "Plain words."
    counts = simulator.stats()["endpoints"]["chat"]
    assert (counts["faults"], counts["unique_requests"]) == ({"invalid_json_content": 1}, 1)


def test_hang_until_the_client_leaves(start: Start) -> None:
    simulator = start(faults={"hang": 1})
    address = urlsplit(simulator.url)
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection((address.hostname, address.port), timeout=0.1) as connection:
        connection.sendall(head + body)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert simulator.stats()["endpoints"]["chat"]["in_flight"] == 1
    deadline = time.monotonic() + 5
    while simulator.stats()["endpoints"]["chat"]["in_flight"] and time.monotonic() < deadline:
        pass
    counts = simulator.stats()["endpoints"]["chat"]
    assert (counts["in_flight"], counts["abandoned"], counts["faults"]) == (0, 1, {"hang": 1})


def test_hang_ends_by_itself(start: Start, chat: Ask) -> None:
    with pytest.raises(RemoteDisconnected):
        chat(start(faults={"hang": 1, "hang_s": 0.01}))


def test_faults_follow_the_seed_and_the_order() -> None:
    faults = Faults(rate_limit=0.2, drop=0.1, endpoints=["chat", "responses"])
    first, again, other = FaultPlan(faults, 1), FaultPlan(faults, 1), FaultPlan(faults, 2)
    drawn = [first.draw("chat") for _ in range(2000)]
    # Requests to another endpoint in between change nothing.
    repeated = [(again.draw("responses"), again.draw("chat"))[1] for _ in range(2000)]
    assert repeated == drawn
    assert [other.draw("chat") for _ in range(2000)] != drawn
    assert drawn.count("rate_limit") == pytest.approx(400, rel=0.15)
    assert drawn.count("drop") == pytest.approx(200, rel=0.2)
    assert {first.draw("embeddings") for _ in range(100)} == {None}


def test_certain_faults_are_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    # These add up to a little less than 1 in floating point.
    plan = FaultPlan(Faults(rate_limit=0.7, drop=0.1, hang=0.1, truncate=0.1), 0)
    assert None not in {plan.draw("chat") for _ in range(1000)}
    monkeypatch.setattr("random.Random.random", lambda self: math.nextafter(1, 0))
    assert plan.draw("chat") == "truncate"


@pytest.mark.parametrize(
    "settings", [{"faults": {"drop": 0.6, "hang": 0.6}}, {"faults": {"drop": 2}}, {"unknown": 1}, {"rpm": 0}]
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SimulatorSettings(**settings)


def test_every_setting_is_described() -> None:
    for model in (SimulatorSettings, Faults, BatchSettings):
        assert all(field.description for field in model.model_fields.values())


def test_counts_show_what_was_asked_twice(start: Start, chat: Ask, upload: Ask, wav: Callable[..., bytes]) -> None:
    simulator = start(faults={"server_error": 1, "endpoints": ["completions"]})
    chat(simulator, "One.")
    chat(simulator, "Two.")
    # The model does not decide whether a request is the same: another deployment may call it something else.
    chat(simulator, "Two.", model="another")
    chat(simulator, n=0)
    for seconds in (1, 2, 1):
        upload(simulator, wav(seconds))
    stats = simulator.stats(hashes=True)
    counts = stats["endpoints"]["chat"]
    assert (counts["unique_requests"], counts["repeated_requests"]) == (2, 1)
    assert counts["status"] == {"200": 3, "400": 1}
    assert len(set(counts["answered_hashes"])) == 2
    assert {len(value) for value in counts["answered_hashes"]} == {16}
    clips = stats["endpoints"]["transcriptions"]
    assert (clips["unique_requests"], clips["repeated_requests"]) == (2, 1)
    totals = stats["totals"]
    assert (totals["received"], totals["answered"], totals["max_in_flight"]) == (7, 7, 1)
    assert totals["status"] == {"200": 6, "400": 1}
    assert "answered_hashes" not in simulator.stats()["endpoints"]["chat"]
    simulator.reset()
    assert simulator.stats()["totals"]["received"] == simulator.stats()["totals"]["unique_requests"] == 0


def test_a_failed_request_may_be_repeated(start: Start, chat: Ask) -> None:
    # Of a request's two fates in this stream, the first is a fault: to ask again is no repetition.
    simulator = start(seed=1, faults={"malformed": 0.5})
    for _ in range(20):
        chat(simulator, "The same.")
    counts = simulator.stats()["endpoints"]["chat"]
    sound = 20 - counts["faults"]["malformed"]
    assert 0 < sound < 20
    assert (counts["unique_requests"], counts["repeated_requests"]) == (1, sound - 1)


def test_health_and_ids(start: Start, ask: Ask) -> None:
    simulator = start()
    replies = [ask(simulator, "/health", None, method="GET") for _ in range(2)]
    assert replies[0].json() == {"status": "ok"}
    assert replies[0].headers["x-request-id"] != replies[1].headers["x-request-id"]
