"""A query's rows on stdout: a table for eyes, or CSV, JSON, JSON lines or Parquet for whatever comes next."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.cli.common import fail
from infermesh.hints import nearest

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
_FETCH = 1000
_CELL = 60
_TABLE_ROWS = 200


def chosen_format(format: str | None) -> str:
    """The format that ``--format`` names; a table on a terminal and CSV elsewhere where it names none."""
    if format is not None and format not in FORMATS:
        fail(f"--format {format}: no such format.{nearest(format, list(FORMATS))}", code=2)
    return format or ("table" if sys.stdout.isatty() else "csv")


def write_query(connection: duckdb.DuckDBPyConnection, query: str, format: str) -> None:
    """Run a query and write its rows to stdout. Raises ``duckdb.Error``."""
    if format == "parquet":
        write_parquet(connection, query)
        return
    connection.execute(query)
    columns = [(column[0], str(column[1])) for column in connection.description or ()]
    write = {"table": write_table, "csv": write_csv, "json": write_json, "jsonl": write_jsonl}[format]
    write(columns, rows(connection))
    sys.stdout.flush()


def rows(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    """Rows of the query that was executed last, read as they are asked for."""
    while rows := connection.fetchmany(_FETCH):
        yield from rows


def _plain(value: Any, kind: str) -> Any:
    """A value as JSON knows it: a JSON column's text becomes the value that it stands for."""
    return orjson.loads(value) if kind == "JSON" and isinstance(value, str) else value


def _json_default(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)


def _encoded(columns: Sequence[tuple[str, str]], row: Sequence[Any]) -> bytes:
    record = {name: _plain(value, kind) for (name, kind), value in zip(columns, row, strict=True)}
    return orjson.dumps(record, default=_json_default, option=orjson.OPT_NON_STR_KEYS)


def write_jsonl(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[Any, ...]]) -> None:
    """An object a line; ``columns`` are names with their DuckDB types."""
    for row in rows:
        sys.stdout.buffer.write(_encoded(columns, row) + b"\n")
    sys.stdout.buffer.flush()


def write_json(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[Any, ...]]) -> None:
    """One array of objects."""
    out = sys.stdout.buffer
    before = b"[\n"
    for row in rows:
        out.write(before + _encoded(columns, row))
        before = b",\n"
    out.write(b"[]\n" if before == b"[\n" else b"\n]\n")
    out.flush()


def write_csv(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[Any, ...]]) -> None:
    """A header and a line a row; nested values as JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    for row in rows:
        writer.writerow([_cell(value) if isinstance(value, list | dict | bytes) else value for value in row])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        return orjson.dumps(value, default=_json_default, option=orjson.OPT_NON_STR_KEYS).decode()
    return str(value)


def write_table(columns: Sequence[tuple[str, str]], rows: Iterator[tuple[Any, ...]]) -> None:
    """A table for a terminal: long cells are cut, and so are many rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = ("INT", "DOUBLE", "FLOAT", "DECIMAL")
    for name, kind in columns:
        right = any(number in kind for number in numbers) and "[" not in kind
        table.add_column(Text.assemble(name, "\n", (kind.lower(), "dim")), justify="right" if right else "left")
    more = False
    for number, row in enumerate(rows):
        if number == _TABLE_ROWS:
            more = True
            break
        cells = []
        for value in row:
            shown = f"{value:.6g}" if isinstance(value, float) else _cell(value)
            text = "NULL" if value is None else shown.replace("\n", "⏎")
            text = text if len(text) <= _CELL else text[: _CELL - 1] + "…"
            cells.append(Text(text, style="dim" if value is None else ""))
        table.add_row(*cells)
    Console().print(table)
    if more:
        print(f"the first {_TABLE_ROWS} rows; --format csv, json, jsonl or parquet gives all", file=sys.stderr)


def write_parquet(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """A query's rows as a Parquet file; a terminal is refused."""
    if sys.stdout.isatty():
        fail("parquet is not for a terminal: send it to a file: … --format parquet > results.parquet", code=2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.parquet"
        connection.execute(f"COPY ({query.strip().rstrip(';')}) TO '{file}' (FORMAT parquet)")
        with open(file, "rb") as data:
            while block := data.read(1 << 20):
                sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
