"""The sinks of a declaration: checked all at once, written one by one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from infermesh.config.schema import SinkConfig
from infermesh.errors import ConfigError
from infermesh.query.sinks import check_sinks, write_sinks


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A run in small: a source, a stage, their view."""
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.execute("CREATE TABLE source AS SELECT i AS row_id, 'k' || i AS row_key, i AS n FROM range(10) t(i)")
        connection.execute("CREATE TABLE a AS SELECT row_id, 'done' AS status, 'text ' || row_id AS text FROM source")
        connection.execute(
            "CREATE VIEW results AS SELECT s.*, a.text AS a_text FROM source s LEFT JOIN a USING (row_id)"
        )
        yield connection


def test_they_are_checked_all_at_once(connection: duckdb.DuckDBPyConnection) -> None:
    sinks = {
        "fine": SinkConfig(path="a.csv"),
        "table": SinkConfig(path="b.csv", table="b"),
        "columns": SinkConfig(path="c.csv", columns=["m"]),
        "where": SinkConfig(path="d.csv", where="nn = 1"),
        "name": SinkConfig(path="e.xls"),
        "twice": SinkConfig(path="a.csv"),
        "none": SinkConfig(path="f.csv", columns=[]),
    }
    with pytest.raises(ConfigError) as caught:
        check_sinks(connection, sinks)
    starts = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert starts == [
        "sinks.table.table",
        "sinks.columns.columns",
        "sinks.where.where",
        "sinks.name.path",
        "sinks.twice.path",
        "sinks.none.columns",
    ]


def test_one_that_fails_does_not_keep_the_others(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sinks = {
        "bad": SinkConfig(path="file/a.csv"),
        "good": SinkConfig(path="new/folder/b.jsonl.gz", table="a", columns=["text"], where="row_id < 2"),
    }
    report = write_sinks(connection, sinks, tmp_path, tmp_path)
    assert len(report.errors) == 1
    assert report.errors[0].startswith("sinks.bad: ")
    (written,) = report.written
    assert (written.path, written.rows) == (tmp_path / "new/folder/b.jsonl.gz", 2)
    assert written.bytes == written.path.stat().st_size
    lines = gzip.decompress(written.path.read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "text 0"}, {"text": "text 1"}]


def test_a_source_without_rows_has_no_columns_to_check(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE source (row_id BIGINT, row_key VARCHAR)")
        connection.execute("CREATE VIEW results AS FROM source")
        sinks = {"s": SinkConfig(path="a.csv", columns=["text"], where="n > 1")}
        check_sinks(connection, sinks)
        assert write_sinks(connection, sinks, tmp_path, tmp_path).errors == []
    assert (tmp_path / "a.csv").read_text() == "text\n"
