"""The client against services in processes of their own: one dies, one counts strictly, one is behind LiteLLM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from infermesh import AuthenticationError, DeploymentConfig, LMClient
from infermesh.simulator import Faults, SimulatorProcess, SimulatorSettings
from tests.support import totals, wav

MODEL = "hosted_vllm/any"
RPM = 6000


def start(**settings: Any) -> SimulatorProcess:
    return SimulatorProcess(SimulatorSettings(**settings))


@pytest.mark.parametrize("strategy", ["simple-shuffle", "least-busy", "latency-based-routing"])
@pytest.mark.long
def test_a_replica_that_dies_in_the_middle_costs_no_item(strategy: Any) -> None:
    doomed, survivor = start(latency_s=0.01), start(latency_s=0.01)
    try:
        with LMClient(
            "llama",
            deployments={
                "doomed": {"model": MODEL, "api_base": doomed.url},
                "survivor": {"model": MODEL, "api_base": survivor.url},
            },
            routing_strategy=strategy,
            max_parallel_requests=16,
        ) as client:

            def on_progress(done: int, total: int | None) -> None:
                if done == 100:
                    assert totals(doomed)["received"]
                    doomed.close()

            batch = client.generate_batch([f"Parcel number {n}." for n in range(400)], on_progress=on_progress)
        assert not batch.failures
        assert [str(result) for result in batch] == [f"Parcel number {n}." for n in range(400)]
        answered = {result.metrics.deployment for result in batch if result and result.metrics}
        assert answered == {"doomed", "survivor"}
        assert totals(survivor)["repeated_requests"] == 0
    finally:
        doomed.close()
        survivor.close()


@pytest.mark.long
def test_a_strict_server_never_says_no_and_the_pace_is_kept() -> None:
    count = 500
    with (
        start(rpm=RPM) as service,
        LMClient(MODEL, api_base=service.url, rpm=RPM, max_parallel_requests=32) as client,
    ):
        client.generate("Warm up.")
        started = time.perf_counter()
        batch = client.generate_batch([f"Parcel number {n}." for n in range(count)])
        took = time.perf_counter() - started
        assert not batch.failures
        assert totals(service)["status"] == {"200": count + 1}
    assert took >= 0.98 * (count - 1) / (RPM / 60)
    assert took <= count / (RPM / 60) / 0.7


@pytest.mark.long
def test_two_clients_deployments_keep_their_own_limits_and_the_accounts() -> None:
    with start() as service:
        deployments = {
            "slow": DeploymentConfig(MODEL, api_base=service.url, rpm=600),
            "free": DeploymentConfig(MODEL, api_base=service.url),
        }
        with LMClient("llama", deployments=deployments, rpm=3000, max_parallel_requests=16) as client:
            started = time.perf_counter()
            batch = client.generate_batch([f"Parcel number {n}." for n in range(100)])
            took = time.perf_counter() - started
    assert not batch.failures
    labels = [result.metrics.deployment for result in batch if result and result.metrics]
    assert labels.count("slow") <= 10 * took + 5
    assert took >= 0.95 * 100 / 50


@pytest.fixture(scope="module")
def service() -> Iterator[SimulatorProcess]:
    with start(api_key="sk-litellm-0123456789", faults=Faults()) as running:
        yield running


@pytest.mark.long
def test_through_litellm_results_and_errors_are_the_same(
    service: SimulatorProcess, caplog: pytest.LogCaptureFixture
) -> None:
    def client(key: str) -> LMClient:
        config = DeploymentConfig(MODEL, api_base=service.url, api_key=key, transport="litellm")
        return LMClient("llama", deployments={"proxy": config}, max_parallel_requests=4)

    with client("sk-litellm-0123456789") as right:
        batch = right.generate_batch([f"Parcel number {n}." for n in range(10)])
        assert batch.failures == {}
        assert caplog.text.count("LiteLLM is loaded") <= 1  # four requests are the first
        assert [str(result) for result in batch] == [f"Parcel number {n}." for n in range(10)]
        assert len(right.embed("Hello.").embedding) == 64
        assert right.transcribe(wav("Good morning.")).text == "Good morning."
    with client("sk-wrong-0123456789") as wrong:
        with pytest.raises(AuthenticationError) as caught:
            wrong.generate("Hello.")
        assert "sk-wrong" not in str(caught.value) + repr(caught.value.__cause__)
