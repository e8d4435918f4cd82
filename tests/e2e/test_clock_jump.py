"""The clock is set in the middle of a run: nothing waits for the time that is gone, no duration is below 0."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.support import ask, experiment, generate, infermesh, texts, write_experiment, write_jsonl

ROWS = 60
FOLDER = "outputs/here"
SHIM = """
import itertools, pathlib, time
real, calls = time.time, itertools.count()
def jumping():
    number = next(calls)
    if number == {at}:
        pathlib.Path("jumped").touch()
    return real() + ({seconds} if number >= {at} else 0)
time.time = jumping
"""


@pytest.mark.parametrize("days", [1, -1])
@pytest.mark.long
def test_a_run_ends_as_ever(tmp_path: Path, simulator: Simulator, days: int) -> None:
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(SHIM.format(at=120, seconds=days * 86400))
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    mapping = experiment(simulator.url, {"a": generate(max_parallel_requests=4), "b": generate("{{ a.text }}")})
    mapping["deployments"]["d"]["limits"] = {"rpm": 600_000, "rpd": 1_000_000}
    write_experiment(tmp_path, mapping)
    path = os.pathsep.join(filter(None, [str(tmp_path / "shim"), os.environ.get("PYTHONPATH")]))
    found = infermesh("run", "+experiment=mine", f"hydra.run.dir={FOLDER}", cwd=tmp_path, PYTHONPATH=path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "jumped").exists()
    folder = tmp_path / FOLDER
    assert ask(folder, "SELECT stage, status, rows FROM progress ORDER BY stage") == [
        ("a", "done", ROWS),
        ("b", "done", ROWS),
    ]
    ((shortest, longest),) = ask(
        folder, "SELECT min(least(queue_s, service_s)), max(greatest(queue_s, service_s)) FROM attempts"
    )
    assert 0 <= shortest <= longest < 60
    assert ask(folder, "SELECT elapsed_s BETWEEN 0 AND 60 FROM sessions") == [(True,)]
