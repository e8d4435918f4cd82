"""How long a server asks to wait, wherever it says so. Pure: headers and text in, seconds out.

In this order, the first that can be read:

===================================================  ================================================================
where                                                who
===================================================  ================================================================
``retry-after-ms``, ``x-ms-retry-after-ms``          OpenAI, Azure
``Retry-After``                                      RFC 9110, section 10.2.3
``…-reset…`` of a quota of which nothing remains     OpenAI and its kin, Anthropic, Cerebras, OpenRouter, gateways
``RateLimit``, ``ratelimit-reset``                   draft-ietf-httpapi-ratelimit-headers
any of these behind ``llm_provider-``                LiteLLM's proxy, of the provider behind it
any of these as a key of the body                    OpenRouter (``error.metadata.headers``)
``retryDelay``, ``retry_delay { seconds: 5 }``       Gemini, which sends no header (googleapis/python-genai#2114)
``retry_after``, ``retryAfterMs``, … of the body     Cloudflare, gateways
``estimated_time`` of the body                       Hugging Face, while a model loads
"try again in 12.3s", "resets at 2026-01-01T00:00Z"  OpenAI, Groq, Azure, Gemini, in the message
===================================================  ================================================================

Every value is a span or a date in any form (:func:`~infermesh.limits.headers.parse_reset`). One that is neither
(``-1``, ``NaN``, nothing at all) is unknown and not zero. A date in the past is 0, and 0 counts where nobody says more.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from infermesh.limits.base import Header
from infermesh.limits.headers import FAMILIES, SPAN, parse_reset

__all__ = ["spoken_wait", "wait_asked_for"]

_PREFIXES = ("", "llm_provider-")
_COUNTED = ("", "-requests", "-tokens")
_PER = ("", "-second", "-minute", "-hour", "-day")
# What tells how much is left of a quota, and what tells when it is full again.
_QUOTAS = (
    *((f"x-ratelimit-remaining{what}{per}", f"x-ratelimit-reset{what}{per}") for what in _COUNTED for per in _PER),
    *((family.remaining, family.reset) for family in FAMILIES if not family.remaining.startswith("x-")),
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
    ("ratelimitbysize-remaining", "ratelimitbysize-reset"),
)
# `RateLimit: "default";r=0;t=5`, and `limit=100, remaining=0, reset=5` of the drafts before.
_STRUCTURED = re.compile(r"\b(?:r|remaining)\s*=\s*0\s*[;,]\s*(?:t|reset)\s*=\s*(\d+)", re.IGNORECASE)

# Keys of a body, which may itself be text within JSON: then its quotes are escaped.
_KEY = re.compile(
    r'\\*"((?:llm_provider-|x-|anthropic-)?(?:rate-?limit|retry[-_]?after|retry_?delay|estimated_time)[\w-]*)\\*"'
    r'\s*:\s*\\*(?:"([^"\\]*)|([\d.]+)|\{[^{}]*?seconds\\*"\s*:\s*\\*"?([\d.]+))',
    re.IGNORECASE,
)
_PROTO = re.compile(r"retry_delay\s*\{(?:\s|\\n)*seconds\s*:\s*(\d+)")  # protobuf's text format, in a message

_SOON = r"(?:(?:about|another|less than|at least|approximately|around|up to)\s+)?"
_SPOKEN = re.compile(
    rf"(?:(?:try|retry|available|reset\w*|again)\b[^.\n\d]{{0,40}}?\b(?:in|after)|wait(?:ing)?(?: for)?"
    rf"|retry[- ]after:?)\s+{_SOON}({SPAN})",
    re.IGNORECASE,
)
_SPOKEN_NUMBER = re.compile(r"retry[-_ ]after\s*[:=]\s*(\d+(?:\.\d+)?)(?!\.?\d|\s*[a-z])", re.IGNORECASE)
_SPOKEN_DATE = re.compile(
    r"(?:try|retry|available|reset\w*|again|wait)\b[^.\n\d]{0,40}?\b(?:at|after|until|on)\b[^.\n\d]{0,8}"
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)\s?(Z|UTC|GMT|[+-]\d\d:?\d\d)?",
    re.IGNORECASE,
)


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
    found = None
    for seconds in _waits(header, said, now()):
        if seconds:
            return seconds
        found = seconds if found is None else found
    return found


def _waits(header: Header, said: str, now: float) -> Iterator[float | None]:
    """What each place says, one after the other."""
    yield from _in_headers(header, now)
    keys = {key.lower(): value or number or seconds for key, value, number, seconds in _KEY.findall(said)}
    if keys:
        yield from _in_headers(keys.get, now)
        for key, value in keys.items():
            if key.startswith(("retry", "estimated_time")):
                yield _milliseconds(value) if key.endswith("ms") else parse_reset(value, now)
    if delay := _PROTO.search(said):
        yield parse_reset(delay[1], now)
    yield spoken_wait(said, now)


def _in_headers(header: Header, now: float) -> Iterator[float | None]:
    for prefix in _PREFIXES:
        yield _milliseconds(header(prefix + "retry-after-ms"))
        yield _milliseconds(header(prefix + "x-ms-retry-after-ms"))
        yield parse_reset(header(prefix + "retry-after"), now)
    ends = [
        parse_reset(header(prefix + reset), now)
        for prefix in _PREFIXES
        for remaining, reset in _QUOTAS
        if _used_up(header(prefix + remaining))
    ]
    if structured := _STRUCTURED.search(header("ratelimit") or ""):
        ends.append(parse_reset(structured[1], now))
    yield max((end for end in ends if end is not None), default=None)


def _used_up(remaining: str | None) -> bool:
    """Whether nothing remains, or less: some let a quota be overdrawn. -1 alone is how many write "unknown"."""
    try:
        left = float(remaining) if remaining else 1.0
    except ValueError:
        return False
    return left <= 0 and left != -1


def _milliseconds(value: str | None) -> float | None:
    """Seconds of a number of milliseconds, or of a span with a unit."""
    return parse_reset(f"{value}ms" if value and value[-1:].isdigit() else value, 0.0)


def spoken_wait(said: str, now: float | None = None) -> float | None:
    """Seconds that a message asks to wait, in words; ``None`` where it does not.

    Parameters
    ----------
    said
        The message.
    now
        Seconds since the epoch, for dates; ``None`` looks at the clock.

    Examples
    --------
    >>> spoken_wait("Rate limit reached. Please retry after 26 seconds.")
    26.0
    """
    now = time.time() if now is None else now
    if found := _SPOKEN.search(said) or _SPOKEN_NUMBER.search(said):
        return parse_reset(found[1], now)
    if found := _SPOKEN_DATE.search(said):
        zone = (found[2] or "Z").upper()
        return parse_reset(found[1] + ("Z" if zone in ("UTC", "GMT") else zone), now)
    return None
