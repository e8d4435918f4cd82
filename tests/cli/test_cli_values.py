"""Values of every type: ``sql``, ``export`` and sinks write the same bytes, of one run, a live one and many."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.config.schema import SinkConfig
from infermesh.query.server import LiveServer
from infermesh.query.sinks import write_sinks
from infermesh.store.connection import connect
from infermesh.store.schema import DATABASE, RUN_DDL, quoted
from tests.support import COMMAND_S, environment, here_bytes

ROOT = Path(__file__).resolve().parents[2]

TEXT = "a\"b,c\r\nd;e\\f\tü🦆 'x'"
# Column → a value in SQL, what a CSV file says for it (where that is not the text of the JSON value), what JSON says.
VALUES: dict[str, tuple[str, Any, Any]] = {
    "bool": ("true", "true", True),
    "tinyint": ("(-128)::TINYINT", None, -128),
    "utinyint": ("255::UTINYINT", None, 255),
    "smallint": ("(-32768)::SMALLINT", None, -32768),
    "usmallint": ("65535::USMALLINT", None, 65535),
    "integer": ("(-2147483648)::INTEGER", None, -2147483648),
    "uinteger": ("4294967295::UINTEGER", None, 4294967295),
    "bigint": ("9223372036854775807::BIGINT", None, 9223372036854775807),
    "ubigint": ("18446744073709551615::UBIGINT", None, 18446744073709551615),
    "hugeint": ("-12345678901234567890123456789012345678::HUGEINT", None, -12345678901234567890123456789012345678),
    "uhugeint": ("12345678901234567890123456789012345678::UHUGEINT", None, 12345678901234567890123456789012345678),
    "bignum": (f"'{10**50}'::BIGNUM", None, 10**50),
    "decimal_2": ("1.50::DECIMAL(4, 2)", "1.50", 1.5),
    "decimal_10": (
        "1234567890123456789012345678.1234567890::DECIMAL(38, 10)",
        "1234567890123456789012345678.1234567890",
        1234567890123456789012345678.123456789,
    ),
    "float": ("-0.33003873::FLOAT", None, -0.33003873),
    "float_small": ("1e-7::FLOAT", "1e-07", 1e-7),
    "float_nan": ("'nan'::FLOAT", "nan", None),
    "double": ("0.1::DOUBLE", None, 0.1),
    "double_nan": ("'nan'::DOUBLE", "nan", None),
    "double_inf": ("'-inf'::DOUBLE", "-inf", None),
    "timestamp": ("TIMESTAMP '2026-01-02 03:22:24.5'", None, "2026-01-02 03:22:24.5"),
    "timestamp_s": ("TIMESTAMP_S '2026-01-02 03:22:24'", None, "2026-01-02 03:22:24"),
    "timestamp_ms": ("TIMESTAMP_MS '2026-01-02 03:22:24.125'", None, "2026-01-02 03:22:24.125"),
    "timestamp_ns": ("TIMESTAMP_NS '2026-01-02 03:22:24.123456789'", None, "2026-01-02 03:22:24.123456789"),
    "timestamp_tz": ("TIMESTAMPTZ '2026-01-02 03:22:24+02'", "2026-01-02 01:22:24+00", "2026-01-02 01:22:24+00"),
    "timestamp_tz_ns": (
        "TIMESTAMPTZ_NS '2026-01-02 03:22:24.123456789+02'",
        None,
        "2026-01-02 01:22:24.123456789+00",
    ),
    "timestamp_inf": ("TIMESTAMP 'infinity'", None, "infinity"),
    "date": ("DATE '2026-02-03'", None, "2026-02-03"),
    "time": ("TIME '12:34:56.5'", None, "12:34:56.5"),
    "time_tz": ("TIMETZ '12:34:56.123456+02'", None, "12:34:56.123456+02"),
    "time_ns": ("'12:34:56.123456789'::TIME_NS", None, "12:34:56.123456789"),
    "interval": ("INTERVAL '1 day'", None, "1 day"),
    "interval_us": ("INTERVAL '1 month 2 days 3.123456 seconds'", None, "1 month 2 days 00:00:03.123456"),
    "blob": ("'ab'::BLOB", None, "6162"),
    "bit": ("'0101'::BIT", None, "0101"),
    "uuid": ("'eeccb8c5-9943-b2bb-bb5e-222f4e14b687'::UUID", None, "eeccb8c5-9943-b2bb-bb5e-222f4e14b687"),
    "enum": ("'b'::ENUM('a', 'b')", None, "b"),
    "varchar": (f"$${TEXT}$$", None, TEXT),
    "empty": ("''", None, ""),
    "null_word": ("'NULL'", None, "NULL"),
    "spaces": ("'  x '", None, "  x "),
    "json": ('\'{"a":  [1,\n null, "ü"]}\'::JSON', '{"a":  [1,\n null, "ü"]}', {"a": [1, None, "ü"]}),
    "json_null": ("'null'::JSON", "null", None),
    "list": ("[1, NULL]", "[1,null]", [1, None]),
    "list_empty": ("[]::INTEGER[]", "[]", []),
    "list_float": ("[0.1, 'nan'::FLOAT, NULL]::FLOAT[]", "[0.1,null,null]", [0.1, None, None]),
    "list_json": ("['{\"a\": 1}'::JSON]", '[{"a":1}]', [{"a": 1}]),
    "list_hugeint": ("[1::HUGEINT]", "[1]", [1]),
    "array": ("[0.1, 0.2]::FLOAT[2]", "[0.1,0.2]", [0.1, 0.2]),
    "struct": (
        "{'a b': 0.1::FLOAT, 'when': TIMESTAMP '2026-01-02 03:22:24', 'l': [INTERVAL '1 day'], 'b': 'ab'::BLOB}",
        '{"a b":0.1,"when":"2026-01-02 03:22:24","l":["1 day"],"b":"6162"}',
        {"a b": 0.1, "when": "2026-01-02 03:22:24", "l": ["1 day"], "b": "6162"},
    ),
    "map": ("MAP {'k, ü': 0.1::FLOAT, 'n': 'nan'}", '{"k, ü":0.1,"n":null}', {"k, ü": 0.1, "n": None}),
    "map_number": ("MAP {1: 'a'}", '{"1":"a"}', {"1": "a"}),
    "union": ("union_value(n := 0.1::FLOAT)::UNION(s VARCHAR, n FLOAT)", '{"n":0.1}', {"n": 0.1}),
    "tuple": ("row(0.1::FLOAT, 'a')", '[0.1,"a"]', [0.1, "a"]),
    "variant": ("42::VARIANT", None, 42),
    "geometry": ("'POINT(1 2)'::GEOMETRY", None, "POINT (1 2)"),
    "nested": (
        "[MAP {'k': {'f': [0.1::FLOAT], 'h': 1::HUGEINT, 'u': union_value(n := 'nan'::FLOAT)}}]",
        '[{"k":{"f":[0.1],"h":1,"u":{"n":null}}}]',
        [{"k": {"f": [0.1], "h": 1, "u": {"n": None}}}],
    ),
    "union_nan": ("union_value(n := 'nan'::FLOAT)::UNION(s VARCHAR, n FLOAT)", '{"n":null}', {"n": None}),
}
QUERY = "SELECT *, NULL AS untyped FROM everything ORDER BY row_id"
FORMATS = ("csv", "jsonl", "parquet")
# Parquet has no time of day with an offset, no interval finer than a millisecond, no unions and no tuples.
PARQUET_CHANGES = ("time_tz", "interval_us", "union", "union_nan", "tuple", "nested")


def fill(connection: duckdb.DuckDBPyConnection) -> None:
    """A run in small: the rows 0 with all values, 1 with none, 2 with all."""
    columns = ", ".join(
        f"CASE WHEN i <> 1 THEN {value} END AS {quoted(name)}" for name, (value, _, _) in VALUES.items()
    )
    connection.execute(f"CREATE TABLE everything AS SELECT i AS row_id, {columns} FROM range(3) t(i)")
    connection.execute(RUN_DDL)
    connection.execute("INSERT INTO run (run_id, experiment, config) VALUES ('id', 'lab', '{}')")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with connect(folder / DATABASE) as connection:
        fill(connection)
    return folder


@pytest.fixture(params=["finished", "live"])
def asked(run: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The run, of which a process holds the database where it is live."""
    with ExitStack() as stack:
        if request.param == "live":
            connection = stack.enter_context(connect(run / DATABASE))
            stack.enter_context(LiveServer(run, connection.cursor, lambda: None))
        yield run


def output(*arguments: str) -> bytes:
    found = here_bytes(*arguments, cwd=Path.cwd(), TZ="UTC")
    assert found.returncode == 0, found.stderr.decode()
    return found.stdout


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Format → what ``infermesh export`` writes for the query."""
    folder = tmp_path_factory.mktemp("exported")
    for format in FORMATS:
        output("export", str(run), str(folder / f"x.{format}"), "--sql", QUERY)
    return {format: (folder / f"x.{format}").read_bytes() for format in FORMATS}


def test_json_lines(exported: dict[str, bytes]) -> None:
    full, empty, again = (
        json.loads(line, parse_constant=pytest.fail) for line in exported["jsonl"].decode().splitlines()
    )
    values = {name: said for name, (_, _, said) in VALUES.items()}
    assert full == {"row_id": 0, **values, "untyped": None}
    assert again == full | {"row_id": 2}
    assert empty == dict.fromkeys(full) | {"row_id": 1}
    assert b'"decimal_10":1234567890123456789012345678.1234567890,' in exported["jsonl"]  # more than Python reads of it


def test_csv(exported: dict[str, bytes]) -> None:
    full, empty, _ = csv.DictReader(exported["csv"].decode().splitlines(keepends=True))
    for name, (_, text, said) in VALUES.items():
        assert full[name] == (str(said) if text is None else text), name
    assert set(empty.values()) == {"1", ""}
    assert b',"",' in exported["csv"].splitlines()[2]  # an empty text, and not none


@pytest.mark.parametrize("format", FORMATS)
def test_sql_and_export_write_the_same(asked: Path, exported: dict[str, bytes], tmp_path: Path, format: str) -> None:
    assert output("sql", QUERY, "--run", str(asked), "--format", format) == exported[format]
    output("export", str(asked), str(tmp_path / f"x.{format}"), "--sql", QUERY)
    assert (tmp_path / f"x.{format}").read_bytes() == exported[format]


ASKING = """
import sys
from pathlib import Path
from tests.support import here_bytes

for format in sys.argv[3:]:
    found = here_bytes("sql", sys.argv[1], "--runs", sys.argv[2], "--format", format, cwd=Path.cwd(), TZ="UTC")
    Path(f"many.{format}").write_bytes(found.stdout or found.stderr)
"""


def test_many_runs_give_what_one_gives(asked: Path, exported: dict[str, bytes], tmp_path: Path) -> None:
    """Asked from another process: within the run's, its file cannot be attached."""
    query = QUERY.replace("*", "* EXCLUDE (run_id)")
    asking = [sys.executable, "-c", ASKING, query, str(asked), *FORMATS]
    environ = environment(PYTHONPATH=str(ROOT))
    subprocess.run(asking, cwd=tmp_path, env=environ, timeout=COMMAND_S, check=True)
    assert {format: (tmp_path / f"many.{format}").read_bytes() for format in FORMATS} == exported


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_sinks_write_the_same(run: Path, tmp_path: Path, format: str) -> None:
    with connect(run / DATABASE, read_only=True) as connection:
        report = write_sinks(connection, {"s": SinkConfig(path=f"s.{format}", table="everything")}, tmp_path, tmp_path)
    assert report.errors == []
    output("export", str(run), str(tmp_path / f"t.{format}"), "--table", "everything")
    query = "FROM everything ORDER BY row_id"
    written = (tmp_path / f"s.{format}").read_bytes()
    assert written == (tmp_path / f"t.{format}").read_bytes()
    assert written == output("sql", query, "--run", str(run), "--format", format)


def test_json_is_an_array_of_the_lines(asked: Path, exported: dict[str, bytes]) -> None:
    array = json.loads(output("sql", QUERY, "--run", str(asked), "--format", "json"))
    assert array == [json.loads(line) for line in exported["jsonl"].splitlines()]


def test_parquet_holds_the_values(exported: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(exported["parquet"])
    with duckdb.connect() as connection:
        fill(connection)
        kept = [name for name in VALUES if name not in PARQUET_CHANGES]
        for name in kept:
            rows = [
                connection.execute(f"SELECT {quoted(name)}::VARCHAR FROM {table} ORDER BY row_id").fetchall()
                for table in (f"'{tmp_path}/x.parquet'", "everything")
            ]
            assert rows[0] == rows[1], name
