"""JSON as servers, models and files write it, read without loss.

orjson reads what the standard allows, fast. Two things need more: integers from 2**64 on, which orjson turns into
floats in silence, and what the standard forbids but paid answers contain all the same: ``NaN`` and ``Infinity`` (vLLM's
log-probabilities, vllm-project/vllm#19661), half a surrogate pair in an escape (RFC 8259, section 8.2, calls its effect
unpredictable), and bytes that are not UTF-8.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import orjson

__all__ = [
    "dumps",
    "has_surrogates",
    "inexact_members",
    "loads",
    "loads_leniently",
    "read",
    "read_exactly",
    "shown",
    "try_enums",
]

_LONG_NUMBER = re.compile(r"\d{19}")
_LONG_NUMBER_IN_BYTES = re.compile(rb"\d{19}")
_HUGE = re.compile(r"\d{309,4300}")  # what no double holds, and Python reads
_MAYBE_INEXACT = re.compile(r"[\d.]{17}|\d[eE]")
_BETWEEN = re.compile(r"[\s,:]*")  # what stands between the members of an object
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# orjson kills the process where a time zone or a dataclass raises, so these are left to Python.
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def loads(text: str | bytes) -> Any:
    """Decode JSON; integers of any size are exact.

    Of a key that stands twice in an object the last value counts, as in every JSON library that infermesh uses.

    Raises
    ------
    ValueError
        It is not JSON by the standard.

    Examples
    --------
    >>> loads('{"wei": 19876543210987654321}')
    {'wei': 19876543210987654321}
    """
    try:
        value = orjson.loads(text)
    except ValueError as error:
        return _with_huge_integers(text, error)
    found = _LONG_NUMBER.search(text) if isinstance(text, str) else _LONG_NUMBER_IN_BYTES.search(text)
    return _decode(text) if found else value


def _with_huge_integers(text: str | bytes, error: ValueError) -> Any:
    """Decode what orjson refuses for nothing but an integer that is larger than any double; else raise the error."""
    text = text.decode() if isinstance(text, bytes) else text
    without = _HUGE.sub("0", text)
    if without == text:
        raise error
    orjson.loads(without)  # it is JSON otherwise
    return _decode(text, parse_float=_finite_float)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value - value:
        raise ValueError("a fraction is larger than any double")
    return value


def read(text: str | bytes) -> Any:
    """Decode by the standard where that goes, else leniently. Raises ``ValueError`` where neither does."""
    try:
        return loads(text)
    except ValueError:
        return loads_leniently(text)


def read_exactly(text: str) -> Any:
    """As :func:`read`, with a ``Decimal`` for each number that a double does not hold.

    Examples
    --------
    >>> read_exactly("[0.1, 0.1234567890123456789]")
    [0.1, Decimal('0.1234567890123456789')]
    """
    if _MAYBE_INEXACT.search(text) is None:
        return read(text)
    try:
        orjson.loads(text)
    except ValueError:  # a number that is too large for a double is one of the reasons
        return loads_leniently(text, parse_float=_exact)
    return _decode(text, parse_float=_exact)


def inexact_members(text: str) -> dict[str, str]:
    """Of the members of an object those with a number that a double does not hold, each as it stands there.

    Empty for what is no object, or cannot be read.

    Examples
    --------
    >>> inexact_members('{"a": 0.5, "b": [1e400]}')
    {'b': '[1e400]'}
    """
    inexact: list[str] = []

    def number(digits: str) -> float:
        if isinstance(_exact(digits), Decimal):
            inexact.append(digits)
        return 0.0

    decoder = json.JSONDecoder(parse_float=number, parse_int=lambda _: 0, strict=False)
    found: dict[str, str] = {}
    try:
        at = _next_member(text, text.index("{") + 1)
        while text[at] == '"':
            key, at = decoder.raw_decode(text, at)
            start = _next_member(text, at)
            inexact.clear()
            _, end = decoder.raw_decode(text, start)
            if inexact:
                found[key] = text[start:end]
            at = _next_member(text, end)
    except (ValueError, IndexError, RecursionError):
        return {}
    return found


def _next_member(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def loads_leniently(text: str | bytes, *, parse_float: Callable[[str], float | Decimal] | None = None) -> Any:
    """Decode what :func:`loads` refuses, as far as it can be understood.

    ``NaN`` and ``Infinity`` become floats; half a surrogate pair, and bytes that are not UTF-8, become U+FFFD. Line
    breaks and tabs may stand in a text as they are.

    Raises
    ------
    ValueError
        It is not JSON in this sense either, or nested too deeply to be read.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    value = _decode(text, strict=False, parse_float=parse_float)
    if _ESCAPED_SURROGATE.search(text) is None:
        return value
    try:
        return _without_surrogates(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Encode JSON, integers of any size included. Keys may be what JSON makes text of: numbers, booleans, null.

    NaN and the infinities become ``null``, since the standard has no name for them. ``default`` makes something that
    JSON has of a value that it has not.

    Raises
    ------
    TypeError
        A value that JSON does not have, such as a lone surrogate in a text, or one that is nested some 900 levels deep.

    Examples
    --------
    >>> dumps({50256: -100, "seed": 2**64})
    b'{"50256":-100,"seed":18446744073709551616}'
    """
    plain = _plain if default is None else partial(_plain, default=default)
    try:
        written = orjson.dumps(value, default=plain, option=_OPTIONS)
    except TypeError as error:
        # An integer over 64 bits or more than 254 levels, which orjson does not write. Anything else fails here too.
        try:
            return _dumps_any(value, plain).encode()
        except (TypeError, ValueError, RecursionError):
            raise error from None
    # A copy, since orjson's buffer stays as large as it was made for the worst that a text may hold: ten times as long
    # for a picture of a megabyte (3.12 and 3.13; home-assistant/core#181245 says why).
    return b"".join((written, b""))


_SCALARS = frozenset((str, int, float, bool, type(None)))


def try_enums(value: Any) -> None:
    """Ask the members of enumerations in a value for their values, and raise what one of them raises.

    orjson asks them itself, and kills the process where one raises. So what comes from somebody else's function is
    asked here before, where it ran.
    """
    seen: dict[int, Any] = {}  # a value may hold itself; each is kept, so that no other gets its id
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        kind = type(item)
        if kind is dict:  # these two first, since a client's requests hold little else
            for key, each in item.items():
                if type(key) not in _SCALARS:
                    waiting.append(key)
                if type(each) not in _SCALARS:
                    waiting.append(each)
        elif kind is list:
            waiting += [each for each in item if type(each) not in _SCALARS]
        elif isinstance(item, enum.Enum):
            waiting.append(item.value)
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif _is_dataclass(item):
            waiting.append(_fields(item))


def _plain(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """What JSON has of a value that it has not: for times and dataclasses as orjson writes them."""
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if _is_dataclass(value):
        return _fields(value)
    if default is None:
        raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")
    return default(value)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields as orjson writes them: without those whose name begins with an underscore."""
    names = [field.name for field in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


def has_surrogates(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which is no UTF-8: no table and no request can hold it."""
    return _SURROGATE.search(text) is not None


def shown(value: Any) -> str:
    """A value as a message shows it: as JSON, else as Python writes it. It never fails, whatever a server sent.

    Examples
    --------
    >>> shown({"limit": 2**64})
    '{"limit":18446744073709551616}'
    """
    try:
        return dumps(value, default=str).decode()
    except TypeError:
        try:
            return repr(value)
        except RecursionError:
            return f"({type(value).__name__}, nested too deeply to be shown)"


def _dumps_any(value: Any, default: Callable[[Any], Any] | None) -> str:
    write = partial(json.dumps, default=default, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return write(value)
    except ValueError:  # not finite
        return write(_finite(value))


def _decode(
    text: str | bytes, *, strict: bool = True, parse_float: Callable[[str], float | Decimal] | None = None
) -> Any:
    try:
        return json.loads(text, parse_int=_integer, parse_float=parse_float, strict=strict)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _exact(digits: str) -> float | Decimal:
    """A number as a float where its shortest digits are those that stand there, else as they stand there."""
    value, exact = float(digits), Decimal(digits)
    return value if value - value == 0 and Decimal(repr(value)) == exact else exact


def _integer(digits: str) -> int | float:
    """An integer; infinity for one of more digits than Python reads (``sys.get_int_max_str_digits``, 4,300)."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value) if not value.isascii() else value
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
