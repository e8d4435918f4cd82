"""Rate-limit headers as OpenAI, providers of its format, and Anthropic send them. Pure: text in, numbers out.

Sources: https://platform.openai.com/docs/guides/rate-limits and https://docs.anthropic.com/en/api/rate-limits.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from infermesh.limits.base import Header

__all__ = ["FAMILIES", "SPAN", "Family", "Reading", "parse_reset", "read"]

Unit = Literal["requests", "tokens", "input", "output"]

# A bare number from here on is a date and no span: 10**9 s is 31 years as a span, September 2001 as a date.
EPOCH_S = 1e9
EPOCH_MS = 1e12

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_UNIT = (
    r"(?:ns|us|µs|milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)"
    r"(?![a-zµ])"  # the whole word
)
_PART = re.compile(rf"({_NUMBER})\s*({_UNIT})", re.IGNORECASE)
SPAN = rf"{_NUMBER}\s*{_UNIT}(?:(?:\s|,|and)*{_NUMBER}\s*{_UNIT})*"
_WHOLE_SPAN = re.compile(SPAN, re.IGNORECASE)
_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class Family:
    """The three header names that describe one quota, and the unit that it counts."""

    unit: Unit
    remaining: str
    reset: str
    limit: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One quota as the server sees it. ``reset_s`` is in seconds from now. ``None``: the server did not say."""

    unit: Unit
    remaining: float
    reset_s: float | None
    limit: float | None


def _openai(unit: Unit) -> Family:
    return Family(unit, *(f"x-ratelimit-{what}-{unit}" for what in ("remaining", "reset", "limit")))


def _anthropic(unit: Unit, name: str) -> Family:
    return Family(unit, *(f"anthropic-ratelimit-{name}-{what}" for what in ("remaining", "reset", "limit")))


FAMILIES: tuple[Family, ...] = (
    _openai("requests"),
    _openai("tokens"),
    _anthropic("requests", "requests"),
    _anthropic("tokens", "tokens"),
    _anthropic("input", "input-tokens"),
    _anthropic("output", "output-tokens"),
)


def parse_reset(text: str | None, now: float) -> float | None:
    """Read a span of time or a date, in any of the forms in which servers write when a quota is full again.

    Parameters
    ----------
    text
        A span (``1s``, ``6m0s``, ``1h2m3.5s``, ``120ms``, ``5 seconds``), plain seconds, a Unix time in seconds or
        milliseconds, an RFC 3339 or HTTP date. Of a header that was sent twice (``5, 5``), the longest.
    now
        Seconds since the epoch, for the dates.

    Returns
    -------
    float | None
        Seconds from now, finite; 0 for a time that has passed. ``None``: the text is none of these, a negative span, or
        one of more digits than a number has.

    Examples
    --------
    >>> parse_reset("6m0.5s", now=0)
    360.5
    """
    text = text.strip() if text else ""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        if _WHOLE_SPAN.fullmatch(text):
            seconds = sum(float(number) * _seconds_of(unit.lower()) for number, unit in _PART.findall(text))
            return seconds if math.isfinite(seconds) else None
        if (date := _date(text, now)) is not None:
            return date
        parts = [parse_reset(part, now) for part in text.split(",")] if "," in text else []
        return max([part for part in parts if part is not None], default=None)
    if not (math.isfinite(number) and number >= 0):
        return None
    if number >= EPOCH_MS:
        number = number / 1000 - now
    elif number >= EPOCH_S:
        number -= now
    return max(number, 0.0)


def _seconds_of(unit: str) -> float:
    if unit.startswith(("ms", "mil")):
        return 1e-3
    return _UNIT_S.get(unit) or _UNIT_S[unit[0]]


def _date(text: str, now: float) -> float | None:
    date = None
    for read_date in (dt.datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
            date = read_date(text)
            break
    if date is None:
        return None
    if date.tzinfo is None:  # RFC 3339 requires an offset; a server that leaves it out means UTC
        date = date.replace(tzinfo=dt.UTC)
    return max(date.timestamp() - now, 0.0)


def _finite(text: str | None) -> float | None:
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read(header: Header, families: tuple[Family, ...], now: float) -> list[tuple[Family, Reading]]:
    """Read those of ``families`` that the reply has. ``now`` is in seconds since the epoch.

    Less than nothing is left (-1), or nothing is ever allowed (a limit of 0): on a success, both say that there is no
    such quota, or that nobody knows.
    """
    found = []
    for family in families:
        remaining = _finite(header(family.remaining))
        if remaining is None or remaining < 0:
            continue
        limit = _finite(header(family.limit))
        if limit is None or limit > 0:
            found.append((family, Reading(family.unit, remaining, parse_reset(header(family.reset), now), limit)))
    return found
