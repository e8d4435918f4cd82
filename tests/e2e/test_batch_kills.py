"""A run in batches that is killed at every edge of a batch's way, and resumed: no line is made twice, none is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.support import COMMAND_S, ask, assert_holds, environment, experiment, generate, texts, write_experiment
from tests.support import write_jsonl as write

ROWS = 200
# Where the process kills itself: what is patched, and whether before or after the call, or in its midst.
EDGES = {
    "the intent is stored": ("infermesh.store.batches:BatchBook.add", "after"),
    "the file is uploaded": ("infermesh.transports.batches.openai:OpenAIBatches.upload", "after"),
    "about to create": ("infermesh.transports.batches.openai:OpenAIBatches.create", "before"),
    "created, and its id not stored": ("infermesh.transports.batches.openai:OpenAIBatches.create", "after"),
    "its id is stored": ("infermesh.runs.batches.courier:Courier._submitted", "after"),
    "looking at it": ("infermesh.transports.batches.openai:OpenAIBatches.status", "before"),
    "in the midst of a download": ("infermesh.transports.batches.openai:OpenAIBatches.download", "midst"),
    "about to store what came of it": ("infermesh.store.batches:BatchBook.collected", "before"),
    "what came of it is stored": ("infermesh.store.batches:BatchBook.collected", "after"),
    "rows are settled, and not committed": ("infermesh.runs.runner:Runner._settle", "after"),
}
# Kills itself at the n-th call; the run's own command follows.
KILLER = """
import asyncio, functools, importlib, os, signal, sys

place, when, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
module, _, path = place.partition(":")
owner = importlib.import_module(module)
*folders, name = path.split(".")
for folder in folders:
    owner = getattr(owner, folder)
call = getattr(owner, name)

def count():
    global left
    left -= 1
    return left == 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if asyncio.iscoroutinefunction(call):
    async def patched(*arguments, **options):
        now = count()
        if now and when == "before":
            die()
        found = await call(*arguments, **options)
        if now and when == "midst":
            os.truncate(arguments[2], os.path.getsize(arguments[2]) // 2)
        if now:
            die()
        return found
else:
    def patched(*arguments, **options):
        now = count()
        if now and when == "before":
            die()
        found = call(*arguments, **options)
        if now:
            die()
        return found

setattr(owner, name, functools.wraps(call)(patched))
sys.argv = ["infermesh", *sys.argv[4:]]
from infermesh.cli import main
sys.exit(main())
"""
RUN = ("run", "+experiment=mine", "hydra.run.dir=outputs/here")
Start = Callable[..., Simulator]


def prepared(folder: Path, simulator: Simulator) -> None:
    write(folder / "rows.jsonl", texts(ROWS))
    mapping = experiment(simulator.url, {"a": generate(), "b": generate("{{ a.text }} Once more.")})
    batch = {"enabled": True, "poll": 0.05, "max_requests": 50}
    mapping["models"]["m"]["max_retries"] = 6
    mapping["deployments"] = {"d": {"model": "openai/gpt-4.1-mini", "api_base": simulator.url, "batch": batch}}
    write_experiment(folder, mapping)


def session(folder: Path, edge: str | None, count: int = 1) -> int:
    """Run, or resume, to the end or to an edge; returns the exit code."""
    place, when = EDGES[edge] if edge is not None else ("infermesh.cli:main", "never")
    arguments = [sys.executable, "-c", KILLER, place, when, str(count if edge is not None else -1), *RUN]
    env = environment(OPENAI_API_KEY="sk-of-nobody")
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def check(folder: Path, simulator: Simulator) -> None:
    run = folder / "outputs" / "here"
    for stage in ("a", "b"):
        found = ask(run, f"SELECT count(*), count(DISTINCT row_id) FROM {stage} WHERE status = 'done'")
        assert found == [(ROWS, ROWS)]
    counts = simulator.stats()["batches"]
    assert (counts["answered_lines"], counts["repeated_answers"]) == (2 * ROWS, 0)
    assert counts["lines"] == 2 * ROWS + counts["failed_lines"]
    assert ask(run, "SELECT count(*) FROM attempts") == [(counts["lines"],)]
    assert_holds(run)


@pytest.mark.parametrize("edge", ["created, and its id not stored", "what came of it is stored"])
def test_killed_at_an_edge_that_costs_money(tmp_path: Path, start_simulator: Start, edge: str) -> None:
    simulator = start_simulator(batches={"processing_s": 0.1})
    prepared(tmp_path, simulator)
    assert session(tmp_path, edge) == -signal.SIGKILL
    assert session(tmp_path, None) == 0
    check(tmp_path, simulator)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"lost_creates": 0.3, "not_found": 0.2},
        {"shuffle": True, "doubled_lines": 0.1, "cut_downloads": 0.2},
        {"failed_lines": 0.05},
    ],
    ids=["none", "lost creates", "odd results", "failed lines"],
)
def test_killed_at_every_edge(
    tmp_path: Path, start_simulator: Start, faults: dict[str, float | bool], count: int
) -> None:
    """Each edge in turn, where it is come to for the ``count``-th time in a session."""
    simulator = start_simulator(batches={"processing_s": 0.2, **faults})
    prepared(tmp_path, simulator)
    kills = [session(tmp_path, edge, count) for edge in EDGES]
    assert kills.count(-signal.SIGKILL) >= 3  # later ones may find all done
    assert session(tmp_path, None) == 0
    check(tmp_path, simulator)
