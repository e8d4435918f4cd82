"""A disk that fills up: the run ends with the reason, nothing that was committed is lost, and it goes on once there is
room. Files may grow to a limit here, which the system refuses in the same places."""

from __future__ import annotations

import random
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support import COMMAND_S, ask, command, environment, infermesh, write_experiment, write_jsonl

FUNCTION = """
import random
def f(row):
    return "".join(chr(random.randrange(33, 120)) for _ in range(3000))
"""
FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
ROWS = 300


def project(root: Path, letters: int) -> Path:
    chosen = random.Random(1)
    (root / "fn.py").write_text(FUNCTION)
    rows = [{"n": n, "t": "".join(chr(chosen.randrange(97, 122)) for _ in range(letters))} for n in range(ROWS)]
    write_jsonl(root / "rows.jsonl", rows)
    stage = {"kind": "python", "function": "fn:f", "max_parallel_requests": 8}
    store = {"commit_interval": 0.01}
    write_experiment(root, {"source": {"path": "rows.jsonl"}, "stages": {"f": stage}, "store": store})
    return root


def with_little_room(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command whose files may not grow beyond 500 KiB."""
    return subprocess.run(
        ["bash", "-c", f"ulimit -f 500; exec {shlex.join(command(*arguments))}"],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def only_error(found: subprocess.CompletedProcess[str]) -> str:
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("letters", [3000, 10])
@pytest.mark.long
def test_a_run_goes_on_once_there_is_room(tmp_path: Path, letters: int) -> None:
    """The room ends while the source is loaded, or while answers are stored."""
    root = project(tmp_path, letters)
    line = only_error(with_little_room(*RUN, cwd=root))
    assert "run.duckdb" in line
    assert "ile too large: raise the limit (ulimit -f)" in line
    loaded = (root / FOLDER).exists()
    assert loaded == (letters == 10)  # a run that has no rows yet leaves nothing
    if loaded:
        kept = ask(root / FOLDER, "SELECT count(*) FROM f")[0][0]
        assert 0 < kept < ROWS
    found = infermesh(*(("resume", FOLDER) if loaded else RUN), cwd=root)
    assert found.returncode == 0, found.stderr
    assert ask(root / FOLDER, "SELECT status, count(*) FROM f GROUP BY ALL") == [("done", ROWS)]
    if loaded:
        assert f"resuming: {kept} of {ROWS}" in found.stderr
        line = only_error(with_little_room("export", FOLDER, "all.csv", cwd=root))
        assert line.startswith("error: all.csv could not be written: ")
        assert "ile too large" in line
        assert [path.name for path in root.iterdir() if "all.csv" in path.name] == []
