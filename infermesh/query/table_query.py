"""A query over one table or view of a run, checked before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import duckdb

from infermesh.errors import ConfigError, StoreError
from infermesh.hints import nearest, one_line
from infermesh.store.filter import parsed_condition
from infermesh.store.schema import quoted

_TABLES = (
    "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT internal "
    "UNION SELECT view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal ORDER BY 1"
)


@dataclass(frozen=True, slots=True)
class TableQuery:
    """A SELECT over one table or view. With ``by_row`` it has a ``row_id``, and its rows come in that order."""

    select: str
    source: str
    where: str | None
    by_row: bool

    @property
    def sql(self) -> str:
        """The query for all rows."""
        condition = "" if self.where is None else f" WHERE ({self.where}\n)"
        return f"SELECT {self.select} FROM {self.source}{condition}{' ORDER BY row_id' if self.by_row else ''}"

    def between(self, low: int, high: int) -> str:
        """The query for the rows from ``low`` to below ``high``."""
        rows = f"row_id >= {low} AND row_id < {high}"
        condition = rows if self.where is None else f"({self.where}\n) AND {rows}"
        return f"SELECT {self.select} FROM {self.source} WHERE {condition} ORDER BY row_id"


class SqlSource(Protocol):
    """What answers SQL: a connection, or a reader of a run."""

    def execute(self, query: str, /) -> duckdb.DuckDBPyConnection:
        """Run a query; the connection that is returned holds its rows."""
        ...


def table_query(
    source: SqlSource,
    table: str,
    columns: Sequence[str] | None,
    where: str | None,
    labels: tuple[str, str, str],
) -> TableQuery:
    """Check and make a query over a table or view of a run.

    Parameters
    ----------
    labels
        What to call the table, the columns and the condition in messages.

    Raises
    ------
    ConfigError
        There is no such table or column, or the condition does not bind.
    """
    tables = {name.lower(): name for (name,) in source.execute(_TABLES).fetchall()}
    if table.lower() not in tables:
        raise ConfigError(f"{labels[0]}: no table '{table}'.{nearest(table, list(tables.values()))}")
    name = quoted(tables[table.lower()])
    present = [row[0] for row in source.execute(f"DESCRIBE {name}").fetchall()]
    known = {column.lower(): column for column in present}
    for column in columns or ():
        if column.lower() not in known:
            raise ConfigError(f"{labels[1]}: {table} has no column '{column}'.{nearest(column, present)}")
    select = ", ".join(quoted(known[column.lower()]) for column in columns) if columns else "*"
    if where is not None:
        parsed_condition(where, labels[2])
    query = TableQuery(select, name, where, by_row=present[0] == "row_id")
    try:
        source.execute(f"DESCRIBE {query.sql}")
    except (duckdb.Error, StoreError) as error:
        raise ConfigError(f"{labels[2]}: {one_line(error)}") from None
    return query
