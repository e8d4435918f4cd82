"""Service tiers in a run: what served a request, and what that cost."""

from __future__ import annotations

import pytest

from infermesh.config.declaration import declare
from infermesh.plan import make_plan
from infermesh.simulator import Simulator
from tests.support import Lab, Watch, experiment, generate, texts


def test_a_request_has_its_tier_and_that_tiers_price(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(3))
    asks = {"a": generate(params={"service_tier": "flex"}), "b": generate(params={"service_tier": "auto"})}
    deployments = {"d": {"model": "openai/gpt-5-mini", "api_base": simulator.url}}
    mapping = experiment(simulator.url, asks, deployments=deployments)
    planned = make_plan(declare(mapping, [lab.root], environ={"OPENAI_API_KEY": "x"}), lab.folder, environ={})
    costs = {stage.facts.name: stage.cost_usd or 0.0 for stage in planned.estimate.stages}
    assert costs["a"] == pytest.approx(costs["b"] / 2)
    lab.run(mapping)
    assert lab.sql("SELECT DISTINCT stage, service_tier FROM attempts ORDER BY stage") == [("a", "flex"), ("b", None)]
    ((flex, standard),) = lab.sql(
        "SELECT sum(cost_usd) FILTER (stage = 'a'), sum(cost_usd) FILTER (stage = 'b') FROM attempts"
    )
    assert flex == pytest.approx(standard / 2)
    assert lab.one("SELECT sum(cost_usd) FROM a") == pytest.approx(flex)


def test_a_tier_that_nobody_prices_is_said_before_and_has_no_cost(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    deployments = {"d": {"model": "openai/gpt-5-mini", "api_base": simulator.url}}
    stages = {"a": generate(params={"service_tier": "odd"})}
    watch = Watch()
    lab.run(experiment(simulator.url, stages, deployments=deployments), watch=watch)
    (line,) = [note for note in watch.notes if "tier odd" in note]
    assert line.startswith("deployments.d: openai/gpt-5-mini: the price list has no price for its tier odd")
    assert lab.sql("SELECT DISTINCT service_tier, cost_usd FROM attempts") == [("odd", None)]


def test_a_price_of_ones_own_holds_for_every_tier(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(1))
    own = {"input_cost_per_token": 1.0, "output_cost_per_token": 0.0}
    deployments = {"d": {"model": "openai/gpt-5-mini", "api_base": simulator.url, **own}}
    watch = Watch()
    stages = {"a": generate(params={"service_tier": "odd"})}
    lab.run(experiment(simulator.url, stages, deployments=deployments), watch=watch)
    assert not any("tier" in note for note in watch.notes)
    assert lab.one("SELECT cost_usd = prompt_tokens FROM attempts")


def test_one_that_the_server_names_is_said_once(
    lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The simulator gives the tier that is asked for; so nobody may know that it is.
    for module in ("infermesh.runs.remarks", "infermesh.dispatch.fleet"):
        monkeypatch.setattr(f"{module}.asked_tiers", lambda experiment: [])
    lab.rows(texts(12))
    deployments = {"d": {"model": "openai/gpt-4.1-mini", "api_base": simulator.url}}
    watch = Watch()
    lab.run(
        experiment(simulator.url, {"a": generate(params={"service_tier": "flex"})}, deployments=deployments),
        watch=watch,
    )
    (line,) = [note for note in watch.notes if "tier flex" in note]
    assert line.startswith("openai/gpt-4.1-mini: the price list has no price for its tier flex: these answers count as")
    assert lab.one("SELECT count(*) FROM attempts WHERE service_tier = 'flex' AND cost_usd > 0") == 12
