"""A live run's server and its reader, over a real database and a real socket."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.errors import StoreError, StoreInUseError
from infermesh.query import live_query as answer
from infermesh.query import server as live
from infermesh.query.reader import RunReader, is_live, request_stop
from infermesh.query.server import SOCKET, LiveServer
from infermesh.store.connection import connect
from infermesh.store.schema import DATABASE
from tests.support import ask, wait_until


class Live:
    """A folder, its database as a run holds it, and the server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.connection = connect(folder / DATABASE, {"memory_limit": "256MB", "threads": 2})
        self.connection.execute("CREATE OR REPLACE TABLE t AS SELECT range AS i, 'x' || range AS s FROM range(1000)")
        self.stops = 0
        self.server = LiveServer(folder, self.connection.cursor, self._stop)

    def _stop(self) -> None:
        self.stops += 1

    def send(self, data: bytes) -> bytes:
        """Send bytes as they are, hang up on that side, and read all that comes."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            with live.short_name(self.folder / SOCKET) as name:
                client.connect(name)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                return stream.read()


@contextmanager
def going_on(folder: Path) -> Iterator[Live]:
    run = Live(folder)
    try:
        with run.server:
            yield run
    finally:
        run.connection.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Live]:
    with going_on(tmp_path / "run") as found:
        yield found


def test_a_query_sees_what_is_committed_and_no_more(run: Live) -> None:
    with RunReader(run.folder) as reader:
        assert reader.live
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1000,)]
        run.connection.begin()
        run.connection.execute("INSERT INTO t VALUES (1000, 'new')")
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1000,)]
        run.connection.commit()
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1001,)]


QUERIES = [
    "SELECT 1 AS a, 2 AS a",
    "FROM t ORDER BY s DESC LIMIT 3; -- the last; few",
    "SELECT sum(i) * 1e15::HUGEINT * 1e15::HUGEINT + 1 AS big, [sum(i)], {'v': sum(i), 'w w': 'x, ''y'} FROM t",
    "SELECT MAP {'k': 170141183460469231731687303715884105727::HUGEINT}, [[1::UHUGEINT]], {'a': [INTERVAL 1 MONTH]}",
    "SELECT INTERVAL '1 month 2 days 3.123456 seconds', TIMETZ '12:34:56.123456+02', '0101'::BIT, 'a'::ENUM('a', 'b')",
    "SELECT TIMESTAMP '2020-01-01 00:00:01.123456', TIMESTAMPTZ '2020-01-01 00:00:01+01', DATE '2020-02-29'",
    "SELECT NULL, [], '', '{\"a\": [1]}'::JSON, [1.5, NULL]::FLOAT[2], '\\xAA'::BLOB, 1.5::DECIMAL(38, 10), true",
    'SELECT union_value(n := 1), 18446744073709551615::UBIGINT, \'ä;\' AS "ü "" q" ; ;',
    "SELECT * FROM t WHERE false",
    "PIVOT (SELECT i % 2 AS odd, i % 3 AS three FROM t) ON odd USING count(*) GROUP BY three ORDER BY ALL",
    "WITH x AS (SELECT max(i) AS m FROM t) FROM x",
    "VALUES (1, 'a'), (2, 'b')",
    "SHOW TABLES",
    "DESCRIBE t",
    "SUMMARIZE t",
    "EXPLAIN SELECT 1 AS one",
]


@pytest.mark.parametrize("sql", QUERIES)
def test_a_result_is_the_same_as_the_files(run: Live, sql: str) -> None:
    direct = run.connection.cursor().execute(sql)
    columns = [(name, str(kind)) for name, kind, *_ in direct.description or ()]
    rows = direct.fetchall()
    with RunReader(run.folder) as reader:
        found = reader.execute(sql)
        assert [(name, str(kind)) for name, kind, *_ in found.description or ()] == columns
        assert found.fetchall() == rows


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1, 'a')",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (1, 'a')",
        "EXPLAIN ANALYZE COPY t TO '{folder}/out.csv'",
        "explain (analyze) COPY (SELECT 42) TO '{folder}/out.csv'",
        "EXPLAIN (ANALYZE, FORMAT json) COPY t TO '{folder}/out.csv'",
        "/* x */ EXPLAIN ANALYZE COPY t TO '{folder}/out.csv'",
        "EXPLAIN COPY t TO '{folder}/out.csv'",
        "WITH x AS (INSERT INTO t VALUES (1, 'a') RETURNING *) FROM x",
        "DELETE FROM t",
        "DROP TABLE t",
        "CREATE TABLE u (i INT)",
        "CREATE TABLE u AS PIVOT t ON (i % 2) USING count(*)",
        "COPY t TO '{folder}/out.csv'",
        "COPY (PIVOT t ON (i % 2) USING count(*)) TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out.csv'",
        "SET threads = 1",
        "RESET threads",
        "PRAGMA threads = 1",
        "ATTACH '{folder}/out.csv' AS other",
        "CHECKPOINT",
        "COMMIT",
        "SELECT 1; SELECT 2",
        "SELECT 1) TO '{folder}/out.csv'; --",
        "",
        "-- nothing",
        "SELECT $1",
    ],
)
def test_nothing_else_is_done(run: Live, sql: str) -> None:
    with RunReader(run.folder) as reader:
        with pytest.raises(StoreError):
            reader.execute(sql.format(folder=run.folder))
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1000,)]
        assert reader.execute("SELECT current_setting('threads')").fetchall() == [(2,)]
    assert {path.name for path in run.folder.iterdir()} <= {DATABASE, f"{DATABASE}.wal", SOCKET}
    assert run.connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("t",)]
    run.connection.execute("INSERT INTO t VALUES (1, 'the run writes on')")


@pytest.mark.parametrize(
    "sql",
    [
        "FROM checkpoint()",
        "SELECT 1 FROM t, main.\"Force_Checkpoint\" ('run')",
        "EXPLAIN ANALYZE FROM checkpoint()",
        "WITH x AS (FROM enable_logging()) FROM x",
        "FROM disable_profiling()",
        "FROM truncate_duckdb_logs()",
        "FROM query('FROM checkpoint()')",
        "FROM json_execute_serialized_sql(json_serialize_sql('FROM t'))",
        "PIVOT (SELECT * FROM t, checkpoint()) ON (i % 2) USING count(*)",
    ],
)
def test_a_function_that_does_something_is_refused(run: Live, sql: str) -> None:
    run.connection.execute("INSERT INTO t VALUES (1000, 'in the log')")
    log = run.folder / f"{DATABASE}.wal"
    before = log.stat().st_size
    with RunReader(run.folder) as reader:
        with pytest.raises(StoreError, match="has a side effect"):
            reader.execute(sql)
        assert reader.execute("SELECT i AS checkpoint FROM query('FROM t') ORDER BY 1 LIMIT 1").fetchall() == [(0,)]
    assert log.stat().st_size == before > 0
    assert run.connection.execute("SELECT current_setting('enable_logging')").fetchall() == [(False,)]


@pytest.mark.parametrize("sql", ["SELECT * FROM resulst", "SELEC 1", "SELECT nn\nFROM t", "SELECT i,\n s::INT\nFROM t"])
def test_an_error_is_told_as_on_the_file(run: Live, sql: str) -> None:
    with pytest.raises(duckdb.Error) as direct:
        run.connection.cursor().execute(sql).fetchall()
    with RunReader(run.folder) as reader, pytest.raises(StoreError) as found:
        reader.execute(sql)
    said, wanted = (re.sub(r"\^+", "^", str(error.value)).split() for error in (found, direct))
    assert said == wanted


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\xff\x00\n",
        b"[]\n",
        b'{"op": "query"}\n',
        b'{"op": "format"}\n',
        b'{"op": "query", "sql": 1}\n',
        b"GET",
    ],
)
def test_garbage_gets_an_error_and_nothing_else(run: Live, data: bytes) -> None:
    assert list(json.loads(run.send(data))) == ["error"]
    assert run.stops == 0


def test_a_request_without_end_is_refused(run: Live) -> None:
    with suppress(ConnectionError):  # it stops reading, so the kernel may say so first
        assert b"KiB" in run.send(b"x" * (3 << 20))
    with RunReader(run.folder) as reader:
        assert reader.live


LONG = "SELECT count(*) FROM range(10000000) a, range(1000000) b WHERE a.range * b.range % 7 = 3"


def test_a_query_that_takes_too_long(run: Live) -> None:
    with RunReader(run.folder) as reader:
        with pytest.raises(StoreError, match=r"longer than 0\.2 s.*--timeout"):
            reader.execute(LONG, timeout=0.2)
        assert reader.execute("SELECT 1").fetchall() == [(1,)]


def test_an_answer_that_is_too_large(run: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (answer, live):
        monkeypatch.setattr(module, "LIMIT_BYTES", 1000)
    with RunReader(run.folder) as reader:
        with pytest.raises(StoreError, match="larger than"):
            reader.execute("SELECT hash(range) FROM range(100000)")
        assert reader.execute("SELECT 1").fetchall() == [(1,)]


def test_whoever_goes_away_frees_the_place(run: Live) -> None:
    """Four long queries whose askers have gone do not keep a fifth waiting for their time limit."""
    for _ in range(4):
        with socket.socket(socket.AF_UNIX) as client:
            with live.short_name(run.folder / SOCKET) as name:
                client.connect(name)
            client.sendall(json.dumps({"op": "query", "sql": LONG, "timeout": 600}).encode() + b"\n")
    with RunReader(run.folder) as reader:
        assert reader.execute("SELECT 1", timeout=15).fetchall() == [(1,)]


def test_many_at_once(run: Live) -> None:
    found: list[Any] = []

    def query() -> None:
        with RunReader(run.folder) as reader:
            found.extend(reader.execute("SELECT sum(i) FROM t").fetchall())

    threads = [threading.Thread(target=query) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [(499500,)] * 12


def test_the_socket_is_the_users_alone(run: Live) -> None:
    mode = (run.folder / SOCKET).lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30) / ("deeper" * 20)
    with going_on(folder), RunReader(folder) as reader:
        assert reader.live
        assert reader.execute("SELECT max(i) FROM t").fetchall() == [(999,)]
    assert {path.name for path in folder.iterdir()} == {DATABASE}


def test_a_dead_ones_socket(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    live.listen(folder / SOCKET).close()
    assert not is_live(folder)
    with going_on(folder):
        assert is_live(folder)
    assert not (folder / SOCKET).exists()
    live.listen(folder / SOCKET).close()
    with RunReader(folder) as reader:
        assert not reader.live
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1000,)]


def test_a_reader_goes_over_to_the_file(tmp_path: Path) -> None:
    """A query that runs as the run ends, and those after it, are answered by the file."""
    folder = tmp_path / "run"
    with going_on(folder):
        reader = RunReader(folder)
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1000,)]
    with reader:
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1000,)]
        assert not reader.live


def test_the_end_does_not_wait_for_a_query(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    failure: list[str] = []

    def query() -> None:
        with RunReader(folder) as reader:
            try:
                reader.execute(LONG, timeout=1)
            except StoreError as error:
                failure.append(str(error))

    with going_on(folder) as run:
        thread = threading.Thread(target=query)
        thread.start()
        wait_until(lambda: run.server._free_cursors.qsize() == 1, "the query to begin")
    thread.join(20)
    assert "longer than 1 s" in failure[0]
    assert ask(folder, "SELECT count(*) FROM t") == [(1000,)]


def test_stop_asks_and_waits_for_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = threading.Event()
    with going_on(folder) as run:
        asking = request_stop(folder)
        assert next(asking) > 0
        assert run.stops == 1

        def wait() -> None:
            list(asking)
            ended.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not ended.is_set()
        with RunReader(folder) as reader:
            assert reader.live
        assert not ended.is_set()
    waiting.join(20)
    assert ended.is_set()
    with pytest.raises(StoreError, match="no run is going on"):
        next(request_stop(folder))


def test_a_holder_that_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    connect(path).close()
    code = f"import duckdb; c = duckdb.connect({str(path)!r}); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreInUseError, match=str(process.pid)):
            RunReader(tmp_path)
        process.kill()
