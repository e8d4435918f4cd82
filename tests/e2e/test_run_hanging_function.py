"""A function that never returns ends neither a run's truth nor, for ever, its process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

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

FOLDER = "outputs/here"
FUNCTIONS = """
import asyncio, threading
def hangs(row):
    if row["n"] == 0:
        threading.Event().wait()
    return 1
async def ignores(row):
    while row["n"] == 0:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
    return 1
async def blocks(row):
    return hangs(row)
def plain(row):
    return {"input": f"row {hangs(row)}"}
async def blocking(row):
    return plain(row)
import enum
class Trap(enum.Enum):
    A = 1
    @property
    def value(self):
        raise RuntimeError("a trap")
def trap(row):
    return [Trap.A] if row["n"] == 0 else 1
def trapped(row):
    return {"input": [{"role": "user", "content": [Trap.A] if row["n"] == 0 else "hi"}], "metadata": {"n": 1}}
class Unspeakable(Exception):
    def __str__(self):
        return str(hangs({"n": 0}))
def speechless(row):
    if row["n"] == 0:
        raise Unspeakable
    return 1
def dumb(row):
    return {"input": str(speechless(row))}
"""
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "fn.py").write_text(FUNCTIONS)
    write_jsonl(tmp_path / "rows.jsonl", [{"n": n} for n in range(3)])
    return tmp_path


def experiment(root: Path, name: str, timeout: float | None) -> None:
    stage: dict[str, Any] = {"kind": "python", "function": f"fn:{name}", "max_retries": 0, "timeout": timeout}
    write_experiment(root, {"source": {"path": "rows.jsonl"}, "stages": {"f": stage}})


def mapped_experiment(root: Path, name: str, timeout: float | None) -> None:
    write_experiment(
        root,
        {
            "source": {"path": "rows.jsonl"},
            "deployments": {"sim": {"model": "openai/any", "api_base": "simulator"}},
            "models": {"m": {"deployments": ["sim"], "timeout": timeout}},
            "stages": {"f": {"kind": "generate", "model": "m", "mapper": f"fn:{name}"}},
        },
    )


KINDS = {
    **dict.fromkeys(("hangs", "ignores", "blocks", "speechless", "trap"), experiment),
    **dict.fromkeys(("plain", "blocking", "dumb", "trapped"), mapped_experiment),
}


@pytest.mark.parametrize(
    "name",
    [name if name in ("hangs", "trapped") else pytest.param(name, marks=pytest.mark.long) for name in KINDS],
)
def test_the_process_ends_with_its_run(project: Path, name: str) -> None:
    KINDS[name](project, name, 0.5)
    found = infermesh(*RUN, cwd=project)
    assert found.returncode == 3, found.stderr
    counted = ask(project / FOLDER, "SELECT status, count(*) FROM f GROUP BY ALL ORDER BY ALL")
    assert counted == [("done", 2), ("error", 1)]


@pytest.mark.parametrize("name", ["hangs", "ignores", "plain"])
@pytest.mark.long
def test_a_timeout_without_end(project: Path, name: str) -> None:
    write_jsonl(project / "rows.jsonl", [{"n": n} for n in range(1, 4)])
    KINDS[name](project, name, float("inf"))
    found = infermesh(*RUN, cwd=project)
    assert found.returncode == 0, found.stderr
    assert ask(project / FOLDER, "SELECT count(*) FROM f WHERE status = 'done'") == [(3,)]


@pytest.mark.parametrize("name", [name for name in KINDS if "trap" not in name])
@pytest.mark.long
def test_two_interrupts_end_it(project: Path, launch: Launch, name: str) -> None:
    KINDS[name](project, name, None)
    process = launch(*RUN, cwd=project)
    wait_until((project / FOLDER / "run.sock").exists, "the socket")
    process.send_signal(signal.SIGINT)
    log = project / FOLDER / "run.log"
    wait_until(lambda: process.poll() is not None or "again" in logged(log), "the first to be taken")
    wait_for_another_wish()
    process.send_signal(signal.SIGINT)
    assert process.wait(COMMAND_S) == 130
    assert ask(project / FOLDER, "SELECT count(*) FROM f WHERE status = 'error'") == [(0,)]
