"""A column is added to a source and the run goes on: only new prompts are sent, whatever is killed meanwhile."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import ask, experiment, generate, infermesh, totals, wait_until, write_experiment, write_jsonl

ROWS = 200
FOLDER = Path("outputs/mine/one")
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")

HANDED_ON = "SELECT count(*) FROM answers, run WHERE reused_from = run_id"


def rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"n": n, "text": f"Parcel number {n} came late.", **fields} for n in range(count)]


@pytest.mark.long
def test_an_added_column_and_five_new_prompts(tmp_path: Path, simulator: Simulator) -> None:
    write_experiment(tmp_path, experiment(simulator.url, {"answers": generate()}))
    write_jsonl(tmp_path / "rows.jsonl", rows(ROWS))
    assert infermesh(*RUN, cwd=tmp_path).returncode == 0
    assert totals(simulator)["received"] == ROWS
    simulator.reset()
    changed = rows(ROWS, channel="chat")
    for row in changed[::40]:
        row["text"] = "Something else: " + row["text"]
    write_jsonl(tmp_path / "rows.jsonl", changed)
    planned = infermesh("plan", *RUN[1:], "--json", cwd=tmp_path)
    assert json.loads(planned.stdout)["requests"] == 5, planned.stdout
    ended = infermesh(*RUN, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert totals(simulator)["received"] == 5
    assert f"answers of rows that are gone: {ROWS} for answers: a request that is the same is not sent" in ended.stderr
    assert f"reused    {ROWS - 5} answers to identical requests" in ended.stderr
    assert ask(
        tmp_path / FOLDER,
        "SELECT count(*), count(answers_text), count(DISTINCT channel), any_value(channel) FROM results",
    ) == [(ROWS, ROWS, 1, "chat")]
    assert ask(
        tmp_path / FOLDER, "SELECT count(*), sum(cost_usd), sum(attempts) FROM answers, run WHERE reused_from = run_id"
    ) == [(ROWS - 5, 0.0, 0)]
    assert ask(tmp_path / FOLDER, "SELECT count(*) FROM attempts") == [(ROWS + 5,)]


@pytest.mark.long
def test_no_answer_is_given_twice_by_a_run_that_was_killed(
    tmp_path: Path, simulator: Simulator, launch: Launch
) -> None:
    """Samples of one prompt: half of the rows take what is there, the others are sent, and the process is killed."""
    mapping = experiment(simulator.url, {"answers": generate(max_parallel_requests=4)})
    write_experiment(tmp_path, mapping)
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "Tell a story."}] * ROWS)
    assert infermesh(*RUN, cwd=tmp_path).returncode == 0
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "Tell a story.", "a": 1}] * (2 * ROWS))
    simulator.reset()
    slowly = "deployments.d.limits={rpm: 6000}"
    process = launch(*RUN, slowly, cwd=tmp_path)
    wait_until(lambda: totals(simulator)["received"] > ROWS // 10, "requests of the second session")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    assert totals(simulator)["received"] < ROWS
    ((handed_on,),) = ask(tmp_path / FOLDER, HANDED_ON)
    assert 0 < handed_on <= ROWS
    ended = infermesh(*RUN, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ask(tmp_path / FOLDER, HANDED_ON) == [(ROWS,)]
    assert ask(
        tmp_path / FOLDER, "SELECT count(*), count(DISTINCT answers_request_id), max(answers_status) FROM results"
    ) == [(2 * ROWS, 2 * ROWS, "done")]
