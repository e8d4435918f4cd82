"""How values travel from a live run: in a Parquet file, and unchanged.

Where Parquet would change a value, it travels as something else and is made again at the other end: 128-bit integers
and intervals as text, a UNION as a struct of its tag and its members.
"""

from __future__ import annotations

from typing import Any

import duckdb

from infermesh.store.schema import literal, quoted
from infermesh.store.values import rebuilt, union_members

# Parquet would make a DOUBLE of the first two, cut the third to milliseconds, and move the last to UTC.
_AS_TEXT = ("hugeint", "uhugeint", "interval", "time with time zone")


def carried(kind: Any, value: str) -> str:
    """A value of a DuckDB type as it travels; ``value`` is SQL, and so is what is returned."""
    return rebuilt(kind, value, _carry, keys=True)


def restored(kind: str, value: str) -> str:
    """A value that travelled, as one of the type that it had."""
    return _restored(duckdb.sqltype(kind), value, 0)


def _carry(kind: Any, value: str, depth: int) -> str | None:
    if kind.id in _AS_TEXT:
        return f"{value}::VARCHAR"
    if kind.id == "union":
        members = [
            f"m{number} := {rebuilt(child, part, _carry, keys=True, depth=depth)}"
            for number, (_, child, part) in enumerate(union_members(kind, value))
        ]
        tag = f"tag := union_tag({value})::VARCHAR"
        return f"CASE WHEN {value} IS NOT NULL THEN struct_pack({', '.join([tag, *members])}) END"
    return None


def _restored(kind: Any, value: str, depth: int) -> str:
    return f"{rebuilt(kind, value, _restore, keys=True, depth=depth)}::{kind}"


def _restore(kind: Any, value: str, depth: int) -> str | None:
    if kind.id != "union":
        return None  # the cast of the whole value does
    cases = []
    for number, (name, child, _) in enumerate(union_members(kind, value)):
        member = _restored(child, f"{value}.m{number}", depth)
        cases.append(f"WHEN {literal(name)} THEN union_value({quoted(name)} := {member})::{kind}")
    return f"CASE {value}.tag {' '.join(cases)} END"
