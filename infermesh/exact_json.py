"""JSON as servers, models and files write it, read without loss.

orjson reads what the standard allows, fast. Two things need more: integers from 2**64 on, which orjson turns into
floats in silence, and what the standard forbids but paid answers contain all the same: ``NaN`` and ``Infinity`` (vLLM's
log-probabilities, vllm-project/vllm#19661), half a surrogate pair in an escape (RFC 8259, section 8.2, calls its effect
unpredictable), and bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

__all__ = ["dumps", "loads", "loads_leniently", "read"]

_LONG_NUMBER = re.compile(r"\d{19}")
_LONG_NUMBER_IN_BYTES = re.compile(rb"\d{19}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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
    value = orjson.loads(text)
    found = _LONG_NUMBER.search(text) if isinstance(text, str) else _LONG_NUMBER_IN_BYTES.search(text)
    return _decode(text) if found else value


def read(text: str | bytes) -> Any:
    """Decode by the standard where that goes, else leniently. Raises ``ValueError`` where neither does."""
    try:
        return loads(text)
    except ValueError:
        return loads_leniently(text)


def loads_leniently(text: str | bytes) -> Any:
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
    value = _decode(text, strict=False)
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
    try:
        return orjson.dumps(value, default=default, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        # An integer over 64 bits or more than 254 levels, which orjson does not write. Anything else fails here too.
        try:
            return _dumps_any(value, default).encode()
        except (TypeError, ValueError, RecursionError):
            raise error from None


def _dumps_any(value: Any, default: Callable[[Any], Any] | None) -> str:
    write = partial(json.dumps, default=default, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return write(value)
    except ValueError:  # not finite
        return write(_finite(value))


def _decode(text: str | bytes, *, strict: bool = True) -> Any:
    try:
        return json.loads(text, parse_int=_integer, strict=strict)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
