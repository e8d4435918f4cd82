"""LiteLLM's proxy in front of other servers: its limits, its errors, its prices."""

from __future__ import annotations

import pytest

from infermesh import DeploymentConfig, LMClient, RateLimitError, RequestError
from tests.engines.conftest import KEY, Engine


def client(proxy: Engine, model: str, max_retries: int = 0) -> LMClient:
    deployment = DeploymentConfig(f"openai/{model}", proxy.base, api_key=KEY)
    return LMClient("m", deployments={"d": deployment}, timeout=60, max_retries=max_retries, max_parallel_requests=4)


def test_a_canned_answer(proxy: Engine) -> None:
    with client(proxy, "canned") as asking:
        assert asking.generate("hello", max_tokens=20).output_text == "canned answer"


def test_another_wire_behind_it(proxy: Engine) -> None:
    with client(proxy, "claude") as asking:
        result = asking.generate("What is the capital of France?", max_tokens=50)
    assert (result.output_text, result.finish_reason) == ("Paris.", "stop")


def test_a_model_whose_server_is_away(proxy: Engine) -> None:
    with client(proxy, "dead") as asking, pytest.raises(RequestError) as caught:
        asking.generate("hello", max_tokens=20)
    assert caught.value.retryable


def test_the_wait_of_a_limit_is_taken(proxy: Engine) -> None:
    """It refuses what is over a model's ``rpm`` until the minute is over: ``llm_provider-retry-after: 60``."""
    with client(proxy, "limited", max_retries=1) as asking:
        batch = asking.generate_batch([f"row {n}" for n in range(36)], max_tokens=20)
    assert not batch.failures
    limited = [
        attempt.error_type for result in batch if result and result.metrics for attempt in result.metrics.attempts
    ]
    assert RateLimitError.kind in limited
