"""``infermesh export``: a run's table, or a query's rows, into a file."""

from __future__ import annotations

import sys
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run
from infermesh.errors import InfermeshError
from infermesh.query.bound import in_thread
from infermesh.query.export import WrittenFile, export, file_format
from infermesh.query.reader import RunReader
from infermesh.query.table_query import TableQuery, table_query
from infermesh.store.schema import literal

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
        with RunReader(find_run(run)) as reader:
            query = sql if sql is not None else _table_query(reader, table, columns, where)
            connection, prepared = reader.prepare(query if isinstance(query, str) else query.sql)
            connection.execute(f"SET memory_limit = {literal(_MEMORY)}")
            if reader.live:
                print("the run goes on: what it has committed by now is written", file=sys.stderr)
                query = prepared  # its rows are here already
            with in_thread(connection, lambda: export(connection, query, out)) as exporting:
                rows = exporting.result()
    except InfermeshError as error:
        fail(str(error))
    print(f"written {WrittenFile(out, rows, out.stat().st_size)}", file=sys.stderr)


def _table_query(reader: RunReader, table: str | None, columns: str | None, where: str | None) -> TableQuery:
    chosen = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    return table_query(reader, table or "results", chosen, where, ("--table", "--columns", "--where"))
