"""Signals in each state that a row can be in: what was answered is kept, always."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.service import CountingService
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    infermesh,
    logged,
    wait_for_another_wish,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 120
FOLDER = Path("outputs/here")
# State → what is declared so that most rows are in it.
STATES: dict[str, dict[str, Any]] = {
    "waiting for a slot": {"deployment": {"max_parallel_requests": 2}},
    "waiting for a limit": {"deployment": {"limits": {"rpm": 60}}},
    "waiting for a retry": {"unavailable": 0.7, "model": {"max_retries": 50}},
    "waiting for a batch": {"stage": {"kind": "embed", "text": "vector {{ n }}", "micro_batch_size": 500}},
    "in flight": {"latency_s": 1.5},
    "settled and not committed": {"store": {"commit_interval": 30}},
    "in a function": {"slow_function": True},
}
SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
}


def project(root: Path, service: CountingService, state: dict[str, Any]) -> None:
    service.latency_s = state.get("latency_s", 0.05)
    service.unavailable = state.get("unavailable", 0.0)
    (root / "slow.py").write_text("import time\ndef tag(row):\n    time.sleep(0.3)\n    return row['n']\n")
    write_jsonl(root / "rows.jsonl", [{"n": n} for n in range(ROWS)])
    stages: dict[str, Any] = {
        "a": {"kind": "generate", "prompt": "row {{ n }}", "model": "m", "max_parallel_requests": 16}
        | state.get("stage", {})
    }
    if stages["a"]["kind"] == "embed":
        del stages["a"]["prompt"]
    if state.get("slow_function"):
        stages["p"] = {"kind": "python", "function": "slow:tag", "reads": ["a"], "columns": None}
    deployment = {"model": "hosted_vllm/any", "api_base": service.url} | state.get("deployment", {})
    write_experiment(
        root,
        {
            "source": {"path": "rows.jsonl"},
            "deployments": {"d": deployment},
            "models": {"m": {"deployments": ["d"], "timeout": 30.0} | state.get("model", {})},
            "stages": stages,
            "store": state.get("store", {}),
        },
    )


@pytest.mark.parametrize("signals", SIGNALS)
@pytest.mark.parametrize("state", STATES)
def test_what_was_answered_is_kept(
    tmp_path: Path, service: CountingService, launch: Launch, state: str, signals: str
) -> None:
    project(tmp_path, service, STATES[state])
    folder = tmp_path / FOLDER
    process = launch("run", "+experiment=mine", f"hydra.run.dir={FOLDER}", cwd=tmp_path)
    if state == "waiting for a batch":
        wait_until((folder / "run.sock").exists, "the run")
    else:
        wait_until(lambda: len(service.answered) >= 3 and service.in_flight, "some answers, and more to come")
    log = folder / "run.log"
    for number, each in enumerate(SIGNALS[signals]):
        if number:
            wait_until(lambda: process.poll() is not None or "again" in logged(log), "the first to be taken")
            wait_for_another_wish()
        answered = {text for _, text in service.answered}
        process.send_signal(each)
    _, said = process.communicate(timeout=COMMAND_S + 40)
    assert "Traceback" not in said
    assert process.returncode in (0, 130), said
    wait_until(lambda: service.in_flight == 0, "the service to be idle")
    if len(SIGNALS[signals]) == 1:  # it has waited for all of them
        answered = {text for _, text in service.answered}
    column = "'row ' || n" if state != "waiting for a batch" else "'vector ' || n"
    done = {text for (text,) in ask(folder, f"SELECT {column} FROM source JOIN a USING (row_id) WHERE status = 'done'")}
    assert answered <= done
    # What was sent is told, whatever became of it.
    assert ask(folder, "SELECT count(*) FROM attempts WHERE stage = 'a'") == [(sum(service.requests.values()),)]
    # And it goes on: nothing that is done is sent again.
    service.unavailable, service.latency_s = 0.0, 0.01
    before = service.asked.copy()
    found = infermesh("run", "+experiment=mine", f"hydra.run.dir={FOLDER}", "deployments.d.limits=null", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert ask(folder, "SELECT status, count(*) FROM a GROUP BY ALL") == [("done", ROWS)]
    assert sum(service.asked.values()) - sum(before.values()) == ROWS - len(done)
