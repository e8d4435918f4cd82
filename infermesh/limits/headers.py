"""Rate-limit headers as OpenAI, providers of its format, and Anthropic send them. Pure: text in, numbers out.

Sources: https://platform.openai.com/docs/guides/rate-limits and https://docs.anthropic.com/en/api/rate-limits.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass
from typing import Literal

from infermesh.limits.base import Header

__all__ = ["FAMILIES", "Family", "Reading", "parse_reset", "read"]

Unit = Literal["requests", "tokens", "input", "output"]

# A bare number from here on is a date and no span: 10**9 s is 31 years as a span, September 2001 as a date.
EPOCH_S = 1e9
EPOCH_MS = 1e12

_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|d|h|m|s)")
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
    """Read when a quota is full again.

    Parameters
    ----------
    text
        A span (``1s``, ``6m0s``, ``1h2m3.5s``, ``120ms``), plain seconds, a Unix time in seconds or milliseconds, or an
        RFC 3339 date.
    now
        Seconds since the epoch, for the dates.

    Returns
    -------
    float | None
        Seconds from now; 0 for a time that has passed. ``None``: the text is none of these, or a negative span.

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
        return _span(text.lower()) if text[-1] in "sSmMhHdD" else _date(text, now)
    if not (math.isfinite(number) and number >= 0):
        return None
    if number >= EPOCH_MS:
        number = number / 1000 - now
    elif number >= EPOCH_S:
        number -= now
    return max(number, 0.0)


def _span(text: str) -> float | None:
    total, at = 0.0, 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            return None
        total += float(part[1]) * _UNIT_S[part[2]]
        at = part.end()
    return total


def _date(text: str, now: float) -> float | None:
    try:
        date = dt.datetime.fromisoformat(text)
    except ValueError:
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
