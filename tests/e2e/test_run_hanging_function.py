"""A function that never returns ends neither a run's truth nor, for ever, its process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Launch
from tests.support import COMMAND_S, ask, infermesh, wait_until, write_experiment, write_jsonl

FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "fn.py").write_text(
        "import threading\ndef f(row):\n    if row['n'] == 0:\n        threading.Event().wait()\n    return 1\n"
    )
    write_jsonl(tmp_path / "rows.jsonl", [{"n": n} for n in range(3)])
    return tmp_path


def experiment(root: Path, timeout: float | None) -> None:
    stage: dict[str, Any] = {"kind": "python", "function": "fn:f", "max_retries": 0, "timeout": timeout}
    write_experiment(root, {"source": {"path": "rows.jsonl"}, "stages": {"f": stage}})


def test_the_process_ends_with_its_run(project: Path) -> None:
    experiment(project, 0.5)
    found = infermesh(*RUN, cwd=project)
    assert found.returncode == 3, found.stderr
    counted = ask(project / FOLDER, "SELECT status, count(*) FROM f GROUP BY ALL ORDER BY ALL")
    assert counted == [("done", 2), ("error", 1)]


def test_two_interrupts_end_it(project: Path, launch: Launch) -> None:
    experiment(project, None)
    process = launch(*RUN, cwd=project)
    wait_until((project / FOLDER / "run.sock").exists, "the socket")
    process.send_signal(signal.SIGINT)
    log = project / FOLDER / "run.log"
    wait_until(lambda: "again" in log.read_text() or process.poll() is not None, "the first to be taken")
    process.send_signal(signal.SIGINT)
    assert process.wait(COMMAND_S) == 130
    assert ask(project / FOLDER, "SELECT count(*) FROM f WHERE status = 'error'") == [(0,)]
