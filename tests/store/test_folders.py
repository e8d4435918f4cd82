"""Where runs are found: once each, behind links too, the newest first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infermesh.store.folders import claim_folder, discard, point_latest, resolve_latest, run_folders
from infermesh.store.schema import DATABASE


def make_run(folder: Path, at: float, log_at: float | None = None) -> Path:
    """A run's folder by its files alone, written to ``at`` and, in the log beside the database, ``log_at``."""
    folder.mkdir(parents=True)
    for name, time in ((DATABASE, at), (f"{DATABASE}.wal", log_at)):
        if time is not None:
            (folder / name).touch()
            os.utime(folder / name, (time, time))
    return folder


def test_the_newest_is_the_one_that_was_written_to_last(tmp_path: Path) -> None:
    """A run that goes on, or was killed, writes to the log beside its database."""
    killed = make_run(tmp_path / "lab" / "a", 10, log_at=50)
    ended = make_run(tmp_path / "lab" / "b", 46)
    old = make_run(tmp_path / "other" / "c", 5, log_at=6)
    assert run_folders(tmp_path) == [killed, ended, old]


def test_latest_is_no_run_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lab" / "2025", 1)
    point_latest(run, "lab")
    assert (tmp_path / "lab" / "latest").resolve() == run
    assert run_folders(tmp_path) == [run]
    assert run_folders(tmp_path / "lab" / "latest") == [tmp_path / "lab" / "latest"]


def test_links_are_followed(tmp_path: Path) -> None:
    """``outputs``, an experiment's folder or a single run may be on another disk."""
    disk = tmp_path / "disk"
    first, second = make_run(disk / "outputs" / "lab" / "1", 3), make_run(disk / "moved" / "2", 2)
    (tmp_path / "outputs").symlink_to(disk / "outputs")
    (disk / "outputs" / "away").symlink_to(disk / "moved")
    (disk / "outputs" / "alone").symlink_to(second)
    assert first == disk / "outputs" / "lab" / "1"
    assert run_folders(tmp_path / "outputs") == [
        tmp_path / "outputs" / "lab" / "1",
        tmp_path / "outputs" / "alone",
    ]


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "lab" / "1", 1)
    (tmp_path / "lab" / "back").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert run_folders(tmp_path) == [run]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    outputs = tmp_path / "project" / "outputs"
    mine, other = outputs / "lab" / "mine", tmp_path / "another" / "outputs" / "lab" / "other"
    for folder in (mine, other):
        folder.mkdir(parents=True)
        (folder / DATABASE).touch()
    (outputs / "up").symlink_to(tmp_path)
    assert run_folders(outputs) == [mine]


def test_nothing_is_looked_for_in_a_runs_folder(tmp_path: Path) -> None:
    """It may hold a link to a large data set."""
    run = make_run(tmp_path / "outputs" / "lab" / "1", 1)
    make_run(tmp_path / "datasets" / "2", 2)
    (run / "data").symlink_to(tmp_path / "datasets")
    assert run_folders(tmp_path / "outputs") == [run]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    assert run_folders(tmp_path) == []
    assert run_folders(tmp_path / "missing") == []


def test_a_path_over_latest_means_the_run_that_it_points_to_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point_latest(make_run(tmp_path / "lab" / "1", 1), "lab")
    assert resolve_latest(Path("lab/latest")) == Path("lab/1")
    assert resolve_latest(tmp_path / "lab" / "latest") == tmp_path / "lab" / "1"
    assert resolve_latest(Path("lab/1")) == Path("lab/1")


def test_a_folder_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    names = [claim_folder(tmp_path / "lab" / "run").name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_only_what_a_run_has_written_is_discarded(tmp_path: Path) -> None:
    mine = tmp_path / "lab" / "mine"
    (mine / ".hydra").mkdir(parents=True)
    (mine / "rows.jsonl").touch()
    discard(mine)
    assert (mine / "rows.jsonl").exists()
    discard(mine, also=["rows.jsonl"])
    assert not mine.parent.exists()
