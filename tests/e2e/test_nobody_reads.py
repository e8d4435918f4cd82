"""Work goes on, and tells the truth, where nobody reads its messages any more."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.e2e.conftest import Launch
from tests.e2e.oneshot_shell import Shell
from tests.support import (
    COMMAND_S,
    ask,
    command,
    environment,
    experiment,
    generate,
    texts,
    wait_until,
    write_experiment,
    write_jsonl,
)

ROWS = 20
FOLDER = "outputs/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", texts(ROWS))
    write_experiment(tmp_path, experiment(simulator.url, {"a": generate()}))
    return tmp_path


@pytest.mark.parametrize(
    "closing", ["2>&-", pytest.param("2>&1 >/dev/null | true", marks=pytest.mark.long), "2>/dev/full"]
)
def test_a_run(project: Path, closing: str) -> None:
    line = " ".join((*command(*RUN), closing))
    subprocess.run(["bash", "-c", line], cwd=project, env=environment(), timeout=COMMAND_S, check=False)
    wait_until((project / FOLDER / "run.duckdb").exists, "the database")
    assert ask(project / FOLDER, "SELECT status, count(*) FROM a GROUP BY ALL") == [("done", ROWS)]
    assert ask(project / FOLDER, "SELECT status FROM run") == [("done",)]


def test_a_reader_that_goes_in_the_middle(project: Path, launch: Launch) -> None:
    process = launch(*RUN, cwd=project)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(COMMAND_S) == 0
    assert ask(project / FOLDER, "SELECT status FROM run") == [("done",)]


def test_a_one_shot_command(tmp_path: Path, simulator: Simulator) -> None:
    shell = Shell(tmp_path, simulator.url)
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{n}"} for n in range(ROWS)])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        shell.argv(("generate", "--input-jsonl", "in.jsonl", "--output-jsonl", "out.jsonl")),
        cwd=tmp_path,
        env=shell.environ,
        stderr=writer,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_S,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == ROWS
