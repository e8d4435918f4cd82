"""``infermesh export``: a run's table, or a query's rows, into a file."""

from __future__ import annotations

import sys
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run
from infermesh.errors import InfermeshError
from infermesh.query.export import WrittenFile, export, file_format, table_query
from infermesh.query.reader import RunReader

_MEMORY = "1GB"  # for DuckDB; beyond it, it spills to disk


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
    """Write the file, and say on stderr what was written."""
    if sql is not None and (table, columns, where) != (None, None, None):
        fail("--sql says it all: it does not go with --table, --columns or --where", code=2)
    try:
        file_format(out)
        if out.exists() and not overwrite:
            fail(f"{out} is there already: --overwrite replaces it")
        with RunReader(find_run(run)) as reader:
            chosen = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
            labels = ("--table", "--columns", "--where")
            query = sql if sql is not None else table_query(reader, table or "results", chosen, where, labels)
            connection, asked = reader.prepare(query if isinstance(query, str) else query.sql)
            connection.execute(f"SET memory_limit = '{_MEMORY}'")
            if reader.live:
                print("the run goes on: what it has committed by now is written", file=sys.stderr)
            rows = export(connection, asked if reader.live else query, out)
    except InfermeshError as error:
        fail(str(error))
    print(f"written {WrittenFile(out, rows, out.stat().st_size)}", file=sys.stderr)
