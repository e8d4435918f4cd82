"""How values are written in JSON, CSV and Parquet, and given to templates, as SQL expressions.

A value is DuckDB's own text, except where that would be no valid JSON, would lose digits, or could not be read again:

- JSON has no NaN and no infinity: they are ``null``.
- A ``FLOAT`` has its own shortest digits (``0.1``), not those of the double nearest to it (``0.10000000149011612``).
- A ``BLOB`` is hexadecimal in text formats.
- Nested values are JSON in CSV.
- Python's times have microseconds and end: finer and infinite ones are text.
- Parquet has no 128-bit integers: they are ``DECIMAL(38, 0)``, where DuckDB would write a ``DOUBLE``.

Every place that writes rows takes its expressions from here, so that all of them write the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infermesh.store.schema import literal, quoted

# What takes the place of a value: its type, its SQL, how many lambdas it stands in. ``None`` leaves the value as it is,
# and looks into it where it is nested.
Change = Callable[[Any, str, int], str | None]

_NESTED = ("list", "array", "struct", "tuple", "map", "union")
_HUGE = ("hugeint", "uhugeint")


def csv_value(kind: Any, value: str) -> str:
    """A value of a DuckDB type as it stands in CSV; ``value`` is SQL, and so is what is returned."""
    if kind.id in _NESTED:
        return f"CASE WHEN {value} IS NOT NULL THEN to_json({json_value(kind, value)})::VARCHAR END"
    return f"lower(hex({value}))" if kind.id == "blob" else value


def json_value(kind: Any, value: str) -> str:
    """A value that DuckDB writes as valid JSON; ``value`` itself where DuckDB does so anyway.

    What is within a ``VARIANT``, and the keys of a ``MAP``, is left to DuckDB.
    """
    return rebuilt(kind, value, _as_json)


def parquet_value(kind: Any, value: str) -> str:
    """A value of a DuckDB type as it stands in Parquet."""
    return rebuilt(kind, value, _as_parquet, keys=True)


def python_value(kind: Any, value: str) -> str:
    """A value of a DuckDB type as Python gets it: what it cannot hold is text, such as nanoseconds and infinite times.

    The keys of a ``MAP`` are left to DuckDB.
    """
    return rebuilt(kind, value, _as_python)


def rebuilt(kind: Any, value: str, change: Change, *, keys: bool = False, depth: int = 0) -> str:
    """A value with some of the values within it changed, put together again; ``value`` itself if none is.

    Parameters
    ----------
    kind
        The value's type.
    value
        SQL.
    change
        Called for the value and for every one within it.
    keys
        Change the keys of maps as well.
    depth
        How many lambdas ``value`` stands in: each has its own name for its parameter.
    """
    changed = change(kind, value, depth)
    if changed is not None:
        return changed

    def items(kind: Any, of: str) -> str:
        item = f"x{depth}"
        inner = rebuilt(kind, item, change, keys=keys, depth=depth + 1)
        return of if inner == item else f"list_transform({of}, lambda {item}: {inner})"

    if kind.id in ("list", "array"):
        return items(kind.children[0][1], value)
    if kind.id == "map":
        before = [f"map_{part}({value})" for part in ("keys", "values")]
        (_, key), (_, item) = kind.children
        after = [items(key, before[0]) if keys else before[0], items(item, before[1])]
        return value if after == before else f"map({', '.join(after)})"
    if kind.id in ("struct", "tuple"):
        names = [name for name, _ in kind.children]
        places = map(literal, names) if kind.id == "struct" else map(str, range(1, len(names) + 1))
        before = [f"struct_extract({value}, {place})" for place in places]
        after = [
            rebuilt(child, part, change, keys=keys, depth=depth)
            for part, (_, child) in zip(before, kind.children, strict=True)
        ]
        return value if after == before else f"CASE WHEN {value} IS NOT NULL THEN {_packed(names, after)} END"
    return value


def union_members(kind: Any, value: str) -> list[tuple[str, Any, str]]:
    """The members of a UNION: name, type, and the SQL of the member's value."""
    return [(name, child, f"union_extract({value}, {literal(name)})") for name, child in kind.children if name]


def _packed(names: Sequence[str], parts: Sequence[str]) -> str:
    """A struct of the parts; a tuple where they have no names."""
    if not any(names):
        return f"row({', '.join(parts)})"
    return f"struct_pack({', '.join(f'{quoted(name)} := {part}' for name, part in zip(names, parts, strict=True))})"


def _as_json(kind: Any, value: str, depth: int) -> str | None:
    match kind.id:
        case "double":
            return f"CASE WHEN isfinite({value}) THEN {value} END"
        case "float":
            return f"CASE WHEN isfinite({value}) THEN {value}::VARCHAR::DOUBLE END"
        case "blob":
            return f"lower(hex({value}))"
        case "union":
            cases = [
                f"WHEN {literal(name)} THEN to_json({_packed([name], [rebuilt(child, part, _as_json, depth=depth)])})"
                for name, child, part in union_members(kind, value)
            ]
            return f"CASE union_tag({value}) {' '.join(cases)} END"
    return None


# Type → the one of Python's that holds its values unless they are finer or infinite.
_TIMES = {
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamp_s": "TIMESTAMP",
    "timestamp_ms": "TIMESTAMP",
    "timestamp_ns": "TIMESTAMP",
    "timestamp with time zone": "TIMESTAMPTZ",
    "timestamptz_ns": "TIMESTAMPTZ",
    "time_ns": "TIME",
}


def _as_python(kind: Any, value: str, depth: int) -> str | None:
    if kind.id == "float":
        return f"{value}::VARCHAR::DOUBLE"
    held = _TIMES.get(kind.id)
    if held is None:
        return None
    checks = [f"isfinite({value}::{held})"] if held != "TIME" else []
    if kind.id.endswith("_ns"):
        checks.append(f"{value}::{held}::{kind} = {value}")
    either = f'UNION("time" {held}, "text" VARCHAR)'  # Python gets the member's value
    return f"CASE WHEN {' AND '.join(checks)} THEN {value}::{held}::{either} ELSE {value}::VARCHAR::{either} END"


def _as_parquet(kind: Any, value: str, depth: int) -> str | None:
    return f"{value}::DECIMAL(38, 0)" if kind.id in _HUGE else None
