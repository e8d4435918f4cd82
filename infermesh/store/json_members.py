"""What the objects of JSON lines have: their keys, in order, and for each a DuckDB type that keeps its values."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import orjson

from infermesh.store.plain_files import PlainFile, holds_array

__all__ = ["MAX_LINE", "Member", "json_members", "pointer"]

MAX_LINE = 32 * 1024 * 1024  # bytes; the JSON reader holds buffers of twice this size
_SAMPLE, _SAMPLE_BYTES = 32, 4_000_000  # lines, of which the last may be longer
_NUMBER_KINDS = {"BIGINT", "UBIGINT", "DOUBLE"}


@dataclass(slots=True)
class Member:
    """What the objects of the lines have under one key.

    ``times`` the key stands there, in ``rows`` objects, with values of these JSON ``kinds``. The longest whole number
    has so many ``digits``: DuckDB calls one over 64 bits a DOUBLE, but keeps its digits.
    """

    times: int = 0
    rows: int = 0
    kinds: set[str] = field(default_factory=set)
    digits: int = 0

    @property
    def type(self) -> str:
        """A DuckDB type that keeps all its values."""
        kinds = self.kinds - {"NULL"}
        if not kinds or kinds == {"VARCHAR"}:
            return "VARCHAR"
        if kinds == {"BOOLEAN"}:
            return "BOOLEAN"
        if kinds <= {"BIGINT", "UBIGINT"}:
            return "BIGINT" if self.digits < 19 else "HUGEINT"
        if kinds <= _NUMBER_KINDS:
            return "DOUBLE" if self.digits < 16 else "JSON"
        return "JSON"


def json_members(
    connection: duckdb.DuckDBPyConnection, lines: str, files: Sequence[PlainFile]
) -> tuple[dict[str, Member], bool]:
    """Each top-level key of the lines, in order of appearance, and whether each line is an object with a key.

    Each JSON function reads its line from the start, so there are few of them, and one pass over the lines where the
    first of them show all keys, and which have numbers.
    """
    likely, numbers = _likely_keys(files)
    found = _look_at(connection, lines, [*numbers, *likely], len(numbers))
    all_objects = found.pop(None, None) is None
    members = {key: member for key, member in found.items() if key is not None}
    unknown = [
        key
        for key, member in members.items()
        if not all_objects or not member.rows or (key not in numbers and member.kinds & _NUMBER_KINDS)
    ]
    if unknown:
        objects = lines if all_objects else f"(SELECT row_id, json FROM {lines} WHERE json_type(json) = 'OBJECT')"
        again = _look_at(connection, objects, unknown, len(unknown))
        members |= {key: again[key] for key in unknown}
    return members, all_objects


def _likely_keys(files: Sequence[PlainFile]) -> tuple[list[str], list[str]]:
    """The keys of the first lines: those without numbers, and those with some."""
    numbers: dict[str, bool] = {}
    if files and not holds_array(files[0]):
        with open(files[0].path, "rb") as lines:
            for _ in range(_SAMPLE):
                with contextlib.suppress(orjson.JSONDecodeError):
                    row = orjson.loads(lines.readline(MAX_LINE).removeprefix(codecs.BOM_UTF8))
                    for key, value in row.items() if isinstance(row, dict) else ():
                        numbers[key] = numbers.get(key, False) or type(value) in (int, float)
                if lines.tell() > _SAMPLE_BYTES:
                    break
    return [key for key, found in numbers.items() if not found], [key for key, found in numbers.items() if found]


def _look_at(
    connection: duckdb.DuckDBPyConnection, lines: str, keys: Sequence[str], numbers: int
) -> dict[str | None, Member]:
    """What the lines have: every key, in order of appearance, and ``None`` where a line has none.

    Of ``keys`` it says ``rows`` and ``kinds`` as well, and of the first ``numbers`` of them ``digits``.
    """
    paths = [pointer(key) for key in keys] or [pointer("")]
    # A row for each value: an expression for each key took DuckDB minutes to plan where there are thousands. The lists
    # of a line are laid side by side: what stands in one row of them has nothing else in common.
    values = connection.execute(
        "SELECT key, position, type, count(*), min(row_id::HUGEINT * 65536 + place), max(length(text)) FILTER (type IN "
        "('BIGINT', 'UBIGINT') OR (type = 'DOUBLE' AND length(text) > 18 AND NOT regexp_matches(text, '[.eEnN]'))) "
        "FROM (SELECT row_id, unnest(CASE WHEN len(keys) = 0 THEN [NULL] ELSE keys END) AS key, "
        "unnest(range(greatest(len(keys), 1))) AS place, unnest(types) AS type, unnest(texts) AS text, "
        "unnest(range(len($paths))) AS position FROM (SELECT row_id, coalesce(json_keys(json), []) AS keys, "
        f"json_type(json, $paths) AS types, {'json_extract_string(json, $numbers)' if numbers else '[NULL]'} AS texts "
        f"FROM {lines})) GROUP BY key, position, type, place IS NULL",
        {"paths": paths} | ({"numbers": paths[:numbers]} if numbers else {}),
    ).fetchall()
    found: dict[str | None, Member] = {}
    for key, _, _, times, first, _ in sorted(values, key=lambda value: (value[4] is None, value[4])):
        if first is not None:  # else the line had fewer keys than there are paths
            found.setdefault(key, Member()).times += times
    for _, position, kind, times, _, digits in values:
        member = found.get(keys[position]) if kind is not None and position is not None and keys else None
        if member is not None:
            member.rows += times
            member.kinds.add(kind)
            member.digits = max(member.digits, digits or 0)
    return found


def pointer(key: str) -> str:
    """The JSON pointer (RFC 6901) of a key: unlike a path, it can name any key, an empty one and one with a ``*``."""
    return "/" + key.replace("~", "~0").replace("/", "~1")
