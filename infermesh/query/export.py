"""A query's rows as Parquet, CSV or JSON, in a file or as a stream of bytes.

DuckDB writes all of them, with the expressions of :mod:`infermesh.store.values`: the same query gives the same bytes,
wherever they go.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import duckdb

from infermesh.config.file_names import RowFormat, row_file
from infermesh.errors import ConfigError, StoreError
from infermesh.hints import counted, cured, system_words
from infermesh.query.beside import folder_beside
from infermesh.query.bound import bind, copy_rows, in_thread
from infermesh.query.table_query import TableQuery
from infermesh.store.connection import damage, shortened
from infermesh.store.memory import VECTOR, more_room
from infermesh.store.schema import literal, quoted
from infermesh.store.sql_words import refusal
from infermesh.store.values import csv_value, json_value, parquet_value

_FORMATS: dict[RowFormat | None, str] = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl"}
_ROW_GROUP = 20_480  # rows of Parquet that are held until they are written
_OPTIONS = {
    "parquet": f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}",
    "csv": "FORMAT csv, HEADER",
    "tsv": "FORMAT csv, HEADER, DELIMITER '\t'",
    "jsonl": "FORMAT json",
    "json": "FORMAT json, ARRAY",
}
_VALUES = {"parquet": parquet_value, "csv": csv_value, "tsv": csv_value, "jsonl": json_value, "json": json_value}
_CHUNK = 8 * VECTOR  # row_ids; a quarter of it where they do not fit into DuckDB's memory
_BLOCK = 1 << 20
_PIPES = Path("/dev/fd")
_WANTED = "a name that ends in .parquet, .csv, .tsv or .jsonl; all but .parquet also with .gz or .zst"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written: ``bytes`` is its size."""

    path: Path
    rows: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.path} ({counted(self.rows, 'row')}, {_size(self.bytes)})"


def file_format(path: Path) -> tuple[str, str | None]:
    """The format and the compression that a file's name asks for.

    Raises
    ------
    ConfigError
        The name does not tell. The message does not say where the name stands.
    """
    named, compression = row_file(path)
    format = _FORMATS.get(named)
    if format is None or (format == "parquet" and compression):
        raise ConfigError(f"the format of '{path}' cannot be told from its name; expected {_WANTED}")
    return format, compression


def export(connection: duckdb.DuckDBPyConnection, query: str | TableQuery, path: Path) -> int:
    """Write a query's rows into a file, in the format that its name tells; return the number of rows.

    The file is written beside the wanted one and takes its place when it is whole: a reader sees the old file or the
    new one.

    Parameters
    ----------
    query
        A table's is written some thousand rows at a time, so that no join and no sort ever holds all of them; SQL goes
        to DuckDB as it is.
    path
        Its folder is made where it is missing; a file that is there is replaced.

    Raises
    ------
    ConfigError
        The query does not bind, or the name tells no format.
    StoreError
        The file cannot be written, or the query fails on a row.
    """
    format, compression = file_format(path)
    if path.is_dir():
        raise StoreError(f"{path} could not be written: it is a folder")
    options = _OPTIONS[format] + (f", COMPRESSION {compression}" if compression else "")
    try:
        bound = bind(connection, query.sql if isinstance(query, TableQuery) else query)
    except duckdb.Error as error:
        raise ConfigError(f"the query fails: {refusal(error, 400)}") from None
    written = _expressions(bound.columns, format)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_beside(path) as folder:
            whole = folder / "whole"
            if isinstance(query, TableQuery) and query.by_row:
                rows = _copy_chunks(connection, query, written, whole, options)
            else:
                rows = copy_rows(connection, bound.sql, written, whole, options)
            whole.replace(path)
    except duckdb.Error as error:
        raise damage(error) or StoreError(f"{path} could not be written: {cured(shortened(error))}") from None
    except OSError as error:
        raise StoreError(f"{path} could not be written: {system_words(error)}") from None
    return rows


def stream(connection: duckdb.DuckDBPyConnection, query: str, format: str, out: BinaryIO) -> None:
    """Write a query's rows as DuckDB makes them, without holding them.

    DuckDB writes into a pipe from a thread of its own, and this thread carries over what comes out of it. If ``out``
    takes no more, or Ctrl-C is pressed, the query is interrupted. Where pipes have no paths (Windows), the rows go
    through a temporary file.

    Parameters
    ----------
    query
        Of several statements, the last one's rows are written.
    format
        ``csv``, ``json``, ``jsonl`` or ``parquet``.

    Raises
    ------
    duckdb.Error
        The query is wrong, or fails on a row. What was written by then stays written.
    OSError
        ``out`` cannot be written to.
    """
    bound = bind(connection, query)
    written = _expressions(bound.columns, format)
    options = f"{_OPTIONS[format]}, USE_TMP_FILE false"
    if not _PIPES.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows"
            copy_rows(connection, bound.sql, written, file, options)
            with open(file, "rb") as rows:
                shutil.copyfileobj(rows, out, _BLOCK)
        return
    reading, writing = os.pipe()

    def copy() -> None:
        try:
            copy_rows(connection, bound.sql, written, _PIPES / str(writing), options)
        finally:
            os.close(writing)  # now what is read has an end

    with in_thread(connection, copy) as copying, open(reading, "rb", buffering=0) as source:
        shutil.copyfileobj(source, out, _BLOCK)
        copying.result()


def _expressions(columns: Sequence[tuple[str, Any]], format: str) -> list[str]:
    """What is written of each column, in the format; see :func:`~infermesh.query.bound.select_from`."""
    names: list[str] = []
    found = []
    for number, (name, kind) in enumerate(columns):
        names.append(_unique(name, names))
        found.append(f"{_VALUES[format](kind, f'c{number}')} AS {quoted(names[-1])}")
    return found


def _unique(name: str, taken: Sequence[str]) -> str:
    lowered = {other.lower() for other in taken}
    number, found = 1, name
    while found.lower() in lowered:
        found, number = f"{name}_{number}", number + 1
    return found


def _copy_chunks(
    connection: duckdb.DuckDBPyConnection, query: TableQuery, written: Sequence[str], whole: Path, options: str
) -> int:
    """Write one range of row_ids after the other: text is put together as it comes, Parquet at the end."""
    row = connection.execute(f"SELECT max(row_id) FROM {query.source}").fetchone()
    last = 0 if row is None or row[0] is None else int(row[0])
    text = "parquet" not in options
    parts: list[Path] = []
    low, rows, size = 0, 0, _CHUNK
    while low <= last:
        part = whole.with_name(f"{len(parts):06}")
        text_options = options.replace("HEADER", f"HEADER {not parts}")
        try:
            rows += copy_rows(connection, query.between(low, low + size), written, part, text_options)
        except duckdb.OutOfMemoryException:
            if size > VECTOR:
                size //= 4
            elif not more_room(connection):
                raise
            continue
        parts.append(part)
        if text:
            with open(part, "rb") as source, open(whole, "ab") as target:
                shutil.copyfileobj(source, target, _BLOCK)
            part.unlink()
        low += size
    if len(parts) == 1 and not text:
        parts[0].replace(whole)
    elif not text:
        files = ", ".join(literal(str(part)) for part in parts)
        bound = bind(connection, f"SELECT * FROM read_parquet([{files}])")
        same = [f"c{number} AS {quoted(name)}" for number, (name, _) in enumerate(bound.columns)]
        options = options.replace(str(_ROW_GROUP), str(min(_ROW_GROUP, size)))
        copy_rows(connection, bound.sql, same, whole, options)
    return rows


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
