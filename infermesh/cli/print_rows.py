"""A query's rows on stdout: a table for eyes, or CSV, JSON, JSON lines or Parquet for whatever comes next."""

from __future__ import annotations

import os
import shutil
import sys

import duckdb

from infermesh.cli.common import fail
from infermesh.cli.completers import FORMATS
from infermesh.hints import counted, named, nearest
from infermesh.query.bound import bind, in_thread, lines_of_query, select_from
from infermesh.query.export import stream
from infermesh.store.values import csv_value

_FOR_EYES = ("table", "record")
_ROWS = 200  # for eyes
_FLOATS = ("float", "double")
_NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "BIGNUM")


def chosen_format(format: str | None, record: bool = False) -> str:
    """The format that ``--format`` or ``--record`` names; without one, a table on a terminal and CSV elsewhere."""
    if record:
        if format not in (None, "record"):
            fail(f"--record and --format {format} are two forms: give one of them", code=2)
        return "record"
    if format is not None and format not in FORMATS:
        fail(f"--format {format}: no such format.{nearest(format, list(FORMATS))}", code=2)
    if format == "parquet" and sys.stdout.isatty():
        fail("parquet is not for a terminal: send it to a file: … --format parquet > results.parquet", code=2)
    return format or ("table" if sys.stdout.isatty() else "csv")


def write_query(connection: duckdb.DuckDBPyConnection, query: str, format: str) -> None:
    """Run a query and write its rows to stdout, in one of ``FORMATS``. Raises ``duckdb.Error``."""
    if format in _FOR_EYES:
        _print_rows(connection, query, blocks=format == "record")
        return
    with named("stdout"):
        sys.stdout.flush()
        stream(connection, query, format, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _print_rows(connection: duckdb.DuckDBPyConnection, query: str, *, blocks: bool) -> None:
    """Print the first rows as a table that fits the terminal, or each as a block; say what is left out."""
    from infermesh.cli.table import Shown, as_cell, print_blocks, print_table

    bound = bind(connection, query)
    # Floats are rounded here; all other values are the text that CSV has.
    cells = [
        f"c{number}" if kind.id in _FLOATS else f"({csv_value(kind, f'c{number}')})::VARCHAR"
        for number, (_, kind) in enumerate(bound.columns)
    ]
    select = f"{select_from(bound.sql, cells)} LIMIT {_ROWS + 1}"
    with lines_of_query(), in_thread(connection, lambda: connection.execute(select).fetchall()) as found:
        rows = found.result()
    columns = [
        Shown(name, str(kind).lower(), _is_number(str(kind)), [as_cell(row[number]) for row in rows[:_ROWS]])
        for number, (name, kind) in enumerate(bound.columns)
    ]
    width = terminal_width()
    if blocks:
        print_blocks(columns, width)
    elif (shown := print_table(columns, width)) < len(columns):
        sys.stdout.flush()
        print(
            f"{counted(len(columns), 'column')}, {shown} shown: name some in the query, or --record shows a row as a "
            f"block of all its columns",
            file=sys.stderr,
        )
    if len(rows) > _ROWS:
        print(f"the first {_ROWS} rows; --format csv, json, jsonl or parquet gives all", file=sys.stderr)


def terminal_width() -> int | None:
    """The characters in a line of the terminal, or in ``COLUMNS`` where stdout is none; ``None`` if neither says."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        return None
    return max(shutil.get_terminal_size().columns, 1)


def _is_number(kind: str) -> bool:
    name, _, _ = kind.partition("(")  # DECIMAL(18,3) is one, STRUCT(n INTEGER) is none
    return any(number in name for number in _NUMBERS) and "[" not in kind
