"""A run that is killed, and what the next one makes of it. Real processes, real sockets, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    committed,
    experiment,
    generate,
    here,
    infermesh,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 100
RUN = ("run", "+experiment=mine", "hydra.run.dir=outputs/here")

Start = Callable[..., Simulator]


@pytest.fixture
def service(start_simulator: Start) -> Simulator:
    return start_simulator(latency_s=0.02)


@pytest.fixture
def project(tmp_path: Path, service: Simulator) -> Path:
    """Two stages over 100 rows: half a second of work at the least."""
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    stages = {
        "a": generate(max_parallel_requests=8),
        "b": generate("{{ a.text }} Once more.", max_parallel_requests=8),
    }
    mapping: dict[str, Any] = experiment(service.url, stages)
    mapping["store"] = {"commit_interval": 0.05}
    write_experiment(tmp_path, mapping)
    return tmp_path


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(COMMAND_S) == -signal.SIGKILL


def settled(folder: Path) -> dict[tuple[str, int], Any]:
    """(stage, row) → when it was settled."""
    return {
        (stage, row): at
        for stage in ("a", "b")
        for row, at in ask(folder, f"SELECT row_id, finished_at FROM {stage} WHERE status = 'done'")
    }


@pytest.mark.parametrize(
    "answered",
    [pytest.param(1, marks=pytest.mark.long), 40, pytest.param(2 * ROWS - 60, marks=pytest.mark.long)],
)
def test_a_killed_run_goes_on_where_it_was(project: Path, service: Simulator, launch: Launch, answered: int) -> None:
    folder = project / "outputs" / "here"
    process = launch(*RUN, cwd=project)
    wait_until(lambda: totals(service)["answered"] >= answered, f"{answered} answers")
    kill(process)
    wait_until(lambda: totals(service)["in_flight"] == 0, "the service to notice")

    before = settled(folder)
    assert len(before) < 2 * ROWS
    found = here("status", "outputs/here", cwd=project)
    assert "killed" in found.stdout
    service.reset()
    found = infermesh(*RUN, cwd=project)
    assert found.returncode == 0, found.stderr
    assert totals(service)["received"] == 2 * ROWS - len(before)
    after = settled(folder)
    assert len(after) == 2 * ROWS
    assert {key: after[key] for key in before} == before
    for stage in ("a", "b"):
        assert ask(folder, f"SELECT count(*), count(DISTINCT row_id) FROM {stage}") == [(ROWS, ROWS)]
    assert ask(folder, "SELECT count(*) FROM results WHERE NOT starts_with(b_text, text)") == [(0,)]
    assert ask(folder, "SELECT status FROM run") == [("done",)]


@pytest.mark.long
def test_killed_again_and_again(project: Path, service: Simulator, launch: Launch, start_simulator: Start) -> None:
    """Each session settles some rows more; none that was kept is lost, and none is doubled."""
    folder = project / "outputs" / "here"
    slow = start_simulator(latency_s=0.3)
    kept = 0
    for _ in range(2):
        process = launch(*RUN, f"deployments.d.api_base={slow.url}", cwd=project)
        wait_until((folder / "run.sock").exists, "the socket")
        wait_until(lambda kept=kept: committed(folder, "a", "b") >= kept + 16, "16 rows more")  # type: ignore[misc]
        kill(process)
        assert len(settled(folder)) >= kept + 16
        kept = len(settled(folder))
    service.reset()
    assert here(*RUN, cwd=project).returncode == 0
    assert totals(service)["received"] == 2 * ROWS - kept
    assert len(settled(folder)) == 2 * ROWS
    assert ask(folder, "SELECT count(*), count(DISTINCT row_id) FROM a") == [(ROWS, ROWS)]
    assert ask(folder, "SELECT count(*), count(DISTINCT row_id) FROM b") == [(ROWS, ROWS)]


@pytest.mark.long
def test_killed_while_it_loads(project: Path, service: Simulator, launch: Launch) -> None:
    """The source is loaded in one transaction: there is a run with all rows, or none."""
    write_jsonl(project / "rows.jsonl", texts(60_000))
    folder = project / "outputs" / "here"
    process = launch(*RUN, cwd=project)
    wait_until(lambda: (folder / "run.duckdb").exists(), "the database")
    kill(process)
    write_jsonl(project / "rows.jsonl", texts(20))
    service.reset()
    found = here(*RUN, cwd=project)
    assert found.returncode == 0, found.stderr
    assert ask(folder, "SELECT count(*), count(DISTINCT n) FROM results WHERE b_status = 'done'") == [(20, 20)]
    assert totals(service)["received"] <= 40 + 16


def test_two_runs_do_not_share_a_folder(
    project: Path, service: Simulator, launch: Launch, start_simulator: Start
) -> None:
    silent = start_simulator(faults={"hang": 1.0})
    process = launch(*RUN, f"deployments.d.api_base={silent.url}", cwd=project)
    wait_until(lambda: totals(silent)["in_flight"] == 8, "8 requests in flight")
    found = infermesh(*RUN, cwd=project)
    assert found.returncode == 1
    assert "is in use by" in found.stderr
    assert str(process.pid) in found.stderr
    assert totals(service)["received"] == 0
    assert process.poll() is None
    kill(process)
    assert here(*RUN, cwd=project).returncode == 0
    assert len(settled(project / "outputs" / "here")) == 2 * ROWS


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def runs(pid: int) -> bool:
    """Whether the process is there, and no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for child processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.long
def test_the_embedded_simulator_ends_with_its_run(project: Path, launch: Launch, number: signal.Signals) -> None:
    override = ("deployments.d.api_base=simulator", "simulator.latency_s=0.05")
    process = launch(*RUN, *override, cwd=project)
    simulators = wait_until(
        lambda: [
            child
            for child in children(process.pid)
            if b"infermesh.simulator" in Path(f"/proc/{child}/cmdline").read_bytes()
        ],
        "the simulator",
    )
    wait_until(lambda: (project / "outputs" / "here" / "run.duckdb").exists(), "the run")
    os.kill(process.pid, number)
    process.wait(COMMAND_S)
    wait_until(lambda: not any(map(runs, simulators)), "the simulator's end")
