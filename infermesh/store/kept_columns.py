"""Columns of the input that an output file repeats: what they are called there, and how they are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import duckdb

from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.store.schema import SOURCE, quoted
from infermesh.store.values import json_value, parquet_value

ALL_COLUMNS = "all"
PREFIX = "input_"

Field = tuple[str, str, str | None]


def kept_names(asked: Sequence[str], columns: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Which columns are kept, and under which name.

    A name that the output has for a field of its own goes to that field. The input's column is then called
    ``input_NAME``, with as many prefixes as it takes to be free. Names that differ in case only count as the same.

    Parameters
    ----------
    asked
        Names of columns, or ``all`` alone.
    columns, taken
        The input's columns, and the names of the output's own fields.

    Returns
    -------
    dict
        Column → its name in the output, in the order of the input, or of ``asked``.

    Raises
    ------
    ConfigError
        A name is none of the columns.

    Examples
    --------
    >>> kept_names(["all"], ["id", "error"], {"_index", "error"})
    {'id': 'id', 'error': 'input_error'}
    """
    if not columns:  # an empty file
        return {}
    chosen = columns if list(asked) == [ALL_COLUMNS] else dict.fromkeys(asked)
    for name in chosen:
        if name not in columns:
            every = " 'all' alone keeps every column." if name.lower() in ("*", ALL_COLUMNS) else ""
            raise ConfigError(f"--keep-columns: the input has no column '{name}'.{every or nearest(name, [*columns])}")
    free = {name.lower() for name in taken} | {name.lower() for name in columns}
    found: dict[str, str] = {}
    for name in chosen:
        shown = name
        if name.lower() in {own.lower() for own in taken}:
            while shown.lower() in free:
                shown = PREFIX + shown
            free.add(shown.lower())
        found[name] = shown
    return found


def kept_fields(connection: duckdb.DuckDBPyConnection, kept: dict[str, str]) -> list[Field]:
    """Name, SQL in Parquet and SQL in JSON of each kept column that there is, over what :func:`kept_rows` joins."""
    kinds = {name: kind for name, kind, *_ in connection.execute(f"SELECT * FROM {SOURCE} LIMIT 0").description or ()}
    return [
        (shown, parquet_value(kinds[name], f"kept_{place}"), json_value(kinds[name], f"kept_{place}"))
        for place, (name, shown) in enumerate(kept.items())
        if name in kinds
    ]


def kept_rows(kept: dict[str, str], condition: str = "true") -> str:
    """The join of a stage's rows ``s`` with the columns that are kept of them; empty without any.

    The columns have names of their own there, so that a field of the stage can be named alone. ``condition`` is one on
    the source's rows: it is not left to DuckDB to find out that few of them are needed.
    """
    if not kept:
        return ""
    columns = ", ".join(f"{quoted(name)} AS kept_{place}" for place, name in enumerate(kept))
    rows = f"SELECT row_id AS kept_row, {columns} FROM {SOURCE} WHERE {condition}"
    return f" LEFT JOIN ({rows}) ON kept_row = s.row_id"
