"""Types for columns of text: those of ``source.types``, or what all values fit. A type changes no value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import duckdb

from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.store.schema import quoted

__all__ = ["set_types"]

_AUTO_TYPES = ("BIGINT", "DOUBLE", "BOOLEAN", "DATE", "TIMESTAMP")
_INTEGER_TYPES = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?\d*|INT\d*|SHORT|LONG", re.IGNORECASE)


def set_types(
    connection: duckdb.DuckDBPyConnection, types: str | Mapping[str, str], table: str, columns: Sequence[str]
) -> None:
    """Give columns of text their types. A value that does not fit makes its row an error.

    Parameters
    ----------
    types
        ``auto``, or column → DuckDB type.
    table
        Its columns are text. It has a ``row_id``, by which errors are entered into ``source_errors``.
    columns
        The names that may be given a type.

    Raises
    ------
    ConfigError
        There is no such column or type.
    """
    if isinstance(types, str):
        wanted = {name: kind for name in columns if (kind := _type_of_all(connection, table, name)) is not None}
    else:
        wanted = dict(types)
        for name in wanted:
            if name not in columns:
                raise ConfigError(f"source.types: no column '{name}'.{nearest(name, list(columns))}")
    for name, kind in wanted.items():
        typed = _typed(name, kind)
        said = f"'column {name}: ' || left({quoted(name)}, 80) || ' is no {kind} (source.types)'"
        try:
            connection.execute(
                f"INSERT INTO source_errors SELECT row_id, NULL, {said} FROM {quoted(table)} "
                f"WHERE {quoted(name)} IS NOT NULL AND {typed} IS NULL "
                "AND row_id NOT IN (SELECT row_id FROM source_errors)"
            )
            connection.execute(f"ALTER TABLE {quoted(table)} ALTER {quoted(name)} TYPE {kind} USING {typed}")
        except (duckdb.CatalogException, duckdb.ParserException, duckdb.BinderException) as error:
            near = re.search(r'Did you mean "(\w+)"', str(error))
            hint = f" Did you mean '{near[1].upper()}'?" if near else ""
            raise ConfigError(
                f"source.types.{name}: {kind!r} is no type of DuckDB.{hint} Some are {', '.join(_AUTO_TYPES)}, VARCHAR."
            ) from None


def _typed(name: str, kind: str) -> str:
    """SQL for a column's value in its type, NULL where it does not fit: DuckDB would make 5 of ``4.7``."""
    cast = f"TRY_CAST({quoted(name)} AS {kind})"
    if not _INTEGER_TYPES.fullmatch(kind.strip()):
        return cast
    return f"CASE WHEN regexp_full_match({quoted(name)}, '\\s*[+-]?\\d+\\s*') THEN {cast} END"


def _type_of_all(connection: duckdb.DuckDBPyConnection, table: str, name: str) -> str | None:
    """The first type that all values of a column fit; ``None`` for text."""
    misfits = ", ".join(f"count({quoted(name)}) - count({_typed(name, kind)})" for kind in _AUTO_TYPES)
    found = connection.execute(f"SELECT count({quoted(name)}), {misfits} FROM {quoted(table)}").fetchall()[0]
    fitting = [kind for kind, misfit in zip(_AUTO_TYPES, found[1:], strict=True) if found[0] and not misfit]
    if "DATE" in fitting and not _all_dates(connection, table, name):
        fitting.remove("DATE")  # it would drop the time of day
    return fitting[0] if fitting else None


def _all_dates(connection: duckdb.DuckDBPyConnection, table: str, name: str) -> bool:
    times = f"TRY_CAST({quoted(name)} AS TIMESTAMP)"
    found = connection.execute(f"SELECT bool_and({times} = date_trunc('day', {times})) FROM {quoted(table)}")
    return bool(found.fetchall()[0][0])
