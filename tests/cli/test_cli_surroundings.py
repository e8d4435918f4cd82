"""What the commands say where a folder cannot be made, a disk is full or a run's database is broken."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import mock

import duckdb
import pytest

from infermesh.cli.common import words_of
from infermesh.simulator import Simulator
from infermesh.store import RunStore
from tests.support import experiment, generate, here, texts, totals, write_experiment, write_jsonl

FOLDER = "outputs/mine/here"
RUN = ("run", "+experiment=mine", f"hydra.run.dir={FOLDER}")
LONG = "n" * 300


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Path:
    """A project, and a file where somebody will want a folder."""
    write_jsonl(tmp_path / "rows.jsonl", texts(3))
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}])
    write_experiment(tmp_path, experiment(simulator.url, {"a": generate()}))
    (tmp_path / "file").touch()
    return tmp_path


def oneshot(simulator: Simulator, *arguments: str) -> tuple[str, ...]:
    return (
        "generate",
        "--model",
        "hosted_vllm/m",
        "--api-base",
        simulator.url,
        "--input-jsonl",
        "in.jsonl",
        *arguments,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, _plain_simulator: Simulator) -> Path:
    """A project with a run."""
    root = tmp_path_factory.mktemp("finished")
    write_jsonl(root / "rows.jsonl", texts(3))
    write_experiment(root, experiment(_plain_simulator.url, {"a": generate()}))
    assert here(*RUN, cwd=root).returncode == 0
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


@pytest.mark.parametrize("parent", ["file", LONG])
def test_a_folder_that_cannot_be_made(project: Path, simulator: Simulator, parent: str) -> None:
    reason = (
        "file name too long: name a shorter one" if parent == LONG else "a part of that path is a file; name a folder"
    )
    for arguments in (
        ("run", "+experiment=mine", f"hydra.run.dir={parent}/r"),
        ("run", "-m", "+experiment=mine", "stages.a.max_parallel_requests=1,2", f"hydra.sweep.dir={parent}/s"),
        ("init", f"{parent}/p"),
        oneshot(simulator, "--output-jsonl", "out.jsonl", "--checkpoint-dir", f"{parent}/c"),
    ):
        found = here(*arguments, cwd=project)
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {parent}/"), arguments
        assert line.endswith(reason), arguments
        assert found.returncode == 1
    assert totals(simulator)["received"] == 0


def test_files_of_keys_that_are_none(project: Path) -> None:
    (project / "bytes.env").write_bytes(b"\xff\xfeA=1")
    assert "bytes.env: it is no text" in here("run", "--env-file", "bytes.env", "+experiment=mine", cwd=project).stderr
    for path in ("nowhere.env", "outputs"):
        (project / "outputs").mkdir(exist_ok=True)
        assert here("run", "--env-file", path, "+experiment=mine", cwd=project).returncode == 2


def damaged(path: Path) -> None:
    with open(path, "r+b") as file:
        for place in (4096, 8192):  # both of DuckDB's headers: its message then speaks of a block
            file.seek(place + 100)
            file.write(os.urandom(64))


def without_the_run(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP VIEW results; DROP VIEW progress; DROP TABLE run")


def of_a_newer_version(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE run SET schema_version = 999")


COMMANDS = {
    "status": ("status", FOLDER),
    "sql": ("sql", "select * from source", "--run", FOLDER),
    "export": ("export", FOLDER, "out.csv"),
    "diff": ("diff", FOLDER, FOLDER),
    "retry": ("retry", FOLDER, "--stage", "a"),
    "plan": ("plan", "+experiment=mine", f"hydra.run.dir={FOLDER}"),
    "resume": ("resume", FOLDER),
    "run": RUN,
}


def test_a_damaged_database(run: Path) -> None:
    damaged(run / FOLDER / "run.duckdb")
    before = (run / FOLDER / "run.duckdb").read_bytes()
    for name, arguments in COMMANDS.items():
        found = here(*arguments, cwd=run)
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {FOLDER}/run.duckdb cannot be opened: it is damaged. Put back a copy"), name
        assert found.returncode == 1, name
        assert "running" not in found.stdout, name
    assert " damaged " in here("runs", cwd=run).stdout
    assert (run / FOLDER / "run.duckdb").read_bytes() == before


def test_a_database_without_its_run(run: Path) -> None:
    without_the_run(run / FOLDER / "run.duckdb")
    for name in ("status", "retry", "plan", "resume", "run"):
        found = here(*COMMANDS[name], cwd=run)
        assert found.returncode == 1, name
        assert f"error: {FOLDER}/run.duckdb holds no whole run. Put back a copy" in found.stderr, name


def test_a_database_of_a_newer_version(run: Path) -> None:
    of_a_newer_version(run / FOLDER / "run.duckdb")
    for name in ("resume", "run", "plan"):
        found = here(*COMMANDS[name], cwd=run)
        assert f"error: {FOLDER}/run.duckdb was written by a newer infermesh" in found.stderr, name
        assert "pip install --upgrade" in found.stderr, name


def test_a_file_of_no_bytes_is_a_run_that_never_was(run: Path) -> None:
    (run / FOLDER / "run.duckdb").write_bytes(b"")
    assert " empty " in here("status", FOLDER, cwd=run).stdout
    assert "holds no run: it ended before its source was loaded" in here("resume", FOLDER, cwd=run).stderr
    found = here(*RUN, cwd=run)
    assert (found.returncode, "\n  a         3" in found.stderr) == (0, True)


def test_a_folder_in_the_place_of_the_database(run: Path) -> None:
    (run / FOLDER / "run.duckdb").unlink()
    (run / FOLDER / "run.duckdb").mkdir()
    assert "run.duckdb is a folder: " in here("status", FOLDER, cwd=run).stderr
    found = here(*RUN, cwd=run)
    assert (found.returncode, "run.duckdb cannot be opened: is a directory: " in found.stderr) == (1, True)


def test_a_broken_run_beside_it_ends_no_other(run: Path) -> None:
    """A run with a daily quota asks the runs beside it."""
    with duckdb.connect(str(run / FOLDER / "run.duckdb")) as connection:
        connection.execute("DROP VIEW attempts CASCADE")
    found = here("run", "+experiment=mine", "deployments.d.limits={rpd: 100}", cwd=run)
    assert found.returncode == 0, found.stderr
    assert "not counted against today's quotas: " in found.stderr


def test_duckdb_gives_up_in_the_middle(run: Path) -> None:
    said = duckdb.FatalException("FATAL Error: database has been invalidated because of a previous fatal error.")
    with mock.patch.object(RunStore, "counts", side_effect=said):
        found = here("resume", FOLDER, cwd=run)
    assert found.returncode == 1
    assert f"error: {FOLDER}/run.duckdb cannot be used: DuckDB gave up. What was committed is kept" in found.stderr


def test_a_bug_keeps_its_traceback() -> None:
    assert words_of(ValueError("ours")) is None
    assert words_of(duckdb.Error("theirs")) == "theirs"
