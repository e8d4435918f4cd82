"""A budget holds what requests in flight may cost, so that as many as are sent at once do not pass it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from infermesh.results import TokenUsage
from infermesh.runs.budget import Budget
from infermesh.simulator import Simulator
from infermesh.stages import Prepared
from tests.support import Lab, embed, experiment, generate, texts, totals

Start = Callable[..., Simulator]
PRICES = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}


def job(url: str, budget: float | None, stages: dict[str, Any], prices: Any = PRICES) -> dict[str, Any]:
    mapping = experiment(url, stages, guards={"max_cost_usd": budget})
    mapping["deployments"]["d"] |= prices
    return mapping


def spent(lab: Lab) -> tuple[float, float]:
    """What the run has cost, and its dearest request."""
    ((cost, each),) = lab.sql("SELECT coalesce(sum(cost_usd), 0.0), coalesce(max(cost_usd), 0.0) FROM attempts")
    return cost, each


@pytest.mark.parametrize("params", [{}, {"max_tokens": 500}], ids=["open", "max_tokens"])
def test_many_at_once_do_not_pass_it(lab: Lab, start_simulator: Start, params: dict[str, Any]) -> None:
    simulator = start_simulator(latency_s=0.02)
    lab.rows(texts(200))
    stages = {"a": generate(max_parallel_requests=32, params=params)}
    outcome = lab.run(job(simulator.url, 1.0, stages))
    assert (outcome.status, outcome.exit_code) == ("stopped", 4)
    assert (outcome.reason or "").startswith("guards.max_cost_usd is 1, the run has cost $")
    cost, each = spent(lab)
    assert each < 0.1
    assert 1.0 - 2 * each < cost <= 1.0
    assert totals(simulator, "chat")["max_in_flight"] > 2  # all of it was not sent one by one
    # No more fits, so a resumed run sends nothing.
    sent = totals(simulator)["received"]
    assert lab.run(job(simulator.url, 1.0, stages)).status == "stopped"
    assert totals(simulator)["received"] == sent
    assert lab.run(job(simulator.url, None, stages)).status == "done"
    assert totals(simulator)["received"] == 200


def test_prompts_of_different_lengths(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.02)
    # The first ones, by which a guess would go, are short; the long ones are in flight together.
    lab.rows([{"n": n, "text": "Parcel. " * (1 if n < 20 else 400)} for n in range(60)])
    lab.run(job(simulator.url, 5.0, {"a": generate(max_parallel_requests=16)}))
    cost, each = spent(lab)
    assert each > 0.5
    assert 5.0 - 2 * each < cost <= 5.0


def test_batches_of_texts_and_two_stages(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.02)
    lab.rows(texts(400))
    stages = {
        "v": embed("{{ text }}", max_parallel_requests=8, micro_batch_size=4),
        "a": generate("{{ text }}", max_parallel_requests=8),
        "b": generate("{{ a.text }}", max_parallel_requests=8),
    }
    outcome = lab.run(job(simulator.url, 10.0, stages))
    assert outcome.status == "stopped"
    cost, each = spent(lab)
    assert 10.0 - 3 * each < cost <= 10.0
    assert all(lab.one(f"SELECT count(*) FROM {name}") > 5 for name in stages)


def test_a_budget_that_is_enough_slows_nothing_down(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.05)
    lab.rows(texts(100))
    outcome = lab.run(job(simulator.url, 50.0, {"a": generate(max_parallel_requests=20)}))
    assert outcome.status == "done"
    assert totals(simulator, "chat")["max_in_flight"] == 20


def test_a_price_that_is_not_known_holds_nothing_up(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.02)
    lab.rows(texts(100))
    outcome = lab.run(job(simulator.url, 0.001, {"a": generate(max_parallel_requests=20)}, {}))
    assert outcome.status == "done"
    assert totals(simulator, "chat")["max_in_flight"] == 20


def test_failures_hold_nothing_back(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(faults={"server_error": 0.3, "drop": 0.1}, seed=5)
    lab.rows(texts(100))
    mapping = job(simulator.url, 50.0, {"a": generate(max_parallel_requests=8)})
    mapping["models"]["m"]["max_retries"] = 0
    outcome = lab.run(mapping)
    assert outcome.status == "failed_rows"
    assert sum(outcome.counts["a"].values()) == 100


class _Model:
    """Prices what it is asked for, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def dearest(self, usage: TokenUsage) -> float:
        self.asked += 1
        return usage.prompt_tokens * 0.1


class _Stage:
    name = "a"

    def __init__(self) -> None:
        self.model = _Model()


def _item(words: int) -> Prepared[Any]:
    return Prepared("word " * words, "key")


async def test_a_long_line_is_not_looked_at_after_each_answer() -> None:
    stage: Any = _Stage()
    spent = [0.0]
    budget = Budget(100.0, lambda: spent[0], {"a": (0, 1.0)})
    holds = [await budget.hold(stage, [_item(100)]) for _ in range(5)]
    waiting = [asyncio.create_task(budget.hold(stage, [_item(100)])) for _ in range(2000)]
    await asyncio.sleep(0)
    before = stage.model.asked
    for hold in holds:
        assert hold is not None
        hold.end(())
    assert stage.model.asked - before < 200
    budget.stop()
    found = await asyncio.gather(*waiting)
    assert 0 < sum(each is not None for each in found) < 100


async def test_they_go_in_the_order_in_which_they_came() -> None:
    stage: Any = _Stage()
    budget = Budget(30.0, lambda: 0.0, {"a": (0, 1.0)})
    first = await budget.hold(stage, [_item(200)])
    assert first is not None
    large = asyncio.create_task(budget.hold(stage, [_item(200)]))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.hold(stage, [_item(1)]))
    await asyncio.sleep(0)
    assert not small.done()  # else small ones would keep a large one waiting for ever
    first.end(())
    held = await large
    assert held is not None
    assert await small is not None
