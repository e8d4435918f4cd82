"""A query's rows on stdout: a table for eyes, or CSV, JSON, JSON lines or Parquet for whatever comes next."""

from __future__ import annotations

import sys
from typing import Any

import duckdb

from infermesh.cli.common import fail
from infermesh.hints import named, nearest, visible
from infermesh.query.bound import bind, in_thread, lines_of_query, select_from
from infermesh.query.export import stream
from infermesh.store.values import csv_value

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
_CELL = 60
_TABLE_ROWS = 200
_FLOATS = ("float", "double")
_NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "BIGNUM")


def chosen_format(format: str | None) -> str:
    """The format that ``--format`` names; without one, a table on a terminal and CSV elsewhere."""
    if format is not None and format not in FORMATS:
        fail(f"--format {format}: no such format.{nearest(format, list(FORMATS))}", code=2)
    if format == "parquet" and sys.stdout.isatty():
        fail("parquet is not for a terminal: send it to a file: … --format parquet > results.parquet", code=2)
    return format or ("table" if sys.stdout.isatty() else "csv")


def write_query(connection: duckdb.DuckDBPyConnection, query: str, format: str) -> None:
    """Run a query and write its rows to stdout, in one of ``FORMATS``. Raises ``duckdb.Error``."""
    if format == "table":
        _print_table(connection, query)
        return
    with named("stdout"):
        sys.stdout.flush()
        stream(connection, query, format, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _print_table(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Print the first rows; long cells are cut."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from infermesh.cli.console import SafeConsole

    bound = bind(connection, query)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, kind in bound.columns:
        shown = str(kind)
        right = any(number in shown for number in _NUMBERS) and "[" not in shown
        table.add_column(
            Text.assemble(visible(name), "\n", (shown.lower(), "dim")), justify="right" if right else "left"
        )
    # Floats are rounded here; all other values are the text that CSV has.
    cells = [
        f"c{number}" if kind.id in _FLOATS else f"({csv_value(kind, f'c{number}')})::VARCHAR"
        for number, (_, kind) in enumerate(bound.columns)
    ]
    select = f"{select_from(bound.sql, cells)} LIMIT {_TABLE_ROWS + 1}"
    with lines_of_query(), in_thread(connection, lambda: connection.execute(select).fetchall()) as found:
        rows = found.result()
    for row in rows[:_TABLE_ROWS]:
        table.add_row(*(Text(_cell(value), style="dim" if value is None else "") for value in row))
    SafeConsole().print(table)
    if len(rows) > _TABLE_ROWS:
        print(f"the first {_TABLE_ROWS} rows; --format csv, json, jsonl or parquet gives all", file=sys.stderr)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    text = f"{value:.6g}" if isinstance(value, float) else visible(str(value).replace("\n", "⏎"))
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
