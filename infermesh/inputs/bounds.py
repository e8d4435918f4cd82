"""How much one rendering of a template may make, and for how long it may compute.

Templates come from the declaration, but a row's values may multiply what they make: ``{{ text * n }}``. A text is
measured before it is made, so that an accident costs its row and not the machine's memory.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

MAX_TEXT = 64 * 1024 * 1024  # characters
MAX_MADE = 16 * MAX_TEXT  # characters of all texts together, those too that a loop makes to add to them
MAX_SECONDS = 2.0  # of computing, however busy the machine is
_MAX_BITS = 1 << 17  # of an integer; Python prints none with more than a tenth of that
SMALL = 256  # characters; shorter texts are not counted one by one
_FEW = 64  # texts
_TURNS = 1 << 10  # between two looks at the clock
_ENTRY = 8  # bytes that an entry of a list takes
_SPEC = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^)]{0,200}\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")


class OutOfBoundsError(Exception):
    """A rendering that makes or computes too much."""


class Budget:
    """What a rendering has left. Renderings do not nest.

    There is one for all threads, since looking up a thread's own would take longer than most renderings. Two threads
    that render at the same moment count together, or anew.
    """

    __slots__ = ("_thread", "_until", "look", "made", "turns")

    def __init__(self) -> None:
        self._thread, self._until = 0, 0.0
        self.begin()

    def begin(self) -> None:
        """Start a rendering."""
        self.made = self.turns = 0
        self.look = _TURNS

    def count(self, turns: int) -> None:
        """Count turns of a loop, or a call."""
        self.turns += turns
        if self.turns >= self.look:
            self._look_at_the_clock()

    def take(self, size: int) -> None:
        """Ask for a text of that many characters."""
        self.made += size
        if size > MAX_TEXT:
            raise OutOfBoundsError(f"it makes a text or a list of {size:,} bytes, and {MAX_TEXT:,} are allowed")
        if self.made > MAX_MADE:
            raise OutOfBoundsError(f"what it makes has more than {MAX_MADE:,} bytes together")
        if size > 4096:  # a long text takes the time of many turns
            self.count(size >> 10)

    def _look_at_the_clock(self) -> None:
        # The thread's own time: a row must not fail because the machine is busy.
        first, thread, now = self.look == _TURNS, threading.get_ident(), time.thread_time()
        self.look = self.turns + _TURNS
        if first or thread != self._thread:
            self._thread, self._until = thread, now + MAX_SECONDS
        elif now > self._until:
            raise OutOfBoundsError(f"it computes for more than {MAX_SECONDS:g} seconds: are there loops within loops?")


BUDGET = Budget()


def turns(rows: Any) -> Any:
    """What a loop goes over, with its turns counted: of a short list at once, else as it goes on."""
    try:
        number = len(rows)
    except TypeError:
        number = _TURNS + 1
    if number > _TURNS:
        return _in_portions(iter(rows))
    BUDGET.count(number)
    return rows


def _in_portions(rows: Iterator[Any]) -> Iterator[Any]:
    """Look at the clock now and then. Of what is made as it is gone over, each item may have taken long."""
    size = 1
    while portion := list(itertools.islice(rows, size)):
        BUDGET.count(size)
        yield from portion
        size = min(2 * size, 64)


def joined(parts: Iterable[str], between: str = "") -> str:
    """``between.join(parts)``. A few are joined before they are measured: that is quicker, and they cannot be much."""
    texts = list(parts)
    if len(texts) <= _FEW:
        text = between.join(texts)
        BUDGET.take(len(text))
        return text
    BUDGET.take(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def add(left: Any, right: Any) -> Any:
    """``left + right``."""
    if isinstance(left, str | bytes | list | tuple) and isinstance(right, type(left)):
        BUDGET.take((len(left) + len(right)) * _entry_size(left))
    return left + right


def multiply(left: Any, right: Any) -> Any:
    """``left * right``."""
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int) and hasattr(right, "__len__"):
        BUDGET.take(len(right) * max(left, 0) * _entry_size(right))
    elif isinstance(right, int) and hasattr(left, "__len__"):
        BUDGET.take(len(left) * max(right, 0) * _entry_size(left))
    return left * right


def power(left: Any, right: Any) -> Any:
    """``left ** right``."""
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)
    return left**right


def modulo(left: Any, right: Any) -> Any:
    """``left % right``, which for a text is a format."""
    if isinstance(left, str):
        BUDGET.take(percent(left, right))
    elif isinstance(left, bytes | bytearray):
        BUDGET.take(percent(left.decode("latin-1"), right))
    return left % right


def percent(form: str, values: Any) -> int:
    """What a format makes at most: its own text, the widths it names, and the values' texts."""
    given = values if isinstance(values, tuple) else (values,)
    widths = [width for found in _PERCENT.findall(form) for width in found if width]
    size = len(form) + sum(int(width) for width in widths if width != "*" and len(width) < 19)
    if "*" in widths:
        size += sum(abs(value) for value in given if isinstance(value, int))
    if any(len(width) > 18 for width in widths):
        size = MAX_TEXT + 1
    if len(given) == 1 and isinstance(given[0], Mapping):  # each may be named many times
        size += form.count("%") * max((len(text) for text in given[0].values() if isinstance(text, str)), default=0)
    else:
        size += sum(map(weight, given))
    return size


def weight(value: Any) -> int:
    """What a value's text has at least. It is not made, since a list may hold one long text many times."""
    size, open_values = 0, [value]
    while open_values and size <= MAX_TEXT:
        item = open_values.pop()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, Mapping | list | tuple | set | frozenset):
            size += _ENTRY * len(item)
            BUDGET.count(len(item))
            open_values.extend(item)
            if isinstance(item, Mapping):
                open_values.extend(item.values())
    return size


def listed(rows: Iterable[Any]) -> list[Any]:
    """``list(rows)``."""
    made = list(rows)
    BUDGET.take(_ENTRY * len(made))
    return made


def check_spec(spec: str) -> None:
    """Refuse a format such as ``{:1000000000}``."""
    for number in _SPEC.findall(spec):
        BUDGET.take(int(number[:19]))


def indented(text: str, width: Any) -> int:
    """The length of a text whose lines are moved to the right by a number of blanks, or by a text."""
    return len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else max(width, 0))


def wrapped(text: str, width: int, between: str) -> int:
    """The length of a text that is cut into lines. A word is cut from its rest, again and again, which takes time."""
    width = max(width, 1)
    longest = max(map(len, text.split()), default=0)
    if longest * longest // width > 4 * MAX_MADE:
        raise OutOfBoundsError(f"it wraps a word of {longest:,} characters at {width}")
    return len(text) + len(between) * (2 * len(text) // width + text.count("\n") + 1)


def digits(number: int) -> int:
    """What rounding to a number of digits makes. Refuses a number that no number has."""
    if abs(number) > _MAX_BITS:
        raise OutOfBoundsError(f"it asks for {number:,} digits")
    return abs(number)


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise OutOfBoundsError(f"it makes a number of {bits:,} bits, and {_MAX_BITS:,} are allowed")


def _entry_size(value: Any) -> int:
    return 1 if isinstance(value, str | bytes) else _ENTRY


def replaced(text: Any, old: Any, new: Any, count: int = -1) -> int:
    """The length of a text after a replacement."""
    more = len(new) - len(old)
    if more <= 0:
        return len(text)
    times = text.count(old)
    return len(text) + more * int(min(times, count) if count >= 0 else times)


def _padded(text: Any, width: int, fill: Any = None) -> int:
    return max(len(text), width)


def _expanded(text: Any, tabsize: int = 8) -> int:
    return len(text) + int(text.count("\t" if isinstance(text, str) else b"\t")) * max(tabsize, 0)


def _translated(text: Any, table: Any, **_: Any) -> int:
    values = table.values() if isinstance(table, Mapping) else table
    return len(text) * max((len(item) for item in values if isinstance(item, str)), default=1)


def _written(number: int, length: int = 1, *_: Any, **__: Any) -> int:
    return length


def _strung(between: Any, parts: Any) -> int:
    return sum(len(part) for part in parts if isinstance(part, str | bytes)) + len(between) * len(parts)


# Methods of a row's values, and how long what they make is.
_SIZES: dict[str, Callable[..., int]] = {
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "expandtabs": _expanded,
    "replace": replaced,
    "translate": _translated,
    "to_bytes": _written,
    "join": _strung,
}


def measured(method: Any, value: Any, name: str) -> Any:
    """A method of a value, one that asks before it makes a text; any other as it is."""
    size = _SIZES.get(name)
    if size is None or not isinstance(value, str | bytes | bytearray | int):
        return method

    def asking(*arguments: Any, **named: Any) -> Any:
        if name == "join":
            arguments = tuple(map(list, arguments))  # it may be read but once
        BUDGET.take(size_of(size, value, *arguments, **named))
        return method(*arguments, **named)

    return asking


def size_of(size: Callable[..., int], *arguments: Any, **named: Any) -> int:
    """What ``size`` says; 0 for arguments that are none, since what is called says so itself."""
    try:
        return size(*arguments, **named)
    except (TypeError, AttributeError, ValueError):
        return 0
