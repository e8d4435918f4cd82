"""The estimate, from facts alone."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.limits import steady_rate
from infermesh.plan import QuotaFacts, estimate
from infermesh.plan.estimate import Estimate, helpful_workers
from infermesh.plan.facts import DeploymentFacts, Latency, ServiceFacts, StageFacts

ONE = {"d": DeploymentFacts("d")}


def stage(name: str = "a", rows: int | None = 1000, latency_s: float | None = 1.0, **fields: Any) -> StageFacts:
    latency = None if latency_s is None else Latency(latency_s, latency_s, "told", fields.pop("hold_s", None))
    given: dict[str, Any] = {"deployments": ("d",), "prompt_tokens": 30.0, "completion_tokens": 10.0, "window": 10}
    return StageFacts(name, "generate", rows, "exact", latency=latency, **(given | fields))


def limited(**limits: Any) -> tuple[dict[str, DeploymentFacts], dict[str, QuotaFacts]]:
    return {"d": DeploymentFacts("d", quota="deployment d")}, {"deployment d": QuotaFacts("deployment d", **limits)}


def bound(found: Estimate) -> str:
    assert found.binding is not None
    return found.binding.name


def near(found: Estimate, seconds: float) -> bool:
    return found.wall_s == pytest.approx(seconds, rel=0.02)


def test_concurrency() -> None:
    found = estimate([stage()], ONE, {})
    assert bound(found) == "concurrency of stage a"
    assert near(found, 100.5)
    assert (found.stages[0].requests, found.stages[0].prompt_tokens) == (1000, 30_000)
    assert found.complete


def test_fewer_rows_than_places_take_one_request() -> None:
    assert near(estimate([stage(rows=3, latency_s=20.0)], ONE, {}), 20.0)


def test_the_slots_of_a_deployment_are_shared_by_stages() -> None:
    stages = [stage("a", window=50), stage("b", window=50)]
    found = estimate(stages, {"d": DeploymentFacts("d", slots=20)}, {})
    assert bound(found) == "max_parallel_requests of deployment d"
    assert near(found, 100.5)


def test_stages_side_by_side_take_as_long_as_the_slowest() -> None:
    stages = [stage("a", window=100), stage("b", window=10, requires=("a",)), stage("c", window=100, requires=("b",))]
    found = estimate(stages, ONE, {})
    assert bound(found) == "concurrency of stage b"
    assert near(found, 100.5 + 1 + 1)


@pytest.mark.parametrize(("limit", "amount"), [("rpm", 1000), ("tpm", 40_000)])
def test_a_rate(limit: str, amount: int) -> None:
    deployments, quotas = limited(**{limit: amount / 10})
    found = estimate([stage(window=100)], deployments, quotas)
    assert bound(found) == f"{limit} of deployment d"
    assert near(found, amount / steady_rate(amount / 10) + 1)
    assert near(found, 600)


def test_a_burst_goes_first() -> None:
    deployments, quotas = limited(rpm=100, max_request_burst=500)
    assert near(estimate([stage(window=1000)], deployments, quotas), 302)


def test_deployments_of_one_model_add_up() -> None:
    deployments = {name: DeploymentFacts(name, quota=f"deployment {name}") for name in "de"}
    quotas = {f"deployment {name}": QuotaFacts(f"deployment {name}", rpm=300) for name in "de"}
    found = estimate([stage(window=100, deployments=("d", "e"))], deployments, quotas)
    assert bound(found) == "rpm of deployment d, deployment e together"
    assert near(found, 100)


def test_an_account_is_counted_once_for_its_deployments() -> None:
    deployments = {name: DeploymentFacts(name, quota="account x") for name in "de"}
    found = estimate([stage(deployments=("d", "e"))], deployments, {"account x": QuotaFacts("account x", rpm=300)})
    assert bound(found) == "rpm of account x"
    assert near(found, 201)


def test_a_deployment_without_a_limit_takes_what_the_other_cannot() -> None:
    deployments = {"d": DeploymentFacts("d", quota="deployment d"), "e": DeploymentFacts("e")}
    quotas = {"deployment d": QuotaFacts("deployment d", rpm=1)}
    assert bound(estimate([stage(deployments=("d", "e"))], deployments, quotas)) == "concurrency of stage a"


def test_stages_that_share_a_deployment_are_bound_by_it_together() -> None:
    """Alone each of them could use another one; together they outrun the three."""
    deployments = {name: DeploymentFacts(name, quota=f"deployment {name}") for name in "def"}
    quotas = {f"deployment {name}": QuotaFacts(f"deployment {name}", rpm=100) for name in "def"}
    stages = [stage("a", window=100, deployments=("d", "e")), stage("b", window=100, deployments=("e", "f"))]
    found = estimate(stages, deployments, quotas)
    assert bound(found) == "rpm of deployment d, deployment e, deployment f together"
    assert near(found, 400)


def test_micro_batches_are_requests() -> None:
    found = estimate([stage(batch=32, window=1)], ONE, {})
    assert found.stages[0].requests == 32
    assert near(found, 32.5)


def test_micro_batches_of_slow_rows_are_half_empty() -> None:
    """Ten rows a second come from upstream, and a batch waits a quarter of one."""
    stages = [stage("a", window=10), stage("b", batch=32, window=64, latency_s=0.1, requires=("a",))]
    found = estimate(stages, ONE, {})
    requests = found.stages[1].requests
    assert requests is not None
    assert 1000 / 4 < requests < 1000 / 3


def test_the_simulator() -> None:
    deployments = {"d": DeploymentFacts("d", embedded=True)}
    found = estimate([stage(hold_s=1.0, window=64)], deployments, {}, ServiceFacts(capacity=10))
    assert bound(found) == "capacity of the simulator"
    assert near(found, 100.5)
    strict = estimate([stage(window=1000)], deployments, {}, ServiceFacts(rpm=400))
    assert bound(strict) == "rpm of the simulator"
    assert near(strict, 121)


def test_a_job_of_days() -> None:
    deployments, quotas = limited(rpd=10_000)
    found = estimate([stage(rows=55_000, window=1000)], deployments, quotas, until_midnight_s=3600)
    assert found.days == 6
    assert bound(found) == "rpd of deployment d"
    assert found.wall_s == pytest.approx(3600 + 4 * 86400, rel=0.001)


@pytest.mark.parametrize(
    ("rows", "used", "days"), [(1000, 9000, None), (1001, 9000, 2), (10_000, 10_000, 1), (10_001, 10_000, 2)]
)
def test_what_today_has_used(rows: int, used: int, days: int | None) -> None:
    deployments, quotas = limited(rpd=10_000, used_requests=used)
    assert estimate([stage(rows=rows)], deployments, quotas).days == days


def test_tokens_a_day() -> None:
    deployments, quotas = limited(tpd=10_000, used_tokens=1)
    assert estimate([stage()], deployments, quotas).days == 5


def test_without_a_latency_only_limits_count() -> None:
    deployments, quotas = limited(rpm=100)
    found = estimate([stage(latency_s=None)], deployments, quotas)
    assert bound(found) == "rpm of deployment d"
    assert not found.complete


def test_without_tokens_a_token_limit_is_not_guessed() -> None:
    deployments, quotas = limited(tpm=1)
    found = estimate([stage(completion_tokens=None)], deployments, quotas)
    assert bound(found) == "concurrency of stage a"
    assert found.stages[0].completion_tokens is None


def test_rows_that_nobody_knows() -> None:
    found = estimate([stage(), StageFacts("later", "generate", None, "unknown")], ONE, {})
    assert found.unknown == ["later: rows are not known before the run"]
    assert not found.complete
    assert found.stages[1].requests is None


def test_nothing_to_do() -> None:
    found = estimate([stage(rows=0)], ONE, {})
    assert (found.wall_s, found.binding, found.stages[0].requests) == (0.0, None, 0)


def test_workers_send_more_until_who_stores_their_rows_is_the_bound() -> None:
    stages = [stage(rows=1_000_000, latency_s=0.001, window=1000)]
    alone, two, many = (estimate(stages, ONE, {}, workers=workers) for workers in (0, 2, 50))
    assert near(alone, 400)
    assert near(two, 200)
    assert near(many, 100)
    assert two.resources[0].detail == "1,000,000 requests, some 5,000 a second by 2 workers"


@pytest.mark.parametrize(
    ("rows", "window", "workers"),
    [
        (1_000_000, 1000, 4),  # nothing else binds
        (1_000_000, 6, 3),  # beyond three, the window does: 167 s
        (1_000_000, 2, 0),  # it does already
        (10_000, 1000, 0),  # it is over in seconds
    ],
)
def test_how_many_workers_help(rows: int, window: int, workers: int) -> None:
    assert helpful_workers(estimate([stage(rows=rows, latency_s=0.001, window=window)], ONE, {})) == workers
