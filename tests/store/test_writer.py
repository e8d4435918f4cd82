"""The group-commit writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.errors import StoreError
from infermesh.results import Attempt
from infermesh.store import Column, GroupWriter, StageTable
from infermesh.store.schema import (
    ATTEMPTS,
    ATTEMPTS_DDL,
    ATTEMPTS_LOG,
    attempt_row,
    row_instead,
    state_row,
)
from tests.support import DEADLINE_S, wait_until

COLUMNS = (Column("row_id", "BIGINT"), Column("status", "VARCHAR"), Column("tokens", "INTEGER"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "run.duckdb"
    with duckdb.connect(str(found)) as connection:
        for table in ("a", "b"):
            connection.execute(f"CREATE TABLE {table} ({', '.join(column.ddl for column in COLUMNS)})")
        connection.execute("CREATE TABLE v (row_id BIGINT, embedding FLOAT[])")
    return found


def read(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_rows_arrive_in_order_and_in_few_commits(path: Path) -> None:
    commits: list[int] = []
    with duckdb.connect(str(path)) as connection:
        writer = GroupWriter(connection, {"a": COLUMNS, "b": COLUMNS}, interval=0.02, on_commit=commits.append)
        for row in range(10_000):
            writer.put("a" if row % 2 else "b", (row, "done", row))
        writer.close()
        assert writer.backlog == 0
    assert sum(commits) == 10_000
    assert len(commits) < 100
    assert read(path, "SELECT row_id FROM a") == [(row,) for row in range(1, 10_000, 2)]
    assert read(path, "SELECT count(*), count(DISTINCT row_id), sum(tokens) FROM (FROM a UNION ALL FROM b)") == [
        (10_000, 10_000, sum(range(10_000)))
    ]


def test_what_is_committed_can_be_read_while_writing_goes_on(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        committed = threading.Event()
        writer = GroupWriter(connection.cursor(), {"a": COLUMNS}, interval=0.01, on_commit=lambda _: committed.set())
        writer.put("a", (1, "done", 1))
        assert committed.wait(DEADLINE_S)
        assert connection.execute("SELECT row_id FROM a").fetchall() == [(1,)]
        writer.close()


def test_a_row_takes_the_place_of_the_one_before(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO a VALUES (1, 'error', 0), (2, 'error', 0), (3, 'done', 0)")
        writer = GroupWriter(connection.cursor(), {"a": COLUMNS}, interval=0.01)
        writer.put("a", (2, "done", 7), replaces=True)
        writer.put("a", (4, "done", 8))
        writer.close()
    assert read(path, "SELECT * FROM a ORDER BY row_id") == [
        (1, "error", 0),
        (2, "done", 7),
        (3, "done", 0),
        (4, "done", 8),
    ]


def test_embeddings(path: Path) -> None:
    columns = (Column("row_id", "BIGINT"), Column("embedding", "FLOAT[]"))
    with duckdb.connect(str(path)) as connection:
        writer = GroupWriter(connection.cursor(), {"v": columns}, interval=0.01)
        for row in range(100):
            writer.put("v", (row, [float(row), 0.5]))
        writer.put("v", (100, None))
        writer.close()
    assert read(path, "SELECT count(*), sum(embedding[1]), count(embedding) FROM v") == [(101, 4950.0, 100)]


def test_the_backlog_is_counted_in_bytes_too(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        writer = GroupWriter(connection.cursor(), {"a": COLUMNS}, interval=60)
        writer.put("a", (1, "done", 1), size=1000)
        writer.put("a", (2, "done", 1))
        assert (writer.is_behind(1, 10**9), writer.is_behind(2, 10**9)) == (True, False)
        assert (writer.is_behind(2, 999), writer.is_behind(2, 1000)) == (True, False)
        writer.flush()
        assert not writer.is_behind(0, 0)
        writer.close()


def test_long_values_are_committed_before_the_interval_is_over(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        writer = GroupWriter(connection.cursor(), {"a": COLUMNS}, interval=600)
        writer.put("a", (1, "done", 1), size=10_000_000)
        wait_until(lambda: not writer.backlog, "the commit")
        writer.close()


def test_closing_with_nothing_to_write(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        GroupWriter(connection.cursor(), {"a": COLUMNS}).close()
    assert read(path, "SELECT count(*) FROM a") == [(0,)]


class TestFailure:
    def test_a_closed_connection_is_told_and_ends_the_writing(self, path: Path) -> None:
        told: list[Exception] = []
        connection = duckdb.connect(str(path))
        connection.close()
        writer = GroupWriter(connection, {"a": COLUMNS}, interval=0.01, on_failure=told.append)
        writer.put("a", (1, "done", 1))
        wait_until(lambda: told, "the failure")
        with pytest.raises(StoreError, match=r"run\.duckdb could not be written"):
            writer.close()
        assert len(told) == 1

    def test_so_is_whatever_a_callback_raises(self, path: Path) -> None:
        told: list[Exception] = []

        def fails(rows: Any) -> None:
            raise KeyError("b")

        with duckdb.connect(str(path)) as connection:
            writer = GroupWriter(
                connection.cursor(), {"a": COLUMNS}, interval=0.01, on_rows=fails, on_failure=told.append
            )
            writer.put("a", (1, "done", 1))
            with pytest.raises(KeyError):
                writer.close()
        assert [type(error) for error in told] == [KeyError]

    @pytest.mark.parametrize(
        "row",
        [
            (1, "done", "not a number"),
            (1, "lone \ud800 surrogate", 1),
            (1, "done"),
            (1, "done", 2**40),
            (1, object(), 1),
        ],
        ids=["type", "surrogate", "length", "range", "object"],
    )
    def test_a_value_that_cannot_be_stored_is_told_too(self, path: Path, row: tuple[Any, ...]) -> None:
        """Whatever the exception is: a writer that dies in silence loses every row after it."""
        told: list[Exception] = []
        with duckdb.connect(str(path)) as connection:
            writer = GroupWriter(connection.cursor(), {"a": COLUMNS}, interval=0.01, on_failure=told.append)
            writer.put("a", row)
            try:
                writer.close()
            except StoreError:
                assert len(told) == 1
                return
            stored = connection.execute("SELECT count(*) FROM a").fetchall()
        assert stored == [(1,)]


class TestUnfitValues:
    TABLE = StageTable("g", (Column("text", "VARCHAR"), Column("vector", "FLOAT[]")))

    def state(self, row_id: int, **values: Any) -> tuple[Any, ...]:
        now = datetime(2026, 1, 1)
        row = state_row(row_id, "done", ("t", [1.0]), None, None, 1, "d", "m", "r", "k", 1, 1, 0.1, 0.1, 0.1, now, None)
        return tuple(values.get(column.name, value) for column, value in zip(self.TABLE.columns, row, strict=True))

    def test_they_cost_their_own_rows(self, path: Path) -> None:
        tables = {"g": self.TABLE.columns, ATTEMPTS_LOG: ATTEMPTS}
        seen: list[tuple[Any, ...]] = []
        unfit: dict[int, dict[str, Any]] = {3: {"text": "\ud800"}, 50: {"vector": ["x"]}, 99: {"prompt_tokens": 2**40}}
        with duckdb.connect(str(path)) as connection:
            connection.execute(self.TABLE.ddl)
            connection.execute(ATTEMPTS_DDL)
            writer = GroupWriter(
                connection.cursor(),
                tables,
                interval=60,
                instead=partial(row_instead, tables),
                on_rows=lambda rows: seen.extend(rows["g"]),
            )
            for row in range(100):
                attempt = Attempt(1, "d", 0.0, 0.1, 0.1, 200, None, 2**40 if row == 8 else 1)
                writer.put(ATTEMPTS_LOG, attempt_row("g", row, attempt))
                writer.put("g", self.state(row, **unfit.get(row, {})))
            writer.close()
        assert len(seen) == 100
        assert read(path, "SELECT status, count(*), count(text) FROM g GROUP BY ALL ORDER BY ALL") == [
            ("done", 97, 97),
            ("error", 3, 0),
        ]
        found = read(path, "SELECT row_id, error_type, error FROM g WHERE status = 'error' ORDER BY ALL")
        assert [row[:2] for row in found] == [(row, "internal") for row in unfit]
        assert all("could not be stored" in row[2] for row in found)
        assert read(path, "SELECT count(*), count(DISTINCT row_id), count(prompt_tokens) FROM attempts_log") == [
            (100, 100, 99)
        ]


def test_kill_in_mid_write_leaves_whole_commits(path: Path) -> None:
    """What was reported as committed is there, and no row before the last one is missing."""
    code = """
import sys, duckdb
from infermesh.store import Column, GroupWriter
columns = (Column("row_id", "BIGINT"), Column("status", "VARCHAR"), Column("tokens", "INTEGER"))
connection = duckdb.connect(sys.argv[1])
def committed(count):
    print(count, flush=True)
writer = GroupWriter(connection, {"a": columns, "b": columns}, interval=0.001, on_commit=committed)
row = 0
while True:
    if writer.backlog < 5000:
        writer.put("a", (row, "done", row))
        writer.put("b", (row, "done", row))
        row += 1
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        written = 0
        while written < 20_000:
            written += int(lines.readline())
        os.kill(process.pid, signal.SIGKILL)
        written += sum(int(line) for line in lines if line.strip().isdigit() and line.endswith("\n"))
    process.wait(DEADLINE_S)
    assert read(path, "SELECT count(*) FROM (FROM a UNION ALL FROM b)")[0][0] >= written
    for table in ("a", "b"):
        ((rows, ids, top),) = read(path, f"SELECT count(*), count(DISTINCT row_id), max(row_id) FROM {table}")
        assert rows == ids == top + 1
