"""Ctrl-C, SIGTERM and a closed terminal: what is in flight is finished and kept, and the run can go on later."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    command,
    embed,
    environment,
    experiment,
    generate,
    here,
    infermesh,
    run_folders,
    texts,
    totals,
    wait_for_another_wish,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 120

Start = Callable[..., Simulator]


def make_project(root: Path, url: str, timeout: float | None = None) -> Path:
    write_jsonl(root / "rows.jsonl", texts(ROWS))
    stages = {"a": generate(max_parallel_requests=10), "v": embed("{{ a.text }}", micro_batch_size=8)}
    mapping = experiment(url, stages)
    mapping["models"]["m"]["timeout"] = timeout
    write_experiment(root, mapping)
    return root / "outputs" / "mine" / "latest"


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
    ],
)
def test_the_first_signal_drains(
    tmp_path: Path, start_simulator: Start, launch: Launch, number: signal.Signals
) -> None:
    simulator = start_simulator(latency_s=0.05)
    folder = make_project(tmp_path, simulator.url)
    process = launch("run", "+experiment=mine", cwd=tmp_path)
    wait_until(lambda: totals(simulator, "chat")["answered"] >= 30, "30 answers")
    process.send_signal(number)
    out, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130, err
    assert out == ""
    assert "stopping" in err
    assert "interrupted" in err
    assert "infermesh resume outputs/mine/" in err
    assert "Traceback" not in err
    seen = totals(simulator)
    assert seen["abandoned"] == 0
    ((done,),) = ask(folder, "SELECT count(*) FROM a WHERE status = 'done'")
    assert done == totals(simulator, "chat")["answered"] < ROWS
    assert ask(folder, "SELECT status FROM run") == [("interrupted",)]
    assert "interrupted" in here("runs", cwd=tmp_path).stdout

    simulator.reset()
    found = infermesh("resume", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert totals(simulator, "chat")["received"] == ROWS - done
    assert ask(folder, "SELECT count(*), count(DISTINCT row_id) FROM v WHERE status = 'done'") == [(ROWS, ROWS)]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGHUP])
def test_while_the_source_is_loaded(
    tmp_path: Path, start_simulator: Start, launch: Launch, number: signal.Signals
) -> None:
    simulator = start_simulator()
    make_project(tmp_path, simulator.url)
    write_jsonl(tmp_path / "rows.jsonl", texts(100_000))
    process = launch("run", "+experiment=mine", "hydra.run.dir=here", cwd=tmp_path)
    wait_until((tmp_path / "here" / "run.duckdb").exists, "the database")
    process.send_signal(number)
    _, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.long
def test_a_terminal_that_is_told_of_twice_drains_once(tmp_path: Path, start_simulator: Start, launch: Launch) -> None:
    simulator = start_simulator(latency_s=0.3)
    folder = make_project(tmp_path, simulator.url)
    process = launch("run", "+experiment=mine", cwd=tmp_path)
    wait_until(lambda: totals(simulator, "chat")["answered"] >= 10, "10 answers")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert process.wait(COMMAND_S) == 130
    assert totals(simulator)["abandoned"] == 0
    ((done,),) = ask(folder, "SELECT count(*) FROM a WHERE status = 'done'")
    assert done == totals(simulator, "chat")["answered"]


def test_the_second_signal_ends_at_once(tmp_path: Path, start_simulator: Start, launch: Launch) -> None:
    """Nothing is ever answered: only the second Ctrl-C can end it so soon."""
    simulator = start_simulator(faults={"hang": 1.0})
    folder = make_project(tmp_path, simulator.url)
    process = launch("run", "+experiment=mine", cwd=tmp_path)
    assert process.stderr is not None
    wait_until(lambda: totals(simulator)["in_flight"] == 10, "10 requests in flight")
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "stopping" in line:
            break
    wait_for_another_wish()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "10 sent requests dropped" in err
    wait_until(lambda: totals(simulator)["in_flight"] == 0, "the connections' end")
    assert ask(folder, "SELECT count(*) FROM a") == [(0,)]
    assert ask(folder, "SELECT status FROM run") == [("interrupted",)]
    # What was sent is in attempts all the same.
    assert ask(folder, "SELECT error_type, count(*) FROM attempts GROUP BY ALL") == [("stopped", 10)]


@pytest.mark.skipif(shutil.which("timeout") is None, reason="GNU timeout is not installed")
def test_gnu_timeout_tells_twice_and_is_taken_once(tmp_path: Path, start_simulator: Start) -> None:
    """It hands a signal on as its own: to the command, and then to the command's group."""
    simulator = start_simulator(latency_s=0.4)
    folder = make_project(tmp_path, simulator.url)
    started = ["timeout", "1000", *command("run", "+experiment=mine")]
    with subprocess.Popen(started, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: totals(simulator)["in_flight"] == 10, "10 requests in flight")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=COMMAND_S)
    assert "interrupted" in err
    assert "dropped" not in err
    assert totals(simulator)["abandoned"] == 0
    ((done,),) = ask(folder, "SELECT count(*) FROM a WHERE status = 'done'")
    assert done == totals(simulator, "chat")["answered"] < ROWS


def test_an_interrupted_sweep_starts_no_further_job(tmp_path: Path, start_simulator: Start, launch: Launch) -> None:
    simulator = start_simulator(latency_s=0.05)
    make_project(tmp_path, simulator.url)
    process = launch("run", "-m", "+experiment=mine", "stages.a.max_parallel_requests=5,6", cwd=tmp_path)
    wait_until(lambda: totals(simulator, "chat")["answered"] >= 5, "5 answers")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130, err
    assert "job 1" not in err
    assert len(run_folders(tmp_path)) == 1
