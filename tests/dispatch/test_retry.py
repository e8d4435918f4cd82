from __future__ import annotations

import random
from typing import Any

import pytest

from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ConfigError,
    ContentFilterError,
    InputError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)

RNG = random.Random(0)


@pytest.mark.parametrize(("attempt", "least"), [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (7, 60), (5000, 60)])
def test_delay_doubles_up_to_the_cap_with_half_a_second_of_jitter(attempt: int, least: float) -> None:
    policy = RetryPolicy(max_retries=10_000)
    delays = [policy.decide(ServerError("down"), attempt, RNG) for _ in range(200)]
    assert all(delay is not None and least <= delay <= least + 0.5 for delay in delays)
    assert len(set(delays)) > 100


def test_jitter_spans_its_whole_width() -> None:
    delays = [RetryPolicy().delay(0, None, RNG) for _ in range(1000)]
    assert min(delays) < 1.02
    assert max(delays) > 1.48


@pytest.mark.parametrize(("asked", "least"), [(7.0, 7), (0.0, 0), (0.25, 0.25), (300.0, 300), (-5.0, 0)])
def test_the_servers_wait_replaces_the_power_and_its_cap(asked: float, least: float) -> None:
    delay = RetryPolicy(max_pause_s=300).decide(RateLimitError("slow down", retry_after=asked), 2, RNG)
    assert delay is not None
    assert least <= delay <= least + 0.5


def test_a_wait_that_is_too_long_is_not_taken() -> None:
    asked = RateLimitError("come back tomorrow", retry_after=86_400)
    assert RetryPolicy().decide(asked, 0, RNG) is None
    assert RetryPolicy(max_pause_s=86_400).decide(asked, 0, RNG) is not None


@pytest.mark.parametrize(
    "kind", [RateLimitError, RequestTimeoutError, APIConnectionError, ServerError, MalformedResponseError]
)
def test_what_passes_is_retried(kind: type[RequestError]) -> None:
    assert RetryPolicy().decide(kind("x"), 0, RNG) is not None


@pytest.mark.parametrize(
    "kind",
    [AuthenticationError, BadRequestError, ContentFilterError, InputError, NotFoundError, PermissionDeniedError],
)
def test_what_stays_wrong_is_not_retried(kind: type[RequestError]) -> None:
    assert RetryPolicy().decide(kind("x", retry_after=1), 0, RNG) is None


def test_an_error_may_overrule_its_class() -> None:
    assert RetryPolicy().decide(ServerError("quota gone", retryable=False), 0, RNG) is None
    assert RetryPolicy().decide(BadRequestError("409", retryable=True), 0, RNG) is not None


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_attempts_end(max_retries: int) -> None:
    policy = RetryPolicy(max_retries=max_retries)
    decisions = [policy.decide(ServerError("down"), attempt, RNG) for attempt in range(6)]
    assert sum(decision is not None for decision in decisions) == max_retries


def test_the_same_seed_gives_the_same_delays() -> None:
    def delays() -> list[float]:
        rng = random.Random(7)
        return [RetryPolicy().delay(n, None, rng) for n in range(5)]

    assert delays() == delays()


@pytest.mark.parametrize(
    "fields", [{"max_retries": -1}, {"base": 0.5}, {"cap_s": -1}, {"jitter_s": -0.1}, {"cap_s": float("nan")}]
)
def test_nonsense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        RetryPolicy(**fields)
