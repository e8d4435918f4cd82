"""Tables out: what each format makes of each type, in chunks, whole or not at all."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.errors import ConfigError, StoreError
from infermesh.query import export as module
from infermesh.query.beside import folder_beside
from infermesh.query.export import export, file_format, stream
from infermesh.query.table_query import table_query

LABELS = ("--table", "--columns", "--where")


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A run in small: a source of 100 rows, a stage whose rows lie in another order, their view."""
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.execute(
            "CREATE TABLE source AS SELECT i AS row_id, 'k' || i AS row_key, i AS n FROM range(100) t(i)"
        )
        connection.execute(
            "CREATE TABLE a AS SELECT row_id, 'done' AS status, 'text ' || row_id AS text FROM source "
            "ORDER BY hash(row_id)"
        )
        connection.execute(
            "CREATE VIEW results AS SELECT s.*, a.text AS a_text FROM source s LEFT JOIN a USING (row_id)"
        )
        yield connection


def read(path: Path) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(f"FROM '{path}'").fetchall()


class TestFormats:
    def test_parquet_keeps_types(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        types = {
            "h": "HUGEINT",
            "hs": "HUGEINT[]",
            "e": "FLOAT[]",
            "j": "JSON",
            "ts": "TIMESTAMP",
            "b": "BLOB",
            "m": "MAP(HUGEINT, HUGEINT)",
        }
        query = f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in types.items())}"
        export(connection, query, tmp_path / "x.parquet")
        found = connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE FROM '{tmp_path}/x.parquet')")
        assert dict(found.fetchall()) == {
            name: kind.replace("HUGEINT", "DECIMAL(38,0)") for name, kind in types.items()
        }

    @pytest.mark.parametrize(
        "name", ["x.csv", "x.tsv", "x.jsonl", "x.csv.gz", "x.jsonl.gz", "x.csv.zst", "x.jsonl.zst"]
    )
    def test_text_can_be_read_again(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path, name: str) -> None:
        assert export(connection, "SELECT n, a_text FROM results ORDER BY n;", tmp_path / name) == 100
        assert read(tmp_path / name) == [(n, f"text {n}") for n in range(100)]

    def test_two_columns_of_one_name_are_two(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        export(connection, "SELECT 1 AS a, 2 AS A, 3 AS a", tmp_path / "x.jsonl")
        assert json.loads((tmp_path / "x.jsonl").read_text()) == {"a": 1, "A_1": 2, "a_2": 3}

    @pytest.mark.parametrize("name", ["x", "x.txt", "x.gz", "x.parquet.gz", "jsonl"])
    def test_other_names_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"expected a name that ends in \.parquet"):
            file_format(Path(name))


class TestTables:
    @pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl.gz"])
    def test_chunks_come_in_the_order_of_the_rows(
        self, connection: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(module, "_CHUNK", 7)
        query = table_query(connection, "RESULTS", ["a_text", "N"], "n % 2 = 1 -- odd", LABELS)
        assert export(connection, query, tmp_path / name) == 50
        assert read(tmp_path / name) == [(f"text {n}", n) for n in range(1, 100, 2)]
        assert [file.name for file in tmp_path.iterdir()] == [name]

    def test_no_rows_leave_a_header(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        query = table_query(connection, "results", ["n"], "false", LABELS)
        for name in ("x.csv", "x.jsonl", "x.parquet"):
            assert export(connection, query, tmp_path / name) == 0
        assert (tmp_path / "x.csv").read_text() == "n\n"
        assert (tmp_path / "x.jsonl").read_text() == ""
        assert read(tmp_path / "x.parquet") == []

    @pytest.mark.long
    def test_memory_stays_bounded_by_smaller_chunks(self, tmp_path: Path) -> None:
        """Rows of which a whole chunk does not fit into DuckDB's memory."""
        with duckdb.connect(tmp_path / "run.duckdb", config={"memory_limit": "50MB", "threads": 1}) as connection:
            connection.execute(
                "CREATE TABLE a AS SELECT i AS row_id, repeat(chr(97 + (i % 26)::INTEGER), 10000) AS t "
                "FROM range(4500) t(i)"
            )
            query = table_query(connection, "a", None, None, LABELS)
            with pytest.raises(StoreError, match="Out of Memory"):
                export(connection, query.sql, tmp_path / "x.parquet")
            assert export(connection, query, tmp_path / "x.parquet") == 4500
        with duckdb.connect() as connection:
            found = connection.execute(f"SELECT row_id, t[1], len(t) FROM '{tmp_path}/x.parquet'").fetchall()
        assert found == [(i, chr(97 + i % 26), 10000) for i in range(4500)]

    @pytest.mark.parametrize(
        ("table", "columns", "where", "words"),
        [
            ("result", None, None, "--table: no table 'result'. Did you mean 'results'?"),
            ("results", ["a_txt"], None, "--columns: results has no column 'a_txt'. Did you mean 'a_text'?"),
            ("results", None, "m > 1", "--where: Binder Error"),
            ("results", None, "n >", "--where: not a SQL condition: syntax error"),
        ],
    )
    def test_what_is_not_there_is_told(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: str,
        columns: list[str] | None,
        where: str | None,
        words: str,
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            table_query(connection, table, columns, where, LABELS)
        assert words in str(caught.value)


class TestStreams:
    @pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet"])
    def test_where_pipes_have_no_paths(
        self, connection: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
    ) -> None:
        written = []
        for pipes in ("/dev/fd", str(tmp_path / "none")):
            monkeypatch.setattr(module, "_PIPES", Path(pipes))
            out = io.BytesIO()
            stream(connection, "FROM results ORDER BY n", format, out)
            written.append(out.getvalue())
        assert written[0] == written[1] != b""

    def test_the_query_ends_with_its_reader(self, connection: duckdb.DuckDBPyConnection) -> None:
        class Full(io.BytesIO):
            def write(self, data: object) -> int:
                raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            stream(connection, "FROM range(10_000_000_000)", "csv", Full())
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


class TestWholeOrNotAtAll:
    def test_a_failure_leaves_the_old_file(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        target = tmp_path / "x.csv"
        target.write_text("old")
        with pytest.raises(StoreError, match=r"x\.csv could not be written: Conversion Error"):
            export(connection, "SELECT a_text::INTEGER FROM results", target)
        assert target.read_text() == "old"
        assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]

    def test_what_a_killed_writer_left_is_removed_by_the_next(
        self, connection: duckdb.DuckDBPyConnection, tmp_path: Path
    ) -> None:
        file = tmp_path / "out[1].csv"
        killed = "import os, pathlib, sys; from infermesh.query.beside import folder_beside as f\n"
        killed += "with f(pathlib.Path(sys.argv[1])) as half: (half / 'whole').write_text('1'); os.kill(os.getpid(), 9)"
        assert subprocess.run([sys.executable, "-c", killed, str(file)]).returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1
        with folder_beside(file) as going_on:  # another process may be at it
            export(connection, "SELECT 1 AS a", file)
            assert sorted(tmp_path.iterdir()) == sorted([going_on, file])
        assert list(tmp_path.iterdir()) == [file]

    def test_a_folder_in_its_place(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        (tmp_path / "x.csv").mkdir()
        with pytest.raises(StoreError, match="it is a folder"):
            export(connection, "SELECT 1", tmp_path / "x.csv")

    def test_a_query_that_does_not_bind(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="resulst"):
            export(connection, "SELECT * FROM resulst", tmp_path / "x.csv")
        assert not list(tmp_path.iterdir())
