"""What ``resume`` says of what has been edited since, and what ``run`` says of a run that was left unfinished."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from infermesh.query.left import left_unfinished
from infermesh.simulator import Simulator
from infermesh.store.folders import DATABASE
from tests.support import experiment, generate, here, run_folders, texts, write_experiment, write_jsonl

RESUME = "to apply the edit: infermesh run +experiment=mine"


@pytest.fixture
def project(tmp_path: Path, simulator: Simulator) -> Path:
    """A project whose experiment has been run."""
    write_jsonl(tmp_path / "rows.jsonl", texts(3))
    (tmp_path / "tell.jinja").write_text("Tell {{ text }}")
    write_experiment(tmp_path, mapping(simulator.url))
    found = here("run", "mine", "source.limit=2", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    simulator.reset()
    return tmp_path


def mapping(url: str, prompt: str = "Say {{ text }}") -> dict[str, object]:
    return experiment(url, {"a": generate(prompt), "b": generate("tell.jinja")})


def edit(file: Path, change: Callable[[str], str]) -> None:
    """An edit of later on: the clock of a file system may be coarse."""
    file.write_text(change(file.read_text()))
    later = time.time() + 5
    os.utime(file, (later, later))


def test_nothing_is_said_where_nothing_was_edited(project: Path) -> None:
    write_experiment(project, mapping("http://127.0.0.1:9/v1"), "other")
    edit(project / "conf" / "experiment" / "other.yaml", str)
    edit(project / "conf" / "experiment" / "mine.yaml", lambda text: text + "# a remark\n")
    found = here("resume", "mine", cwd=project)
    assert found.returncode == 0, found.stderr
    assert "edited since" not in found.stderr


def test_an_edited_experiment_is_told_with_the_command_that_takes_it(project: Path, simulator: Simulator) -> None:
    edit(project / "conf" / "experiment" / "mine.yaml", lambda text: text.replace("Say", "Sing"))
    (folder,) = run_folders(project)
    for _ in range(2):  # a resume does not make it forgotten
        found = here("resume", "mine", cwd=project)
        assert found.returncode == 0, found.stderr
        (line,) = [line for line in found.stderr.splitlines() if "edited since" in line]
        assert "conf/experiment/mine.yaml (stages.a.prompt)." in line
        apply = f"++source.limit=2 hydra.run.dir={folder.relative_to(project)}"
        assert line.endswith(f"{RESUME} {apply}")
    assert simulator.stats()["totals"]["received"] == 0
    found = here("run", *line.partition("infermesh run ")[2].split(), cwd=project)
    assert found.returncode == 0, found.stderr
    assert simulator.stats()["totals"]["received"] == 2
    assert len(run_folders(project)) == 1


def test_an_edit_that_does_not_compose(project: Path) -> None:
    edit(project / "conf" / "experiment" / "mine.yaml", lambda text: text.replace('"prompt"', '"promt"', 1))
    found = here("retry", "mine", "--stage", "a", "--where", "true", cwd=project)
    assert found.returncode == 0, found.stderr
    assert "mine.yaml, where something is wrong: stages.a.promt: unknown key" in found.stderr


def test_an_edited_prompt_file_is_taken_by_a_resume(project: Path, simulator: Simulator) -> None:
    (project / "tell.jinja").write_text("Tell me {{ text }}")
    found = here("resume", "mine", cwd=project)
    assert "b: prompt: 'Tell {{ text }}' → 'Tell me {{ text }}'" in found.stderr
    assert simulator.stats()["totals"]["received"] == 2


class TestARunThatWasLeft:
    """The same command begins anew in a folder of its own."""

    @pytest.fixture
    def left(self, project: Path) -> Path:
        """Its folder: one of four row states is missing, and its process has gone without a word."""
        (folder,) = run_folders(project)
        with duckdb.connect(str(folder / DATABASE)) as connection:
            connection.execute("DELETE FROM a WHERE row_id = 1")
            connection.execute("UPDATE run SET status = 'running'")
        return folder

    def test_it_is_told_with_the_command_that_goes_on(self, project: Path, left: Path) -> None:
        found = here("run", "mine", cwd=project)
        shown = left.relative_to(project)
        assert (
            f"{shown} was killed, with row states pending: 1. This is a new run; to go on there: "
            f"infermesh resume {shown}\n"
        ) in found.stderr
        assert "row states pending" not in here("run", "mine", cwd=project).stderr  # the newest one is complete

    def test_where_the_folder_is_named_nothing_is_said(self, project: Path, left: Path) -> None:
        assert "row states pending" not in here("run", "mine", "hydra.run.dir=outputs/mine/other", cwd=project).stderr

    def test_a_run_that_goes_on_is_not_waited_for(self, project: Path, left: Path) -> None:
        """Another process holds its database, and answers nothing."""
        script = (
            f"import duckdb, sys; c = duckdb.connect({str(left / DATABASE)!r}); print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert left_unfinished(project / "outputs" / "mine" / "new") is None
            holder.communicate()
        assert left_unfinished(project / "outputs" / "mine" / "new") is not None
