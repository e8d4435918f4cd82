"""``where``: a SQL condition that decides which rows a stage takes.

Rows that are on their way are in no table yet, so they are put into one in memory, many at a time, and DuckDB decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import duckdb
import orjson

from infermesh.errors import ConfigError, InputError
from infermesh.exact_json import dumps
from infermesh.hints import nearest, one_line
from infermesh.store.connection import open_duckdb
from infermesh.store.schema import Column, StageTable, quoted
from infermesh.store.sql_words import as_column, as_sql, refusal, two_words

_MESSAGE = 300  # characters of DuckDB's message


@lru_cache(maxsize=256)  # the graph, the plan and the filter need it, and each call opens a database
def column_references(condition: str, path: str) -> frozenset[tuple[str, ...]]:
    """The columns that a condition names: ``("audio",)``, ``("transcripts", "text")``.

    Raises
    ------
    ConfigError
        The condition does not parse.
    """
    return frozenset(_columns(parsed_condition(as_sql(condition), path)))


def parsed_condition(condition: str, path: str) -> dict[str, Any]:
    """A condition as DuckDB's tree of a query, once it is sure to be one expression.

    Within brackets alone, ``a) OR (b`` would be one; without brackets alone, ``a GROUP BY b``. It must parse both ways.

    Raises
    ------
    ConfigError
        It does not.
    """
    tree: dict[str, Any] = {}
    with open_duckdb() as connection:
        for query in (f"FROM rows WHERE {condition}\n", f"SELECT ({condition}\n) FROM rows"):
            row = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
            tree = orjson.loads(row[0] if row else b"{}")
            if tree.get("error"):
                hint = two_words(condition)
                raise ConfigError(f"{path}: not a SQL condition: {tree.get('error_message')} in: {condition}{hint}")
    return tree


def _columns(node: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            yield tuple(node["column_names"])
        for value in node.values():
            yield from _columns(value)
    elif isinstance(node, list):
        for value in node:
            yield from _columns(value)


class RowFilter:
    """Decides for rows whether a condition is true.

    Parameters
    ----------
    condition
        SQL over the source's columns and, as ``stage.column``, over upstream stages' columns.
    path
        Where the condition stands in the config, for messages.
    source
        The source's columns.
    stages
        The upstream stages by name.

    Raises
    ------
    ConfigError
        The condition does not bind: an unknown column, a type that does not fit.
    """

    def __init__(self, condition: str, path: str, source: Sequence[Column], stages: Mapping[str, StageTable]) -> None:
        named = {reference[0].lower() for reference in column_references(condition, path)}
        self._path = path
        self._columns = [column for column in source if column.name.lower() in named]
        self._stages = [table for name, table in stages.items() if name.lower() in named]
        fields = [column.ddl for column in self._columns]
        for table in self._stages:
            inner = ", ".join(column.ddl for column in table.columns[1:2] + table.outputs)
            fields.append(f"{quoted(table.name)} STRUCT({inner})")
        self._connection = open_duckdb(config={"threads": 1})
        self._connection.execute(f"CREATE TABLE rows ({', '.join(['__position INTEGER', *fields])})")
        self._sql = f"SELECT __position FROM rows WHERE ({as_sql(condition)}\n)"
        try:
            # Some errors come only with a row. A row of NULLs shows those that every row would have.
            self._connection.execute("INSERT INTO rows (__position) VALUES (0)")
            self._connection.execute(self._sql)
            self._connection.execute("TRUNCATE rows")
        except duckdb.Error as error:
            self._connection.close()
            # Only now that it does not bind: lambdas and subqueries have names of their own, which are no columns.
            valid = {name.lower(): name for name in (*(column.name for column in source), *stages)}
            unknown = sorted(named - valid.keys())
            if unknown:
                hint = as_column(nearest(unknown[0], valid))
                raise ConfigError(
                    f"{path}: '{unknown[0]}' is neither a column of the source nor a stage.{hint}"
                ) from None
            raise ConfigError(f"{path}: {refusal(error, _MESSAGE)}") from None

    def passing(self, contexts: Sequence[Mapping[str, Any]]) -> list[bool | InputError]:
        """For each row's context, whether the condition is true, or the error with which it fails; ``NULL`` is false.

        DuckDB fails on all rows at once, so they are halved until those with the error are alone.
        """
        try:
            return list(self._passing(contexts))
        except duckdb.Error as error:
            self._connection.execute("TRUNCATE rows")
            if len(contexts) == 1:
                return [InputError(f"{self._path}: the condition fails for this row: {one_line(error, _MESSAGE)}")]
            half = len(contexts) // 2
            return [*self.passing(contexts[:half]), *self.passing(contexts[half:])]

    def _passing(self, contexts: Sequence[Mapping[str, Any]]) -> list[bool]:
        rows = [
            (
                position,
                *(_stored(context[column.name], column) for column in self._columns),
                *(self._struct(context[table.name], table) for table in self._stages),
            )
            for position, context in enumerate(contexts)
        ]
        with self._connection.appender("rows") as appender:
            appender.append_rows(rows)
        passed = {position for (position,) in self._connection.execute(self._sql).fetchall()}
        self._connection.execute("TRUNCATE rows")
        return [position in passed for position in range(len(rows))]

    def _struct(self, values: Mapping[str, Any], table: StageTable) -> dict[str, Any]:
        columns = table.columns[1:2] + table.outputs
        return {column.name: _stored(values.get(column.name), column) for column in columns}

    def close(self) -> None:
        """Free the in-memory database."""
        self._connection.close()


def _stored(value: Any, column: Column) -> Any:
    if column.type != "JSON" or value is None:
        return value
    return str(value) if isinstance(value, Decimal) else dumps(value, str).decode()
