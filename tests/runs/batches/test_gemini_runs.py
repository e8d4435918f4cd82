"""Runs over Gemini's batches: LiteLLM's live requests beside them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.runs.execute import execute
from infermesh.runs.outcome import RunOutcome
from infermesh.simulator import Simulator
from tests.support import Lab, Watch, assert_holds, experiment, generate, texts, totals

Start = Callable[..., Simulator]
ROWS = 30
SCHEMA = {
    "type": "object",
    "properties": {"stars": {"type": "integer"}, "why": {"type": "string"}},
    "required": ["stars", "why"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _quiet_litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GOOGLE_API_KEY", "key-of-nobody")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(lab: Lab, simulator: Simulator, watch: Watch | None = None, **batch: Any) -> RunOutcome:
    stages = {"a": generate(), "b": generate("{{ a.text }} Once more.", response_format=SCHEMA)}
    mapping = experiment(simulator.url, stages)
    settings = {"enabled": True, "poll": 0.02, "max_requests": 10, **batch}
    deployment = {"model": "gemini/gemini-2.5-flash", "api_base": simulator.url, "batch": settings}
    mapping["deployments"] = {"d": deployment}
    job = declare(mapping, [lab.root])
    return execute(job, lab.folder, observer=watch or Watch())


def test_answers_and_half_the_price(lab: Lab, start_simulator: Start) -> None:
    """Whatever is lost, late or fails: each row has the answer of a live request, and is paid once."""
    simulator = start_simulator(
        batches={"lost_creates": 0.5, "late_output_s": 0.1, "failed_lines": 0.1, "doubled_lines": 0.2, "shuffle": True}
    )
    lab.rows(texts(ROWS))
    outcome = run(lab, simulator)
    assert outcome.status == "done"
    assert_holds(lab.folder)
    columns = "SELECT row_id, a.text, b.parsed, a.prompt_tokens, b.completion_tokens FROM a JOIN b USING (row_id)"
    in_batches = lab.sql(f"{columns} ORDER BY row_id")
    assert len(in_batches) == ROWS
    assert lab.sql("SELECT DISTINCT service_tier FROM attempts WHERE error_type IS NULL") == [("batch",)]
    assert not totals(simulator, "generate_content")["answered"]
    assert simulator.stats()["batches"]["repeated_lines"] == 0
    lab.folder = lab.root / "outputs" / "lab" / "live"
    live = run(lab, simulator, enabled=False)
    assert lab.sql(f"{columns} ORDER BY row_id") == in_batches
    assert totals(simulator, "generate_content")["answered"] == 2 * ROWS
    assert outcome.totals["cost_usd"] == pytest.approx(live.totals["cost_usd"] / 2)


def test_a_batch_that_expired_is_sent_again(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(batches={"processing_s": 5, "expires_s": 0.1})
    lab.rows(texts(3))
    watch = Watch()
    outcome = run(lab, simulator, watch)
    assert outcome.status == "failed_rows"
    assert lab.sql("SELECT DISTINCT provider_state, unserved FROM batches") == [("expired", 3)]
    assert simulator.stats()["batches"]["created"] > 1
    assert "expired" in lab.one("SELECT any_value(error) FROM a WHERE status = 'error'")
