"""A run's figures, from a database made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import pytest

from infermesh.query.figures import Figures, read_figures, read_stored, write_parquet
from infermesh.store.schema import COMMON_DDL, Column, StageTable, attempts_view, views

# stage, row, attempt, second of sending, queue_s, service_s, error_type, tokens
ATTEMPTS = [
    ("a", 0, 1, 1, 1.0, 2.0, None, 10),  # asked at 0, answered at 3
    ("a", 1, 1, 1, 0.0, 1.0, "server_error", None),
    ("a", 1, 2, 4, 2.0, 1.0, None, 10),  # the same request, asked at 1, answered at 5
    ("a", 2, 1, 5, 0.0, 1.0, "bad_request", None),
    ("b", 0, 1, 6, 0.0, 4.0, None, 5),  # answered at 10
    ("a", 2, 1, 102, 0.0, 3.0, None, 10),  # in the second session
]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Three rows; a first session that was killed, a second of seven seconds."""
    path = tmp_path / "run.duckdb"
    stages = [StageTable("a", ()), StageTable("b", ())]
    with duckdb.connect(str(path)) as connection:
        for ddl in (*COMMON_DDL, *(stage.ddl for stage in stages)):
            connection.execute(ddl)
        connection.execute("CREATE TABLE source (row_id BIGINT, row_key VARCHAR, n BIGINT)")
        connection.execute("INSERT INTO source SELECT i, i::VARCHAR, i FROM range(3) t(i)")
        for view in (*views({"source": [Column("n", "BIGINT")]}, stages), attempts_view(["a", "b"])):
            connection.execute(view)
        connection.execute(
            "INSERT INTO run (run_id, status, overrides, signatures, config_hash, source_fingerprint) "
            "VALUES ('r', 'done', '[\"x=1\"]', '{\"a\": \"s\"}', 'c', 'f')"
        )
        connection.execute(
            "INSERT INTO sessions VALUES (1, '2026-01-01 00:00:00', NULL, NULL, 'running', NULL), "
            "(2, '2026-01-01 00:01:41', '2026-01-01 00:01:48', 7.0, 'done', NULL)"
        )
        for stage, row, attempt, second, queue, service, error, tokens in ATTEMPTS:
            connection.execute(
                "INSERT INTO attempts_log VALUES (?, ?, ?, 'd', TIMESTAMP '2026-01-01' + to_seconds(?), ?, ?, 200, ?, "
                "?, 0, 0.5, 1, NULL, NULL)",
                [stage, row, attempt, second, queue, service, error, tokens],
            )
        connection.execute("INSERT INTO a (row_id, status) VALUES (0, 'done'), (1, 'done'), (2, 'done')")
        connection.execute("INSERT INTO b (row_id, status) VALUES (0, 'done'), (1, 'error')")
    return path


def figures(path: Path, stage: str | None = None) -> Figures:
    found = read_figures(path, stage)
    assert found is not None
    return found


def test_a_stage(database: Path) -> None:
    found = figures(database, "a")
    assert (found.rows, found.failed, found.pending) == (3, 0, 0)
    assert (found.requests, found.request_errors) == (4, 1)
    assert found.elapsed_s == pytest.approx(6 + 3)  # first question to last answer, twice
    assert found.rows_per_s == pytest.approx(3 / 9)
    assert found.tokens_per_s == pytest.approx(30 / 9)
    assert (found.p50_s, found.p95_s) == (3.0, 4.0)  # of 3, 0 + 1 + 2 + 1 and 3
    assert found.queue_p95_s == 2.0
    assert found.cost_usd == pytest.approx(3.0)  # the run's


def test_a_run(database: Path) -> None:
    found = figures(database)
    assert (found.rows, found.failed, found.pending) == (1, 1, 1)
    assert found.requests == 5
    assert found.elapsed_s == pytest.approx(10 + 7)  # a killed session lasts until its last answer


def test_nothing_was_asked(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM attempts_log")
    found = figures(database, "a")
    assert math.isnan(found.p50_s)
    assert math.isnan(found.rows_per_s)
    assert found.cost_usd is None


def test_what_it_was_given(database: Path) -> None:
    stored = read_stored(database)
    assert stored is not None
    assert (stored.status, stored.overrides, stored.signatures) == ("done", ["x=1"], {"a": "s"})


def test_a_database_without_a_run(tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / "empty.duckdb")).close()
    assert read_figures(tmp_path / "empty.duckdb") is None
    assert read_stored(tmp_path / "empty.duckdb") is None


def test_a_parquet_file_in_a_folder_with_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "it's" / "t.parquet"
    path.parent.mkdir()
    write_parquet(path, [Column("a.b", "BIGINT"), Column("c", "VARCHAR")], [[1, "x"], [None, "y"]])
    found = duckdb.connect().read_parquet(str(path))
    assert found.columns == ["a.b", "c"]
    assert found.fetchall() == [(1, "x"), (None, "y")]
