"""Rows for which the store's memory limit is too low: the limit is raised, and nothing is lost."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import duckdb
import orjson
import pytest

from infermesh.config.schema import SourceConfig, StoreConfig
from infermesh.errors import ConfigError, StoreError
from infermesh.inputs.sources import resolve_source
from infermesh.simulator import Simulator
from infermesh.store import RunStore, StageTable, memory
from infermesh.store.connection import connect
from infermesh.store.memory import drop_cache, memory_limit, set_limit, with_room
from infermesh.store.schema import Column
from infermesh.store.writer import GroupWriter
from tests.support import RECORD, Lab, experiment, generate, write_jsonl

_MIB = 1 << 20


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"memory_limit": "64MiB", "threads": 1})


class TestWithRoom:
    def test_the_limit_is_doubled_until_it_is_enough(
        self, connection: duckdb.DuckDBPyConnection, caplog: pytest.LogCaptureFixture
    ) -> None:
        def longest() -> int:  # 2,048 values at once, of 100 KB each
            ((found,),) = connection.execute(
                "SELECT max(length(upper(text))) FROM (SELECT repeat('ab', 50000 + range::INT % 3) AS text "
                "FROM range(2048))"
            ).fetchall()
            return int(found)

        with pytest.raises(duckdb.OutOfMemoryException):
            longest()
        with caplog.at_level(logging.INFO, logger="infermesh"):
            assert with_room(connection, longest) == 100_004
        assert memory_limit(connection) >= 128 * _MIB
        assert "store.memory_limit" in caplog.text

    def test_what_needs_more_than_the_machine_has_is_an_error(
        self, connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "_most", lambda: 200 * _MIB)
        limits = []

        def greedy() -> None:
            limits.append(round(memory_limit(connection) / _MIB))
            raise duckdb.OutOfMemoryException("no")

        with pytest.raises(StoreError, match=r"too long for this machine's memory.*Keep long values in files"):
            with_room(connection, greedy)
        assert limits == [64, 128, 200]

    def test_the_most_is_what_duckdb_takes_by_itself(self, connection: duckdb.DuckDBPyConnection) -> None:
        with duckdb.connect() as other:
            default = memory_limit(other)
        while memory.more_room(connection):
            pass
        assert memory_limit(connection) == pytest.approx(default, rel=0.05)

    def test_other_errors_pass(self, connection: duckdb.DuckDBPyConnection) -> None:
        with pytest.raises(duckdb.CatalogException):
            with_room(connection, lambda: connection.execute("SELECT * FROM nothing"))
        assert memory_limit(connection) == 64 * _MIB


def test_dropping_what_is_cached_keeps_the_limit(connection: duckdb.DuckDBPyConnection) -> None:
    drop_cache(connection)
    assert memory_limit(connection) == pytest.approx(64 * _MIB, rel=0.01)


def test_a_limit_that_cannot_be_kept_changes_nothing(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET temp_directory = ''")
    connection.execute("CREATE TABLE t AS SELECT hash(range) AS a, hash(range + 1) AS b FROM range(2_000_000)")
    set_limit(connection, "1MB")
    assert memory_limit(connection) == 64 * _MIB


def test_a_commit_that_needs_more_memory_is_made_once(tmp_path: Path) -> None:
    connection = duckdb.connect(str(tmp_path / "run.duckdb"), config={"memory_limit": "6MiB", "threads": 2})
    columns = [Column("row_id", "BIGINT"), Column("text", "VARCHAR")]
    for table in ("long", "short"):
        connection.execute(f"CREATE TABLE {table} (row_id BIGINT, text VARCHAR)")
    writer = GroupWriter(connection.cursor(), {"long": columns, "short": columns}, interval=0.2)
    for number in range(600):
        writer.put("short", (number, "y"))
        writer.put("long", (number, "x" * 100_000))
    writer.close()
    assert memory_limit(connection) > 12 * _MIB
    for table in ("long", "short"):
        assert connection.execute(f"SELECT count(*), count(DISTINCT row_id) FROM {table}").fetchone() == (600, 600)


def test_a_checkpoint_has_the_memory_that_it_needs(tmp_path: Path) -> None:
    """DuckDB gives a database up whose checkpoint fails, and works on 2,048 rows at a time: 80 MB here."""
    write_jsonl(tmp_path / "rows.jsonl", [{"n": 1}])
    store = RunStore(tmp_path / "run.duckdb", StoreConfig(memory_limit="48MiB", commit_interval=0.01))
    table = StageTable("stage", (Column("text", "VARCHAR"),))
    store.load(resolve_source(SourceConfig(path="rows.jsonl"), [tmp_path]), [table], RECORD, check=lambda *_: None)
    writer = store.writer()
    blank = (None,) * (len(table.columns) - 3)
    for number in range(800):
        writer.put("stage", (number, "done", f"{number} " + "x" * 100_000, *blank), size=100_000)
        if number % 50 == 0:
            writer.flush()
    writer.close()
    with store.cursor() as connection:
        assert connection.execute("SELECT count(*), min(length(text)) FROM stage").fetchone() == (800, 100_002)
        assert memory_limit(connection) < 200 * _MIB
    store.close()
    assert not (tmp_path / "run.duckdb.wal").exists()


def test_a_killed_run_of_long_rows_is_opened_whatever_its_limit(tmp_path: Path) -> None:
    """Its log holds more than the limit, and is read as a whole. What it had spilled to disk is removed."""
    code = """
import os, sys
from pathlib import Path
from infermesh.config.schema import StoreConfig
from infermesh.store import RunStore
store = RunStore(Path(sys.argv[1]), StoreConfig(memory_limit="24MB"))
with store.cursor() as connection:
    connection.execute("SET memory_limit = '1GB'")
    rows = "SELECT i AS row_id, repeat(md5(i::VARCHAR), 8000) AS text FROM range(160) r(i)"
    connection.execute(f"CREATE TABLE source AS {rows}")
    connection.execute("CREATE TABLE run AS SELECT 2 AS schema_version")
    connection.execute("INSERT INTO source SELECT * FROM source")
Path(sys.argv[1] + ".tmp").mkdir(exist_ok=True)
Path(sys.argv[1] + ".tmp", "duckdb_temp_1_0_storage.tmp").touch()
os._exit(0)
"""
    path = tmp_path / "run.duckdb"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.with_name("run.duckdb.wal").stat().st_size > 30_000_000
    with pytest.raises(StoreError, match=r"takes more memory than there is"):  # and not that the log is damaged
        connect(path, {"memory_limit": "24MB"})
    store = RunStore(path, StoreConfig(memory_limit="24MB"))
    with store.cursor() as connection:
        assert connection.execute("SELECT count(*) FROM source").fetchone() == (320,)
        assert memory_limit(connection) < 25 * _MIB
    store.close()
    assert not path.with_name("run.duckdb.tmp").exists()


def test_a_limit_that_duckdb_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store\.memory_limit: .*unit"):
        RunStore(tmp_path / "run.duckdb", StoreConfig(memory_limit="5XB"))


def test_long_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    long = [{"text": f"{number} " + "x" * 400_000} for number in range(50)]
    for rows, size in ((long, 19), ([{"text": "short"}] * 50, 1024)):
        folder = tmp_path / str(size)
        folder.mkdir()
        write_jsonl(folder / "rows.jsonl", rows)
        store = RunStore(folder / "run.duckdb", StoreConfig())
        table = StageTable("stage", ())
        store.load(resolve_source(SourceConfig(path="rows.jsonl"), [folder]), [table], RECORD, check=lambda *_: None)
        reader = store.reader({})
        assert reader.size == size
        assert [row.row_id for chunk in reader.chunks for row in reader.read(chunk)] == list(range(50))
        store.close()


def test_reading_a_source_leaves_the_stores_settings_as_they_were(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"n": 1}])  # reading JSON takes 64 MB at least
    store = RunStore(tmp_path / "run.duckdb", StoreConfig(memory_limit="32MiB", threads=3))
    table = StageTable("stage", ())
    store.load(resolve_source(SourceConfig(path="rows.jsonl"), [tmp_path]), [table], RECORD, check=lambda *_: None)
    with store.cursor() as connection:
        assert memory_limit(connection) == 32 * _MIB
        assert connection.execute("SELECT current_setting('threads')").fetchone() == (3,)
    store.close()


@pytest.mark.long
def test_a_run_over_rows_far_longer_than_its_memory(simulator: Simulator, tmp_path: Path) -> None:
    """Reading, sending, writing, resuming and the sinks, with a limit that is enough for none of them."""
    lab = Lab(tmp_path)
    stretched = [{"n": n, "text": f"{n}: " + f"Parcel {n} came late. " * 800} for n in range(1100)]  # 18 KB each

    declared = experiment(
        simulator.url,
        {"answer": generate(), "again": generate("{{ answer.text }}", where="n % 100 = 0")},
        store={"commit_interval": 0.01, "memory_limit": "8MB"},
        sinks={"lines": {"path": "all.jsonl"}, "table": {"path": "all.parquet"}},
    )
    lab.rows(stretched)
    assert lab.run(declared).status == "done"
    assert lab.sql("SELECT status, count(*) FROM answer GROUP BY ALL") == [("done", 1100)]
    assert lab.sql("SELECT status, count(*) FROM again GROUP BY ALL ORDER BY ALL") == [("done", 11), ("skipped", 1089)]
    with open(lab.folder / "all.jsonl", "rb") as lines:
        assert [orjson.loads(line)["text"] for line in lines] == [row["text"] for row in stretched]
    with duckdb.connect() as other:
        assert other.execute(f"SELECT count(DISTINCT text) FROM '{lab.folder}/all.parquet'").fetchall() == [(1100,)]

    lab.rows([{"n": 9999, "text": "new"}, *stretched[1:]])
    resumed = lab.run(declared)
    assert (resumed.status, lab.one("SELECT count(*) FROM retired")) == ("done", 1)
    assert lab.one("SELECT count(*) FROM attempts") == 1100 + 11 + 1


@pytest.mark.long
def test_a_run_that_can_have_no_more_memory_ends_in_words_and_goes_on_elsewhere(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)
    lab.rows({"n": n, "text": f"Parcel {n} came late. " * 800} for n in range(1100))
    small = {"commit_interval": 0.01, "memory_limit": "8MB"}
    lab.run(experiment(simulator.url, {"answer": generate(where="n < 0")}, store=small))
    declared = experiment(simulator.url, {"answer": generate(where="n < 5")}, store=small)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_most", lambda: 20 * _MIB)
        with pytest.raises(StoreError, match=r"too long for this machine's memory"):
            lab.run(declared)
    assert lab.one("SELECT status FROM run") == "crashed"
    assert "too long" in lab.one("SELECT reason FROM sessions ORDER BY session DESC LIMIT 1")
    assert lab.run(declared).counts["answer"] == {"done": 5, "skipped": 1095}
