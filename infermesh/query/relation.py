"""The rows of a query over a run's tables, as tuples, dicts, Arrow tables or frames."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import duckdb

from infermesh.errors import StoreError
from infermesh.exact_json import read
from infermesh.hints import one_line
from infermesh.query.bound import bare
from infermesh.store.sql_words import refusal

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

_HTML_ROWS = 20

# Takes a query; returns a connection and the query that gives the same rows there, as RunReader.prepare does.
Prepare = Callable[[str], tuple[duckdb.DuckDBPyConnection, str]]


class Relation:
    """A query over a run's tables. It runs each time its rows are asked for, so a live run's rows change in between.

    It can be iterated over, and shows its first rows in a notebook.

    Parameters
    ----------
    query
        One SELECT.
    opened
        Opens the run for reading, in this process or in another. The run is closed again after each use.
    place
        Where the run is, for messages.

    Attributes
    ----------
    columns, types
        The columns' names and DuckDB types.

    Raises
    ------
    StoreError
        The query is wrong, or is no SELECT.

    Examples
    --------
    >>> run = infermesh.open_run("outputs/quickstart/latest")
    >>> run.sql("SELECT stage, sum(rows) AS rows FROM progress GROUP BY stage").rows()
    [{'stage': 'summaries', 'rows': 60}]
    """

    def __init__(self, query: str, opened: Callable[[], AbstractContextManager[Prepare]], place: str) -> None:
        self.query = query
        self._opened = opened
        self._place = place
        with self._run() as prepare:
            if [statement.type for statement in duckdb.extract_statements(query)] != [duckdb.StatementType.SELECT]:
                raise StoreError(f"expected one SELECT: {one_line(query)}")
            # Without LIMIT 0 a live run would send all the rows along with their names.
            connection, prepared = prepare(f"SELECT * FROM (\n{bare(query)}\n) LIMIT 0")
            relation = connection.sql(prepared)
            self.columns: list[str] = list(relation.columns)
            self.types: list[str] = [str(kind) for kind in relation.types]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as tuples."""
        with self._prepared() as (connection, query):
            return connection.execute(query).fetchall()

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row; ``None`` if there is none."""
        with self._prepared() as (connection, query):
            return connection.execute(query).fetchone()

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dicts by column name; JSON columns are Python's own objects."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.fetchall()]
        for name in self._json:
            for row in rows:
                row[name] = _decoded(row[name])
        return rows

    def arrow(self) -> pyarrow.Table:
        """All rows as an Arrow table. Raises ``ImportError`` without pyarrow."""
        _need("pyarrow", "arrow()")
        with self._prepared() as (connection, query):
            table: pyarrow.Table = connection.sql(query).to_arrow_table()
        return table

    def df(self) -> pandas.DataFrame:
        """All rows as a pandas frame; JSON columns hold Python's own objects. Raises ``ImportError`` without pandas."""
        _need("pandas", "df()")
        with self._prepared() as (connection, query):
            frame: pandas.DataFrame = connection.sql(query).df()
        for name in self._json:
            if name in frame.columns:  # of two columns of one name, pandas gets the second under another
                frame[name] = frame[name].map(_decoded)
        return frame

    def pl(self) -> polars.DataFrame:
        """All rows as a polars frame. Raises ``ImportError`` without polars or without pyarrow, which it needs too."""
        _need("polars", "pl()")
        _need("pyarrow", "pl()")
        with self._prepared() as (connection, query):
            frame: polars.DataFrame = connection.sql(query).pl()
        return frame

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def __repr__(self) -> str:
        with self._prepared() as (connection, query):
            return str(connection.sql(query))

    def _repr_html_(self) -> str:
        with self._prepared() as (connection, query):
            rows = connection.execute(query).fetchmany(_HTML_ROWS + 1)
        text = html_table(self.columns, rows[:_HTML_ROWS])
        return text + (f"<p>the first {_HTML_ROWS} rows</p>" if len(rows) > _HTML_ROWS else "")

    @property
    def _json(self) -> list[str]:
        return [name for name, kind in zip(self.columns, self.types, strict=True) if kind == "JSON"]

    @contextmanager
    def _prepared(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        with self._run() as prepare:
            yield prepare(self.query)

    @contextmanager
    def _run(self) -> Iterator[Prepare]:
        """The run, open for reading; DuckDB's errors become ``StoreError``."""
        with self._opened() as prepare:
            try:
                yield prepare
            except duckdb.Error as error:
                raise StoreError(f"{refusal(error, 400)} (in {self._place})") from None


def _decoded(value: Any) -> Any:
    """A JSON column's value; what cannot be read, as it is nested too deeply, stays text."""
    if not isinstance(value, str):
        return value
    try:
        return read(value)
    except ValueError:
        return value


def html_table(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """A plain HTML table; long values are cut."""

    def cell(value: Any) -> str:
        text = "" if value is None else str(value)
        return html.escape(text if len(text) <= 100 else f"{text[:99]}…")

    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _need(package: str, by: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{by} needs {package}, which is not installed: pip install {package}", name=package)
