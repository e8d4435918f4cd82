"""Runs that version 0.1 made, in ``stored_0_1/``: one complete, one killed. This version resumes them."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

import infermesh

STORED = Path(__file__).parent / "stored_0_1"
ATTEMPTS = "SELECT stage, row_id, attempt, started_at FROM attempts ORDER BY ALL"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    with tarfile.open(tmp_path / "runs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resume(folder: Path) -> infermesh.Run:
    return infermesh.run("stored", folder=folder)


def test_a_complete_run_sends_nothing(project: Path) -> None:
    before = infermesh.open_run(project / "complete").sql(ATTEMPTS).fetchall()
    run = resume(project / "complete")
    assert run.status == "done"
    assert len(before) == 65
    assert run.sql(ATTEMPTS).fetchall() == before


@pytest.mark.long
def test_a_killed_run_sends_what_is_missing_and_no_more(project: Path) -> None:
    opened = infermesh.open_run(project / "killed")
    before = opened.sql(ATTEMPTS).fetchall()
    settled = opened.sql("SELECT row_id, text, finished_at FROM topics WHERE status = 'done' ORDER BY ALL").fetchall()
    assert 0 < len(settled) < 12
    run = resume(project / "killed")
    assert run.status == "done"
    after = run.sql(ATTEMPTS).fetchall()
    assert set(before) <= set(after)
    asked = [(stage, row_id) for stage, row_id, *_ in after if stage != "vectors"]  # whose requests carry several rows
    assert len(asked) == len(set(asked)) == 2 + 12 + 12 + 36
    again = run.sql("SELECT row_id, text, finished_at FROM topics ORDER BY ALL").fetchall()
    assert set(settled) <= set(again)
    vectors = run.sql("SELECT sum(request_rows)::INTEGER FROM attempts WHERE stage = 'vectors'").fetchone()
    assert vectors == (12,)
    tiers = run.sql("SELECT DISTINCT service_tier FROM attempts").fetchall()  # a column that 0.1 did not have
    assert tiers == [(None,)]
