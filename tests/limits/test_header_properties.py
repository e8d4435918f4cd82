"""Whatever a server writes into its headers and bodies, reading them never fails."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from infermesh.limits.headers import FAMILIES, parse_reset, read
from infermesh.limits.waits import _QUOTAS, spoken_wait, wait_asked_for
from tests.mutations import any_text, json_values, written

_NAMES = [
    *("retry-after", "retry-after-ms", "x-ms-retry-after-ms", "ratelimit"),
    *(name for pair in _QUOTAS for name in pair),
    *(name for family in FAMILIES for name in (family.remaining, family.reset, family.limit)),
]
_PIECES = [
    *("0", "1", "7", "60", "1700000000", "1e3", "1e999", "9" * 400, "1_0", "٣", ".5", "-", "+", "nan", "inf"),
    *("s", "ms", "µs", "NS", "h", "m", "d", " days", " minutes", " and ", ",", ";", ":", "=", "r=0", "t=", "\n", '"'),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59Z", "2026-02-30", "T", "Z", "Mon, 01 Jan 1 00:00:00 +99999"),
    *("Sun, 06 Nov 1994 08:49:37 GMT", "try again in ", "retry after ", "retry-after: ", "wait ", "resets at "),
    "retry_delay {seconds: ",
]
_value = st.lists(st.sampled_from(_PIECES) | any_text, min_size=1, max_size=5).map("".join)


_headers = st.dictionaries(st.sampled_from([*_NAMES, *(f"llm_provider-{name}" for name in _NAMES)]), _value, max_size=6)
_keys = st.sampled_from([*_NAMES, "retryDelay", "retry_after", "retryAfterMs", "estimated_time", "seconds"])
_body = st.one_of(
    _value,
    json_values(_keys).map(lambda value: written(value).decode()),
    st.dictionaries(_keys, _value).map(json.dumps),
    st.dictionaries(_keys, _value).map(lambda value: json.dumps({"error": {"message": json.dumps(value)}})),
)


def is_wait(seconds: float | None) -> bool:
    return seconds is None or (isinstance(seconds, float) and math.isfinite(seconds) and seconds >= 0)


@given(_value, st.floats(0, 4e9))
def test_a_reset_is_a_finite_wait_or_unknown(text: str, now: float) -> None:
    assert is_wait(parse_reset(text, now))


@given(_headers, _body)
def test_a_wait_is_finite_or_unknown(headers: dict[str, str], body: str) -> None:
    assert is_wait(wait_asked_for(headers.get, body, lambda: 1.7e9))
    assert is_wait(spoken_wait(body, 1.7e9))


@given(_headers)
def test_quotas_are_finite(headers: dict[str, str]) -> None:
    for _, reading in read(headers.get, FAMILIES, 1.7e9):
        assert is_wait(reading.reset_s)
        assert math.isfinite(reading.remaining)
        assert reading.limit is None or math.isfinite(reading.limit)
