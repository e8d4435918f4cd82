"""One row of a run, copied out of it: its columns, its state in each stage, its requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from infermesh.errors import ConfigError, StoreError
from infermesh.exact_json import loads, read
from infermesh.hints import nearest, one_line
from infermesh.query.attached import LiveTables, attach
from infermesh.query.reader import RunReader
from infermesh.query.union import in_memory
from infermesh.store.schema import (
    ATTEMPTS_DDL,
    ATTEMPTS_LOG,
    COMMON_DDL,
    DATABASE,
    SOURCE,
    literal,
    quoted,
    results_view,
)

__all__ = ["RowCopy", "find_row"]

_RUN = "whole"  # what the run's database is attached as
_OF_A_STAGE = {"row_id", "status", "request_key"}


def find_row(folder: Path, name: str, origin: str = SOURCE) -> int:
    """The row_id that a user names: the number itself, or the first row whose column has a value (``COLUMN=VALUE``).

    Raises
    ------
    ConfigError
        There is no such row, column or origin.
    """
    with RunReader(folder) as reader:
        columns = [row[0] for row in _described(reader, origin)]
        column, equals, value = name.partition("=")
        if not equals:
            if not name.isdecimal():
                raise ConfigError(f"row {name}: expected a number (row_id), or COLUMN=VALUE")
            ((least, most),) = reader.rows(f"SELECT min(row_id), max(row_id) FROM {quoted(origin)}")
            if least is None or not least <= int(name) <= most:
                there = "has no rows" if least is None else f"has rows {least} to {most}"
                raise ConfigError(f"row {name}: {origin} of {folder} {there}")
            return int(name)
        if column not in columns:
            raise ConfigError(f"row {name}: {origin} has no column '{column}'.{nearest(column, columns)}")
        found = reader.rows(
            f"SELECT min(row_id) FROM {quoted(origin)} WHERE {quoted(column)}::VARCHAR = {literal(value)}"
        )
        if found[0][0] is None:
            raise ConfigError(f"row {name}: no row of {origin} in {folder} has this value")
        return int(found[0][0])


def _described(reader: RunReader, origin: str) -> list[tuple[Any, ...]]:
    try:
        return reader.rows(f"DESCRIBE {quoted(origin)}")
    except StoreError:
        raise ConfigError(f"{reader.folder} has no rows '{origin}'") from None


class RowCopy:
    """The tables of a run, live or over, with one row each, in memory; a context manager.

    Parameters
    ----------
    origin
        ``source``, or the sql stage whose row it is.

    Attributes
    ----------
    connection
        Holds the tables under their own names.
    run
        The row of the table ``run``, by column; JSON columns are parsed.
    stages
        The stages over the origin, as the config orders them.

    Raises
    ------
    StoreError
        The run cannot be read.
    """

    def __init__(self, folder: Path, row_id: int, origin: str = SOURCE) -> None:
        self.folder, self.row_id, self.origin = folder, row_id, origin
        self.connection = in_memory()
        self._live: LiveTables | None = None
        try:
            self._live = attach(self.connection, folder / DATABASE, _RUN)
            self._copy()
            self.run = self.rows("run")[0]
        except (duckdb.Error, IndexError) as error:
            self.close()
            raise StoreError(f"{folder}: {one_line(error)}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RowCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the copy, and the run."""
        if self._live is not None:
            self._live.close()
        self.connection.close()

    def rows(self, table: str, condition: str = "true") -> list[dict[str, Any]]:
        """A table's rows as dicts, JSON columns parsed."""
        result = self.connection.execute(f"SELECT * FROM {quoted(table)} WHERE {condition}")
        described = [(column[0], str(column[1])) for column in result.description or ()]
        return [
            {name: _parsed(value, kind) for (name, kind), value in zip(described, row, strict=True)}
            for row in result.fetchall()
        ]

    def _copy(self) -> None:
        tables: dict[str, set[str]] = {}
        for table, column in self.connection.execute(
            f"SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = '{_RUN}' ORDER BY ALL"
        ).fetchall():
            tables.setdefault(table, set()).add(column)
        answers = tables.get(results_view(self.origin), set())
        found = [
            name
            for name, columns in tables.items()
            if columns >= _OF_A_STAGE and "row_key" not in columns and f"{name}_status" in answers
        ]
        here = f"row_id = {self.row_id}"
        conditions = {**dict.fromkeys(found, here), self.origin: here, "run": "true", "source_errors": here}
        conditions["attempts"] = f"{here} AND stage IN ({', '.join(map(literal, found)) or 'NULL'})"
        for table, condition in conditions.items():
            if table in tables:
                if self._live is not None:
                    self._live.fill([table], where=condition)
                whole = f"{_RUN}.{quoted(table)}"
                self.connection.execute(f"CREATE TABLE {quoted(table)} AS SELECT * FROM {whole} WHERE {condition}")
        for ddl in (*COMMON_DDL, ATTEMPTS_DDL.replace(ATTEMPTS_LOG, "attempts")):
            self.connection.execute(ddl)
        self.connection.execute(f"DETACH {_RUN}")
        ((config,),) = self.connection.execute("SELECT config FROM run").fetchall()
        order = list((loads(config or "{}").get("stages") or {}).keys())
        self.stages = sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def _parsed(value: Any, kind: str) -> Any:
    if kind == "JSON" and isinstance(value, str):
        try:
            return read(value)
        except ValueError:  # nested more deeply than can be read
            return value
    return value
