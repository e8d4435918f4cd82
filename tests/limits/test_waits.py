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
        ("Request was rejected after 3 attempts", None),
        ("The context window is 8192 tokens. Try again", None),
        ("Quota exceeded", None),
    ],
)
def test_words(said: str, seconds: float | None) -> None:
    assert spoken_wait(said) == (None if seconds is None else pytest.approx(seconds))
