"""Rows as Arrow columns: what DuckDB stores of them is what its appender would have stored."""

from __future__ import annotations

import math
from array import array
from datetime import datetime
from typing import Any

import duckdb
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infermesh.store.schema import Column
from infermesh.store.segments import appendable, segment

SOME = {
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "INTEGER": st.integers(-(2**31), 2**31 - 1),
    "DOUBLE": st.floats(allow_nan=False),
    "VARCHAR": st.text(st.characters(exclude_categories=["Cs"])),
    "JSON": st.integers().map(str),
    "TIMESTAMP": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
    "FLOAT[]": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5),
}
COLUMNS = [Column(f"c{number}", kind) for number, kind in enumerate(SOME)]
ROWS = st.lists(st.tuples(*(st.none() | values for values in SOME.values())), min_size=1, max_size=20)


def stored(columns: list[Column], rows: list[tuple[Any, ...]], *, appended: bool = False) -> list[tuple[Any, ...]]:
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.execute(f"CREATE TABLE t ({', '.join(column.ddl for column in columns)})")
        if appended:
            with connection.appender("t") as appender:
                appender.append_rows(appendable(columns, rows))
        else:
            made = segment(columns, rows)
            assert made is not None
            connection.register("s", made)
            connection.execute(f"INSERT INTO t SELECT {made.select} FROM s", made.values)
        return connection.execute("FROM t").fetchall()


@given(ROWS)
def test_both_ways_store_the_same(rows: list[tuple[Any, ...]]) -> None:
    assume(segment([COLUMNS[0]], [row[:1] for row in rows]) is not None)  # rows of constants alone are for the appender
    assert stored(COLUMNS, rows) == stored(COLUMNS, rows, appended=True)


def test_a_segment_of_many_pieces_keeps_the_order() -> None:
    columns = [Column("row_id", "BIGINT"), Column("text", "VARCHAR"), Column("v", "FLOAT[]")]
    rows = [(n, None if n % 3 else f"ä{n}", None if n % 5 == 0 else [n / 2, 1.0]) for n in range(3000)]
    assert stored(columns, rows) == rows


def test_a_time_may_be_microseconds_and_a_vector_bytes() -> None:
    columns = [Column("row_id", "BIGINT"), Column("at", "TIMESTAMP"), Column("v", "FLOAT[]")]
    rows = [(0, 86_400_500_001, array("f", [0.5, -1.0]).tobytes()), (1, datetime(1970, 1, 1), b""), (2, None, None)]
    expected = [
        (0, datetime(1970, 1, 2, 0, 0, 0, 500_001), [0.5, -1.0]),
        (1, datetime(1970, 1, 1), []),
        (2, None, None),
    ]
    assert stored(columns, rows) == expected
    assert stored(columns, rows, appended=True) == expected


def test_numbers_keep_what_a_column_holds() -> None:
    columns = [Column("row_id", "BIGINT"), Column("d", "DOUBLE")]
    rows = [(0, math.inf), (1, -0.0), (2, 5e-324), (3, 7)]
    assert [str(value) for _, value in stored(columns, rows)] == ["inf", "-0.0", "5e-324", "7.0"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("BIGINT", 2**63),
        ("INTEGER", "12"),
        ("INTEGER", 1.5),
        ("VARCHAR", "half \ud800"),
        ("VARCHAR", 5),
        ("TIMESTAMP", "1970-01-01"),
        ("FLOAT[]", ["a"]),
        ("FLOAT[]", [0.5, 1e39]),
        ("FLOAT[]", [0.5, math.inf]),
        ("FLOAT[]", 5),
        ("DECIMAL(5, 2)", 1),
    ],
)
def test_what_is_not_known_is_left_to_the_appender(kind: str, value: Any) -> None:
    columns = [Column("row_id", "BIGINT"), Column("value", kind)]
    assert segment(columns, [(0, value), (1, None)]) is None
    assert segment(columns, [(0, value, "one too many"), (1, None)]) is None


def test_long_values_make_small_pieces() -> None:
    """A piece is made under the interpreter's lock, and holds at most 2 GB of text."""
    columns = [Column("row_id", "BIGINT"), Column("text", "VARCHAR")]
    rows = [(number, f"{number}" + "x" * 100_000) for number in range(100)]
    made = segment(columns, rows)
    assert made is not None
    assert len(made._pieces) == 6
    assert stored(columns, rows) == rows
