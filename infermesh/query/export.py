"""Tables out: a query's rows in a Parquet, CSV or JSON lines file, and the sinks of a declaration.

DuckDB streams the rows into a file beside the wanted one, which takes its place when it is whole: a reader sees the old
file or the new one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import duckdb

from infermesh.config.schema import SinkConfig
from infermesh.errors import ConfigError, StoreError
from infermesh.hints import nearest
from infermesh.inputs.formats import RowFormat, row_file
from infermesh.store.ingest import row_columns
from infermesh.store.memory import VECTOR, more_room
from infermesh.store.schema import literal, quoted

_FORMATS: dict[RowFormat | None, str] = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "json"}
_ROW_GROUP = 20_480  # rows of Parquet that are held until they are written
_OPTIONS = {
    "parquet": f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP}",
    "csv": "FORMAT csv, HEADER",
    "tsv": "FORMAT csv, HEADER, DELIMITER '\t'",
    "json": "FORMAT json",
}
_CHUNK = 8 * VECTOR  # row_ids; a quarter of it where they do not fit into DuckDB's memory
_WANTED = "a name that ends in .parquet, .csv, .tsv or .jsonl; all but .parquet also with .gz or .zst"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written: ``bytes`` is its size."""

    path: Path
    rows: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.path} ({self.rows} rows, {_size(self.bytes)})"


@dataclass(slots=True)
class SinkReport:
    """What became of the sinks: the files, and a line for each that could not be written."""

    written: list[WrittenFile] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def file_format(path: Path) -> tuple[str, str | None]:
    """The format and the compression that a file's name asks for.

    Raises
    ------
    ConfigError
        The name does not tell; the message has no place in it.
    """
    named, compression = row_file(path)
    format = _FORMATS.get(named)
    if format is None or (format == "parquet" and compression):
        raise ConfigError(f"the format of '{path}' cannot be told from its name; expected {_WANTED}")
    return format, compression


@dataclass(frozen=True, slots=True)
class TableQuery:
    """A SELECT over one table or view; with ``by_row`` it has a ``row_id``, whose order the rows come in."""

    select: str
    source: str
    where: str | None
    by_row: bool

    @property
    def sql(self) -> str:
        """The whole of it, as SQL."""
        condition = "" if self.where is None else f" WHERE ({self.where}\n)"
        return f"SELECT {self.select} FROM {self.source}{condition}{' ORDER BY row_id' if self.by_row else ''}"

    def between(self, low: int, high: int) -> str:
        """The rows from ``low`` to below ``high``."""
        rows = f"row_id >= {low} AND row_id < {high}"
        condition = rows if self.where is None else f"({self.where}\n) AND {rows}"
        return f"SELECT {self.select} FROM {self.source} WHERE {condition} ORDER BY row_id"


class Asked(Protocol):
    """What answers SQL: a connection, or a reader of a run."""

    def execute(self, query: str, /) -> duckdb.DuckDBPyConnection:
        """Run a query; what it gives holds the rows."""
        ...


def table_query(
    connection: Asked,
    table: str,
    columns: Sequence[str] | None,
    where: str | None,
    labels: tuple[str, str, str],
) -> TableQuery:
    """A checked query over a table or view of a run.

    Parameters
    ----------
    labels
        What to call the table, the columns and the condition in messages.

    Raises
    ------
    ConfigError
        There is no such table or column, or the condition does not bind.
    """
    tables = {name.lower(): name for (name,) in connection.execute(_TABLES).fetchall()}
    if table.lower() not in tables:
        raise ConfigError(f"{labels[0]}: no table '{table}'.{nearest(table, list(tables.values()))}")
    source = quoted(tables[table.lower()])
    present = [row[0] for row in connection.execute(f"DESCRIBE {source}").fetchall()]
    known = {name.lower(): name for name in present}
    for column in columns or ():
        if column.lower() not in known:
            raise ConfigError(f"{labels[1]}: {table} has no column '{column}'.{nearest(column, present)}")
    select = ", ".join(quoted(known[column.lower()]) for column in columns) if columns else "*"
    query = TableQuery(select, source, where, by_row=present[0] == "row_id")
    try:
        connection.execute(f"DESCRIBE {query.sql}")
    except (duckdb.Error, StoreError) as error:
        raise ConfigError(f"{labels[2]}: {_short(error)}") from None
    return query


_TABLES = (
    "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT internal "
    "UNION SELECT view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal ORDER BY 1"
)


def export(connection: duckdb.DuckDBPyConnection, query: str | TableQuery, path: Path) -> int:
    """Write a query's rows into a file, in the format that its name tells; the number of rows.

    JSON columns are values in JSON lines, and nested values are JSON in CSV. JSON knows no NaN and no infinity: they
    are ``null`` there. A HUGEINT is a DECIMAL(38, 0) in Parquet, bytes are hexadecimal in text formats.

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
    sql = query.sql if isinstance(query, TableQuery) else query.strip().rstrip(";")
    columns = _columns(connection, sql, format)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            whole = Path(folder) / "whole"
            if isinstance(query, TableQuery) and query.by_row:
                rows = _copy_chunks(connection, query, columns, whole, options)
            else:
                rows = _copy(connection, columns.format(sql), whole, options)
            whole.replace(path)
    except duckdb.Error as error:
        raise StoreError(f"{path} could not be written: {_short(error)}") from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StoreError(f"{path} could not be written: {error.strerror or error}{where}") from None
    return rows


def _copy(connection: duckdb.DuckDBPyConnection, select: str, target: Path, options: str) -> int:
    row = connection.execute(f"COPY ({select}) TO {literal(str(target))} ({options})").fetchone()
    return 0 if row is None else int(row[0])


def _copy_chunks(
    connection: duckdb.DuckDBPyConnection, query: TableQuery, columns: str, whole: Path, options: str
) -> int:
    """Write a range of row_ids after the other: text is put together as it comes, Parquet at the end."""
    row = connection.execute(f"SELECT max(row_id) FROM {query.source}").fetchone()
    last = 0 if row is None or row[0] is None else int(row[0])
    text = "parquet" not in options
    parts: list[Path] = []
    low, rows, size = 0, 0, _CHUNK
    while low <= last:
        part = whole.with_name(f"{len(parts):06}")
        select = columns.format(query.between(low, low + size))
        try:
            rows += _copy(connection, select, part, options.replace("HEADER", f"HEADER {not parts}"))
        except duckdb.OutOfMemoryException:
            if size > VECTOR:
                size //= 4
            elif not more_room(connection):
                raise
            continue
        parts.append(part)
        if text:
            with open(part, "rb") as source, open(whole, "ab") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            part.unlink()
        low += size
    if len(parts) == 1 and not text:
        parts[0].replace(whole)
    elif not text:
        files = ", ".join(literal(str(part)) for part in parts)
        options = options.replace(str(_ROW_GROUP), str(min(_ROW_GROUP, size)))
        _copy(connection, f"SELECT * FROM read_parquet([{files}])", whole, options)
    return rows


def check_sinks(connection: duckdb.DuckDBPyConnection, sinks: Mapping[str, SinkConfig]) -> None:
    """Check every sink against the tables that are there, before anything is sent.

    Raises
    ------
    ConfigError
        Its path, table, columns or condition cannot be; one line for each sink that is wrong.
    """
    problems: list[str] = []
    paths: dict[str, str] = {}
    for name, sink in sinks.items():
        if (other := paths.setdefault(sink.path, name)) != name:
            problems.append(f"sinks.{name}.path: sinks.{other} writes '{sink.path}' already. Give it another name.")
        try:
            _sink_query(connection, name, sink)
            file_format(Path(sink.path))
        except ConfigError as error:
            text = str(error)
            problems.append(text if text.startswith("sinks.") else f"sinks.{name}.path: {text}")
    if problems:
        raise ConfigError("\n".join(problems))


def write_sinks(connection: duckdb.DuckDBPyConnection, sinks: Mapping[str, SinkConfig], folder: Path) -> SinkReport:
    """Write every sink's file; one that cannot be written does not keep the others from it.

    Parameters
    ----------
    folder
        What relative paths are relative to: the run's.
    """
    report = SinkReport()
    for name, sink in sinks.items():
        path = folder / os.path.expanduser(sink.path)
        try:
            rows = export(connection, _sink_query(connection, name, sink), path)
            report.written.append(WrittenFile(path, rows, path.stat().st_size))
        except (ConfigError, StoreError, OSError) as error:
            text = str(error)
            report.errors.append(text if text.startswith("sinks.") else f"sinks.{name}: {text}")
    return report


def _sink_query(connection: duckdb.DuckDBPyConnection, name: str, sink: SinkConfig) -> TableQuery:
    labels = (f"sinks.{name}.table", f"sinks.{name}.columns", f"sinks.{name}.where")
    if sink.columns == []:
        raise ConfigError(f"{labels[1]}: an empty list; leave it out for all columns")
    if sink.table.lower() in ("results", "source") and not row_columns(connection):
        # An empty file tells of no columns: there is nothing to check against, and no row to write.
        return TableQuery(
            ", ".join(f"NULL AS {quoted(column)}" for column in sink.columns or ["row_id"]), "source", "false", False
        )
    return table_query(connection, sink.table, sink.columns, sink.where, labels)


def _columns(connection: duckdb.DuckDBPyConnection, sql: str, format: str) -> str:
    """A SELECT of each column as the format wants it, from a query that goes where ``{}`` stands."""
    try:
        description = connection.execute(f"SELECT * FROM ({sql}\n) LIMIT 0").description or ()
    except duckdb.Error as error:
        raise ConfigError(f"the query fails: {_short(error)}") from None
    names: list[str] = []
    values = []
    for number, (name, kind, *_) in enumerate(description):
        column = f"c{number}"
        if format == "parquet":
            value = f"{column}::DECIMAL(38, 0)" if kind.id in ("hugeint", "uhugeint") else column
        elif format == "json":
            value = json_value(kind, column)
        else:
            value = _csv_value(kind, column)
        names.append(_unique(name, names))
        values.append(f"{value} AS {quoted(names[-1])}")
    select = ", ".join(values).replace("{", "{{").replace("}", "}}")
    return f"SELECT {select} FROM ({{}}\n) AS q({', '.join(f'c{number}' for number in range(len(values)))})"


def _unique(name: str, taken: Sequence[str]) -> str:
    lowered = {other.lower() for other in taken}
    number, found = 1, name
    while found.lower() in lowered:
        found, number = f"{name}_{number}", number + 1
    return found


def _csv_value(kind: Any, value: str) -> str:
    if kind.id in ("list", "array", "struct", "map", "union"):
        return f"CASE WHEN {value} IS NOT NULL THEN to_json({json_value(kind, value)})::VARCHAR END"
    return f"lower(hex({value}))" if kind.id == "blob" else value


def json_value(kind: Any, value: str, depth: int = 0) -> str:
    """SQL for a value that DuckDB writes as valid JSON; ``value`` itself where nothing is to be done."""
    if kind.id == "double":
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    if kind.id == "float":  # its own shortest digits, not those of the double nearest to it
        return f"CASE WHEN isfinite({value}) THEN {value}::VARCHAR::DOUBLE END"
    if kind.id == "blob":
        return f"lower(hex({value}))"
    if kind.id in ("list", "array"):
        item = f"x{depth}"
        inner = json_value(dict(kind.children)["child"], item, depth + 1)
        if inner == item:
            return value
        items = f"{value}::{dict(kind.children)['child']}[]" if kind.id == "array" else value
        return f"list_transform({items}, lambda {item}: {inner})"
    if kind.id == "struct":
        fields = []
        changed = False
        for name, child in kind.children:
            literal = "'" + name.replace("'", "''") + "'"
            part = f"struct_extract({value}, {literal})"
            inner = json_value(child, part, depth)
            changed |= inner != part
            fields.append(f"{quoted(name)} := {inner}")
        if changed and all(name for name, _ in kind.children):
            return f"CASE WHEN {value} IS NOT NULL THEN struct_pack({', '.join(fields)}) END"
    return value


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
