"""The answer of a query over a run's tables, as whichever kind of table its reader wants."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import duckdb

from infermesh.errors import StoreError
from infermesh.query.bound import bare

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

_SHOWN = 20

# Takes a query; gives a connection, and the query that has its rows there.
Ask = Callable[[str], tuple[duckdb.DuckDBPyConnection, str]]


class Result:
    """Rows of a query. The query runs when rows are asked for, and again each time: a live run's answer moves on.

    Parameters
    ----------
    query
        One SELECT.
    reading
        Opens the run for reading, in this process or in another; it is closed again after each use.
    place
        Where the run is, for messages.

    Attributes
    ----------
    columns, types
        The columns' names and DuckDB types.

    Raises
    ------
    StoreError
        The query is wrong, or would write.
    """

    def __init__(self, query: str, reading: Callable[[], AbstractContextManager[Ask]], place: str) -> None:
        self.query = query
        self._reading = reading
        self._place = place
        with self._connected() as ask:
            if [statement.type for statement in duckdb.extract_statements(query)] != [duckdb.StatementType.SELECT]:
                raise StoreError(f"expected one SELECT: {_line(query)}")
            # Another process would send the rows along with their names.
            connection, named = ask(f"SELECT * FROM (\n{bare(query)}\n) LIMIT 0")
            relation = connection.sql(named)
            self.columns: list[str] = list(relation.columns)
            self.types: list[str] = [str(kind) for kind in relation.types]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as tuples."""
        with self._asked() as (connection, query):
            return connection.execute(query).fetchall()

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row; ``None`` where there is none."""
        with self._asked() as (connection, query):
            return connection.execute(query).fetchone()

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dicts by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.fetchall()]

    def arrow(self) -> pyarrow.Table:
        """All rows as an Arrow table. Raises ``ImportError`` without pyarrow."""
        _need("pyarrow", "arrow()")
        with self._asked() as (connection, query):
            table: pyarrow.Table = connection.sql(query).to_arrow_table()
        return table

    def df(self) -> pandas.DataFrame:
        """All rows as a pandas frame. Raises ``ImportError`` without pandas."""
        _need("pandas", "df()")
        with self._asked() as (connection, query):
            frame: pandas.DataFrame = connection.sql(query).df()
        return frame

    def pl(self) -> polars.DataFrame:
        """All rows as a polars frame. Raises ``ImportError`` without polars, or without pyarrow, which it goes by."""
        _need("polars", "pl()")
        _need("pyarrow", "pl()")
        with self._asked() as (connection, query):
            frame: polars.DataFrame = connection.sql(query).pl()
        return frame

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def __repr__(self) -> str:
        with self._asked() as (connection, query):
            return str(connection.sql(query))

    def _repr_html_(self) -> str:
        with self._asked() as (connection, query):
            rows = connection.execute(query).fetchmany(_SHOWN + 1)
        text = html_table(self.columns, rows[:_SHOWN])
        return text + (f"<p>the first {_SHOWN} rows</p>" if len(rows) > _SHOWN else "")

    @contextmanager
    def _asked(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        with self._connected() as ask:
            yield ask(self.query)

    @contextmanager
    def _connected(self) -> Iterator[Ask]:
        with self._reading() as ask:
            try:
                yield ask
            except duckdb.Error as error:
                raise StoreError(f"{_line(str(error))} (in {self._place})") from None


def html_table(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """A plain table; long values are cut."""

    def cell(value: Any) -> str:
        text = "" if value is None else str(value)
        return html.escape(text if len(text) <= 100 else f"{text[:99]}…")

    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _need(package: str, by: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{by} needs {package}, which is not installed: pip install {package}", name=package)


def _line(text: str) -> str:
    return " ".join(text.split())[:400]
