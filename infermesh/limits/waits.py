"""How long a server asks to wait, wherever it says so. Pure: headers and text in, seconds out.

In this order, the first that can be read:

===============================================  ====================================================================
where                                            who
===============================================  ====================================================================
``retry-after-ms``, ``x-ms-retry-after-ms``      OpenAI, Azure
``Retry-After``, seconds or an HTTP date         RFC 9110, section 10.2.3
the same behind ``llm_provider-``                LiteLLM's proxy, of the provider behind it
``x-ratelimit-reset-…`` of a quota at 0          OpenAI and its kin, Anthropic (``anthropic-ratelimit-…-reset``)
``retryDelay`` of ``google.rpc.RetryInfo``       Gemini, which sends no header (googleapis/python-genai#2114)
"try again in 12.3s", "retry after 26 seconds"   OpenAI, Groq, Azure, Gemini, in the message
===============================================  ====================================================================

A value that is no span of time (``-1``, ``NaN``, nothing at all) is unknown and not zero. A date in the past is 0.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from infermesh.limits.base import Header
from infermesh.limits.headers import FAMILIES, parse_reset

__all__ = ["spoken_wait", "wait_asked_for"]

_PREFIXES = ("", "llm_provider-")
_RETRY_INFO = re.compile(r'\\*"retryDelay\\*"\s*:\s*\\*"(\d+(?:\.\d+)?)s\\*"')
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"milliseconds?|msecs?|ms|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|s|m|h|d"
_ONE = rf"{_NUMBER}\s*(?:{_UNIT})(?![a-z])"
_SPAN = rf"{_ONE}(?:(?:\s|,|and)*{_ONE})*"
_SPOKEN = re.compile(
    rf"(?:(?:try|retry|available|reset\w*|again)\b[^.\n\d]{{0,40}}?\b(?:in|after)|wait(?:ing)?(?: for| at least)?"
    rf"|retry[- ]after:?)\s+(?:about\s+|another\s+)?({_SPAN})",
    re.IGNORECASE,
)
_PART = re.compile(rf"({_NUMBER})\s*({_UNIT})(?![a-z])", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def wait_asked_for(header: Header, said: str = "", now: Callable[[], float] = time.time) -> float | None:
    """Seconds that the server asks to wait; ``None``: it does not ask, or not in a way that can be read.

    Parameters
    ----------
    header
        Case-insensitive look-up of a header.
    said
        The body of the refusal, or its message.
    now
        Seconds since the epoch, for dates.

    Examples
    --------
    >>> wait_asked_for({"retry-after": "7"}.get)
    7.0
    >>> wait_asked_for({"retry-after": "-1"}.get, "Please try again in 1m2.5s.")
    62.5
    """
    for prefix in _PREFIXES:
        for name in ("retry-after-ms", "x-ms-retry-after-ms"):
            if (milliseconds := _span(header(prefix + name))) is not None:
                return milliseconds / 1000
        value = header(prefix + "retry-after")
        if value is not None and (seconds := _seconds_or_date(value, now)) is not None:
            return seconds
    resets = [
        reset
        for prefix in _PREFIXES
        for family in FAMILIES
        if _span(header(prefix + family.remaining)) == 0
        and (reset := parse_reset(header(prefix + family.reset), now())) is not None
    ]
    if resets:
        return max(resets)
    if delay := _RETRY_INFO.search(said):
        return float(delay[1])
    return spoken_wait(said)


def spoken_wait(said: str) -> float | None:
    """Seconds that a message asks to wait, in words; ``None`` where it does not.

    Examples
    --------
    >>> spoken_wait("Rate limit reached. Please retry after 26 seconds.")
    26.0
    """
    found = _SPOKEN.search(said)
    if found is None:
        return None
    return sum(float(number) * _unit(unit.lower()) for number, unit in _PART.findall(found[1]))


def _unit(name: str) -> float:
    return 1e-3 if name.startswith(("ms", "mil")) else _SECONDS[name[0]]


def _seconds_or_date(value: str, now: Callable[[], float]) -> float | None:
    if (seconds := _span(value)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, TypeError, OverflowError, IndexError):
        pass
    return parse_reset(value, now()) if value.strip()[-1:].isalpha() else None  # "20s", as some gateways write it


def _span(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None
