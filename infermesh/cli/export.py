"""``infermesh export``: a run's table, or a query's rows, into a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run, say_run
from infermesh.errors import InfermeshError
from infermesh.hints import counted
from infermesh.query.bound import in_thread
from infermesh.query.export import WrittenFile, export, file_format
from infermesh.query.finding import runs_in
from infermesh.query.reader import RunReader
from infermesh.query.table_query import SqlSource, TableQuery, table_query
from infermesh.query.union import RunUnion
from infermesh.store import Connection
from infermesh.store.schema import DATABASE, literal

_MEMORY = "1GB"  # for DuckDB; what needs more spills to disk


def export_run(
    run: str | None,
    out: Path,
    *,
    table: str | None,
    columns: str | None,
    where: str | None,
    sql: str | None,
    overwrite: bool,
) -> None:
    """Write the file and say on stderr what was written."""
    if sql is not None and (table, columns, where) != (None, None, None):
        fail("--sql is the whole query: give it without --table, --columns and --where", code=2)
    try:
        file_format(out)
        if out.exists() and not overwrite:
            fail(f"{out} is there already: --overwrite replaces it")
        group = runs_in(run)
        if group is not None:
            rows = _export_group(group[1], out, table, columns, where, sql)
        else:
            folder = find_run(run)
            rows = _export_one(folder, out, table, columns, where, sql)
            say_run(run, folder)
    except InfermeshError as error:
        fail(str(error))
    print(f"written {WrittenFile(out, rows, out.stat().st_size)}", file=sys.stderr)


def _export_one(
    folder: Path, out: Path, table: str | None, columns: str | None, where: str | None, sql: str | None
) -> int:
    with RunReader(folder) as reader:
        query = sql if sql is not None else _table_query(reader, table, columns, where)
        connection, prepared = reader.prepare(query if isinstance(query, str) else query.sql)
        if reader.live:
            print("the run goes on: what it has committed by now is written", file=sys.stderr)
            query = prepared  # its rows are here already
        return _write(connection, query, out)


def _export_group(
    folders: Sequence[Path], out: Path, table: str | None, columns: str | None, where: str | None, sql: str | None
) -> int:
    """Write the rows of many runs, with a column for each setting that differs between them."""
    with RunUnion(folders, DATABASE) as union:
        if sql is None:
            union.make_views()
        else:
            union.prepare(sql)
        for line in union.left_out:
            print(f"left out: {line}", file=sys.stderr)
        print(f"{counted(len(union.runs), 'run is', 'runs are')} written as one", file=sys.stderr)
        return _write(union.connection, sql or _table_query(union.connection, table, columns, where), out)


def _write(connection: Connection, query: str | TableQuery, out: Path) -> int:
    connection.execute(f"SET memory_limit = {literal(_MEMORY)}")
    with in_thread(connection, lambda: export(connection, query, out)) as exporting:
        return exporting.result()


def _table_query(reader: SqlSource, table: str | None, columns: str | None, where: str | None) -> TableQuery:
    chosen = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    return table_query(reader, table or "results", chosen, where, ("--table", "--columns", "--where"))
