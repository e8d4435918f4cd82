"""Columns of Parquet files that are integers or decimals in one file and floats in another: never rounded.

DuckDB makes a ``DOUBLE`` of them, which holds integers up to 2**53. Where one is not held, the column is JSON, as it is
where JSON lines have such values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import duckdb

from infermesh.store.schema import listed, quoted

__all__ = ["parquet_reader", "united_numbers"]

_EXACT = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL.*")
_FLOATS = {"FLOAT", "DOUBLE"}


def parquet_reader(paths: Sequence[str]) -> str:
    """SQL that reads Parquet files, without columns of the folders' names."""
    return f"read_parquet({listed(paths)}, union_by_name=true, hive_partitioning=false)"


def united_numbers(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, str]:
    """Of each file that needs it, what stands behind ``SELECT *`` so that columns of numbers have one exact type."""
    replaced: dict[str, list[str]] = {}
    for types in _columns(connection, paths) if len(paths) > 1 else ():
        kinds = {kind for _, kind in types.values()}
        if not (
            kinds & _FLOATS and len(kinds) > 1 and all(kind in _FLOATS or _EXACT.fullmatch(kind) for kind in kinds)
        ):
            continue
        rounded = any(_rounds(connection, kind, types) for kind in kinds - _FLOATS)
        for path, (name, kind) in types.items():
            value = quoted(name)
            if kind == "FLOAT":
                value = f"{value}::VARCHAR::DOUBLE"  # the shortest digits, not those of the double nearest to it
            if rounded:
                value = f"to_json({value})" if kind in _FLOATS else f"{value}::VARCHAR::JSON"
            elif kind not in _FLOATS:
                value = f"{value}::DOUBLE"
            replaced.setdefault(path, []).append(f"{value} AS {quoted(name)}")
    return {path: f" REPLACE ({', '.join(values)})" for path, values in replaced.items()}


def _columns(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> list[Mapping[str, tuple[str, str]]]:
    """Of each column, as SQL tells names apart, its name and type in the files that have it."""
    fields = connection.execute(
        f"SELECT file_name, name, coalesce(num_children, 0), duckdb_type FROM parquet_schema({listed(paths)})"
    ).fetchall()
    columns: dict[str, dict[str, tuple[str, str]]] = {}
    within, last = 0, None  # fields of the present one that are still to come
    for path, name, children, kind in fields:
        if path != last:  # the root, whose fields are the columns
            within, last = 0, path
        elif within:
            within += children - 1
        else:
            columns.setdefault(name.lower(), {})[path] = (name, kind)
            within = children
    return list(columns.values())


def _rounds(connection: duckdb.DuckDBPyConnection, kind: str, types: Mapping[str, tuple[str, str]]) -> bool:
    """Whether a DOUBLE does not hold a value that a column has in the files where it is of this type."""
    for name in {name for name, found in types.values() if found == kind}:
        paths = [path for path, found in types.items() if found == (name, kind)]
        value = quoted(name)
        found = connection.execute(
            f"SELECT 1 FROM {parquet_reader(paths)} "
            f"WHERE TRY_CAST({value}::DOUBLE AS {kind}) IS DISTINCT FROM {value} LIMIT 1"
        ).fetchall()
        if found:
            return True
    return False
