"""Rows of a source without a run, for the benchmark."""

from __future__ import annotations

from typing import Any

from infermesh.exact_json import read_exactly
from infermesh.inputs.sources import Source
from infermesh.store.connection import open_duckdb
from infermesh.store.ingest import ingest, row_columns
from infermesh.store.schema import SOURCE_ERRORS_DDL, quoted
from infermesh.store.values import python_value


def sample(source: Source) -> list[dict[str, Any]]:
    """All rows of a source as stages see them, without malformed lines. Raises ``ConfigError``."""
    with open_duckdb() as connection:
        connection.execute(SOURCE_ERRORS_DDL)
        ingest(connection, source)
        columns = row_columns(connection)
        names = [column.name for column in columns]
        json = {column.name for column in columns if column.type == "JSON"}
        shown = connection.execute("SELECT * FROM source LIMIT 0").description or ()
        kinds = {name: kind for name, kind, *_ in shown}
        select = ", ".join(python_value(kinds[name], quoted(name)) for name in names) or "NULL"
        found = connection.execute(
            f"SELECT {select} FROM source WHERE row_id NOT IN (SELECT row_id FROM source_errors) ORDER BY row_id"
        ).fetchall()
    return [
        {
            name: read_exactly(value) if name in json and value is not None else value
            for name, value in zip(names, row, strict=False)
        }
        for row in found
    ]
