"""How long a server asks to wait, wherever it says so."""

from __future__ import annotations

import pytest

from infermesh.limits.waits import spoken_wait, wait_asked_for

GEMINI = '[{"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "11.5s"}]}}]'


@pytest.mark.parametrize(
    ("headers", "said", "seconds"),
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "0"}, "", 0.0),
        ({"retry-after": "2.5"}, "", 2.5),
        ({"retry-after": "20s"}, "", 20.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, "", 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, "", 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, "", 1.5),
        ({"x-ms-retry-after-ms": "900"}, "", 0.9),
        ({"llm_provider-retry-after": "60"}, "", 60.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, "", 90.0),
        (
            {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2015-10-21T07:29:00Z"},
            "",
            60.0,
        ),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "1m30s"}, "", None),
        ({"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "1m30s"}, "", None),
        ({}, GEMINI, 11.5),
        ({}, GEMINI.replace('"', '\\"'), 11.5),
        ({"retry-after": "7"}, GEMINI, 7.0),
        *(({"retry-after": nonsense}, "", None) for nonsense in ("-1", "", "nan", "inf", "-0.5", "soon")),
        ({"retry-after": "-1"}, "Please try again in 3s.", 3.0),
        *(
            ({"retry-after": value}, "", 5.0)
            for value in (
                *("5 seconds", "5, 5", "3, 5", "5.0", "5s", "1445412485", "1445412485000", "2015-10-21T07:28:05+00:00"),
                *("2015-10-21T09:28:05+02:00", "Wed, 21 Oct 2015 07:28:05 GMT", "2015-10-21T07:28:05.000Z"),
            )
        ),
        ({"retry-after-ms": "-1", "retry-after": "5"}, "", 5.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1445412485000"}, "", 5.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1445412485"}, "", 5.0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "5"}, "", 5.0),
        ({"ratelimit": '"default";r=0;t=5'}, "", 5.0),
        ({"ratelimit": "limit=100, remaining=0, reset=5"}, "", 5.0),
        ({"ratelimit": '"default";r=10;t=5'}, "", None),
        ({"x-ratelimit-remaining-tokens-minute": "0", "x-ratelimit-reset-tokens-minute": "5.0"}, "", 5.0),
        ({"x-ratelimit-remaining-tokens": "-340", "x-ratelimit-reset-tokens": "5s"}, "", 5.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "-1"}, "Try again in 5s", 5.0),
        ({"retry-after": "0", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "5s"}, "", 5.0),
        ({"retry-after": "0"}, "Please try again in 5s.", 5.0),
        (
            {},
            '{"error": {"metadata": {"headers": {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", '
            '"X-RateLimit-Reset": "1445412485000"}}}}',
            5.0,
        ),
        *(
            ({}, body, 5.0)
            for body in (
                *('{"error": {"retry_after": 5}}', '{"retryAfter": "5"}', '{"retry_after_ms": 5000}'),
                *('{"retryAfterMs":5000}', '{"error": "loading", "estimated_time": 5.0}', '{"Retry-After":"5 s"}'),
                *('{"retryDelay": {"seconds": 5}}', '{"retryDelay": {"seconds": "5", "nanos": 0}}'),
                *('{"retryDelay": "5s"}', '{"message": "{\\"retry_after\\": 5}"}'),
                *('{"message": "429 quota [violations {}\\n, retry_delay {\\n  seconds: 5\\n}\\n]"}',),
                *('{"retry_after": "2015-10-21T07:28:05Z"}', '{"message": "Limit resets at: 2015-10-21T07:28:05Z"}'),
            )
        ),
        *(({}, body, None) for body in ('{"retry_after": null}', '{"retry_after": -1}', '{"retry": 3}')),
        ({}, "", None),
    ],
)
def test_where_it_is_said(headers: dict[str, str], said: str, seconds: float | None) -> None:
    found = wait_asked_for(headers.get, said, lambda: 1_445_412_480.0)  # 2015-10-21 07:28:00 UTC
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Rate limit reached for gpt-4o. Limit 30000, Used 29000. Please try again in 12.3s. Visit …", 12.3),
        ("Please try again in 1m2.5s.", 62.5),
        ("Please try again in 20ms.", 0.02),
        ("try again in 2h30m0s", 9000),
        ("Please retry after 26 seconds.", 26),
        ("Please retry after 2 minutes.", 120),
        ("You exceeded your current quota. Please retry in 11.204s.", 11.204),
        ("Too many requests, please wait 30 seconds", 30),
        ("The limit resets in 5 minutes and 3 seconds", 303),
        ("Retry after 86400 seconds.", 86_400),
        ("Too many requests. Retry-After: 5", 5),
        ("Retry-After: 5.", 5),
        ("Please try again in less than 5 seconds.", 5),
        ("Rate limit exceeded. Limit resets at: 2100-01-01T00:00:05.000000Z", 5),
        ("Please try again after 2100-01-01 00:00:05 UTC", 5),
        ("Available again at 2100-01-01T02:00:05+02:00.", 5),
        ("Request was rejected after 3 attempts", None),
        ("Retry-After: 5 attempts", None),
        ("Model released at 2100-01-01T00:00:05Z", None),
        ("The context window is 8192 tokens. Try again", None),
        ("Quota exceeded", None),
    ],
)
def test_words(said: str, seconds: float | None) -> None:
    found = spoken_wait(said, 4_102_444_800.0)  # 2100-01-01
    assert found == (None if seconds is None else pytest.approx(seconds))


LONG = "9" * 400  # a number that a double does not hold


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"retry-after": f"{LONG}s"}, ""),
        ({"retry-after-ms": LONG}, ""),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"1h{LONG}s"}, ""),
        ({"ratelimit": f"r=0;t={LONG}"}, ""),
        ({}, f'{{"error": {{"retry_after": {LONG}}}}}'),
        ({}, f"retry_delay {{ seconds: {LONG} }}"),
        ({}, f"Please try again in {LONG} s"),
        ({}, f"retry-after={LONG}"),
    ],
)
def test_a_number_that_is_too_long_asks_for_no_wait(headers: dict[str, str], said: str) -> None:
    assert wait_asked_for(headers.get, said) is None
