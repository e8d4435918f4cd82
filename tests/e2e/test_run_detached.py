"""Runs in the background: detached, watched from elsewhere, killed and resumed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.support import (
    COMMAND_S,
    ask,
    experiment,
    generate,
    here,
    texts,
    totals,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 200
FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")


@pytest.fixture
def service(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=0.05)


@pytest.fixture
def project(tmp_path: Path, service: Simulator) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    write_experiment(tmp_path, experiment(service.url, {"a": generate(max_parallel_requests=4)}))
    return tmp_path


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a child of this process, where the command ran in it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def detach(project: Path) -> Iterator[Callable[..., int]]:
    """Run a command that detaches a run; its process's id. What still goes on after the test is killed."""
    pids: list[int] = []

    def start(*words: str) -> int:
        done = here(*words, "--detach", cwd=project)
        assert done.returncode == 0, done.stderr
        found = re.search(rf"in the background \(process (\d+)\): {FOLDER}\n", done.stderr)
        assert found is not None, done.stderr
        for command in ("attach", "logs -f", "stop"):
            assert f"infermesh {command} {FOLDER}" in done.stderr
        pids.append(int(found[1]))
        return pids[-1]

    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_it_goes_on_alone_and_is_attached_to(
    project: Path, service: Simulator, detach: Callable[..., int], launch: Launch
) -> None:
    pid = detach(*RUN)
    assert os.getsid(pid) != os.getsid(0)
    following = launch("logs", "-f", cwd=project)
    leaving: Any = launch("attach", FOLDER, cwd=project)
    assert "Ctrl-C leaves it running" in leaving.stderr.readline()
    wait_until(lambda: totals(service)["answered"] >= 20, "20 answers")
    leaving.send_signal(signal.SIGINT)
    assert "the run goes on" in leaving.stderr.read()
    assert leaving.wait(COMMAND_S) == 130
    assert is_alive(pid)

    staying = here("attach", "--progress", "json", cwd=project)
    assert staying.returncode == 0, staying.stderr
    assert f'"done":{ROWS}' in staying.stdout.splitlines()[-1]
    assert f"done: {ROWS} done, 0 failed" in staying.stderr
    logged = following.communicate(timeout=COMMAND_S)[0]
    assert following.returncode == 0
    assert re.search(r"loading .*rows.jsonl", logged)
    assert re.search(r"complete in .*\n", logged)
    wait_until(lambda: not is_alive(pid), "the end of the process")
    assert here("logs", cwd=project).stdout == logged
    late = here("attach", FOLDER, cwd=project)
    assert (late.returncode, "done" in late.stderr) == (0, True)


def test_what_cannot_start_says_why_with_its_code(project: Path) -> None:
    done = here(*RUN, "stages.a.prompt='{{ txt }}'", "--detach", cwd=project)
    assert (done.returncode, "txt" in done.stderr) == (1, True)
    assert not (project / FOLDER / "run.duckdb").exists()
    assert here("run", "-m", "mine", "--detach", cwd=project).returncode == 2


def test_the_exit_code_of_a_stopped_run_is_attachs(
    project: Path, service: Simulator, detach: Callable[..., int], launch: Launch
) -> None:
    detach(*RUN)
    watching: Any = launch("attach", cwd=project)
    assert "attached" in watching.stderr.readline()
    assert here("pause", cwd=project).returncode == 0
    assert here("stop", cwd=project).returncode == 0
    said = watching.stderr.read()
    assert watching.wait(COMMAND_S) == 130
    assert "paused: no request is sent" in said
    assert f"infermesh resume {FOLDER}" in said


def test_a_killed_one_is_resumed_in_the_background(
    project: Path, service: Simulator, detach: Callable[..., int], launch: Launch
) -> None:
    pid = detach(*RUN)
    watching: Any = launch("attach", cwd=project)
    assert "attached" in watching.stderr.readline()
    wait_until(lambda: totals(service)["answered"] >= 20, "20 answers")
    os.kill(pid, signal.SIGKILL)
    assert watching.wait(COMMAND_S) == 1
    assert "killed" in watching.stderr.read()
    wait_until(lambda: not is_alive(pid), "the end of the process")
    detach("resume", FOLDER)
    assert here("attach", cwd=project).returncode == 0
    assert ask(project / FOLDER, "SELECT count(*) FROM a WHERE status = 'done'") == [(ROWS,)]
    assert totals(service)["received"] <= ROWS + 4 + 100  # rows that were not committed yet are sent again
