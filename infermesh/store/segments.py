"""Rows as Arrow columns, which DuckDB takes as they are.

Its appender converts Python values one by one, and holds the interpreter's lock meanwhile: four times as long for a row
of a stage, and far longer for a vector (docs/decisions/0025-arrow.md). Types that are not known here go through it.

The memory layout is that of the Arrow columnar format, https://arrow.apache.org/docs/format/Columnar.html.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

import nanoarrow as na
from nanoarrow.c_array_stream import CArrayStream

from infermesh.store.schema import Column, quoted

__all__ = ["Segment", "appendable", "segment"]

_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
# The most in one piece. Making it holds the interpreter's lock, so that pieces bound the event loop's pauses.
_PIECE, _PIECE_BYTES = 1024, 2_000_000
_LONG = ("VARCHAR", "JSON", "FLOAT[]")


class Segment:
    """Rows of one table as a stream of Arrow arrays.

    Attributes
    ----------
    select
        The columns of the table, as expressions over the stream's.
    values
        The parameters of ``select``.
    """

    def __init__(self, select: str, values: Sequence[Any], fields: dict[str, Any], pieces: Sequence[Any]) -> None:
        self.select = select
        self.values = values
        self._schema = na.c_schema(na.struct(fields))
        self._pieces = pieces

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The stream, by the Arrow PyCapsule interface. DuckDB asks for it more than once."""
        stream = CArrayStream.from_c_arrays(list(self._pieces), self._schema, move=False)
        return stream.__arrow_c_stream__()


def segment(columns: Sequence[Column], rows: Sequence[tuple[Any, ...]]) -> Segment | None:
    """Make a segment; ``None`` where a column or a value is none of those that are known here.

    Parameters
    ----------
    columns
        Those of the table, in the order of the tuples.
    rows
        At least one. A TIMESTAMP is a number of microseconds since the epoch, or a datetime without a time zone; a
        FLOAT[] is a sequence of numbers, or the bytes of float32 ones.
    """
    if any(column.type not in _ARRAYS for column in columns):
        return None
    width = len(columns)
    if any(len(row) != width for row in rows):
        return None
    select: list[str] = []
    values: list[Any] = []
    varying: list[tuple[str, Column, tuple[Any, ...]]] = []
    for number, (column, found) in enumerate(zip(columns, zip(*rows, strict=True), strict=True)):
        first = found[0]
        constant = first is None or type(first) is str
        if constant and found.count(first) == len(found):  # most columns of most segments
            select.append("NULL" if first is None else "?")
            if first is not None:
                values.append(first)
            continue
        name = f"c{number}"
        select.append(quoted(name))
        varying.append((name, column, found))
    if not varying:
        return None
    fields = {name: _ARRAYS[column.type][0] for name, column, _ in varying}
    try:
        size = sum(sum(map(len, filter(None, found))) for _, column, found in varying if column.type in _LONG)
        step = min(max(_PIECE_BYTES * len(rows) // max(size, 1), 1), _PIECE)
        pieces = [
            _piece(fields, [(column.type, found[start : start + step]) for _, column, found in varying])
            for start in range(0, len(rows), step)
        ]
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None  # the appender knows more conversions, and says what does not fit
    return Segment(", ".join(select), values, fields, pieces)


def appendable(columns: Sequence[Column], rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """The rows as DuckDB's appender takes them."""
    converted = [(place, _CONVERTED[column.type]) for place, column in enumerate(columns) if column.type in _CONVERTED]
    if not converted:
        return rows
    made = []
    for row in rows:
        values = list(row)
        for place, convert in converted:
            if place < len(values):
                values[place] = convert(values[place])
        made.append(tuple(values))
    return made


def _piece(fields: dict[str, Any], columns: Sequence[tuple[str, Sequence[Any]]]) -> Any:
    children = [_ARRAYS[kind][1](values) for kind, values in columns]
    return na.c_array_from_buffers(na.struct(fields), len(columns[0][1]), [None], children=children)


def _numbers(code: str, kind: Any) -> Callable[[Sequence[Any]], Any]:
    def made(values: Sequence[Any]) -> Any:
        if None in values:
            return na.c_array(values, kind)
        return na.c_array_from_buffers(kind, len(values), [None, array(code, values)])

    return made


def _texts(values: Sequence[Any]) -> Any:
    return na.c_array(values, na.string())


def _times(values: Sequence[Any]) -> Any:
    numbers = [each if each.__class__ is int or each is None else (each - _EPOCH) // _MICROSECOND for each in values]
    return _COUNTED(numbers)


def _vectors(values: Sequence[Any]) -> Any:
    flat = [each if each.__class__ is bytes else _float32(each) for each in values]
    items = na.c_array_from_buffers(na.float32(), sum(map(len, flat)) // 4, [None, b"".join(flat)])
    ends = array("i", accumulate((len(each) // 4 for each in flat), initial=0))
    return na.c_array_from_buffers(_LIST, len(values), [_valid(values), ends], children=[items])


def _float32(numbers: Any) -> bytes:
    """Numbers as float32; none for NULL. Raises ``OverflowError`` where one is too large, or is not finite itself."""
    found = array("f", numbers or ())
    if not math.isfinite(sum(found)):  # array() makes an infinity of what is too large
        raise OverflowError
    return found.tobytes()


def _valid(values: Sequence[Any]) -> Any:
    """Which values are not NULL, a bit each, the lowest first; ``None`` for all."""
    if all(each is not None for each in values):
        return None
    bits = "".join(["0" if each is None else "1" for each in reversed(values)])
    return int(bits, 2).to_bytes((len(bits) + 7) // 8, "little")


_TIME = na.timestamp("us")
_COUNTED = _numbers("q", _TIME)
_LIST = na.list_(na.float32())
_ARRAYS: dict[str, tuple[Any, Callable[[Sequence[Any]], Any]]] = {
    "BIGINT": (na.int64(), _numbers("q", na.int64())),
    "INTEGER": (na.int32(), _numbers("i", na.int32())),
    "BOOLEAN": (na.bool_(), lambda values: na.c_array(values, na.bool_())),
    "DOUBLE": (na.float64(), _numbers("d", na.float64())),
    "VARCHAR": (na.string(), _texts),
    "JSON": (na.string(), _texts),
    "TIMESTAMP": (_TIME, _times),
    "FLOAT[]": (_LIST, _vectors),
}
_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "TIMESTAMP": lambda value: _EPOCH + value * _MICROSECOND if type(value) is int else value,
    "FLOAT[]": lambda value: memoryview(value).cast("f").tolist() if type(value) is bytes else value,
}
