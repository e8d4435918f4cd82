"""Statuses, retry-after and redaction, without a network."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from infermesh.errors import (
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    NotFoundError,
    RateLimitError,
    RequestError,
    ServerError,
)
from infermesh.limits.waits import wait_asked_for
from infermesh.redaction import origin, redact, secret_values
from infermesh.transports.errors import error_from_status, error_in_body


def header_of(headers: dict[str, str]) -> Any:
    return {k.lower(): v for k, v in headers.items()}.get


def error(status: int, body: Any, headers: dict[str, str] | None = None, **options: Any) -> RequestError:
    return error_from_status(status, body, header_of(headers or {}), "gpu-0", **options)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        ({"retry-after-ms": "soon", "Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 -0000"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": ""}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_asked_for(header_of(headers), "", lambda: 1_445_412_480.0) == seconds


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The decoder prompt (length 9000) is longer than the maximum model length of 4096.",
        "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
        "the request exceeds the available context size (4096 tokens), try increasing it",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).",
        "Input is too long for requested model.",
        "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
    ],
)
def test_how_servers_say_that_a_prompt_is_too_long(message: str) -> None:
    for body in ({"error": {"message": message}}, {"object": "error", "message": message}, {"error": message}):
        assert type(error(400, body)) is ContextLengthError
        assert type(error(500, body)) is ContextLengthError  # as some builds of llama.cpp and vLLM say it
    assert type(error(503, {"error": {"message": message}})) is ContextLengthError  # a gateway's, of one behind it
    assert type(error(504, {"error": {"message": message}})) is ServerError


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "Wrong."}}, "Wrong"),
        ({"error": "Wrong."}, "Wrong"),
        ({"message": "Wrong."}, "Wrong"),
        ({"detail": "Wrong."}, "Wrong"),
        ({"detail": [{"loc": ["body", "n"], "msg": "not an int", "type": "t"}]}, "body.n: not an int"),
        ([{"error": {"message": "Wrong."}}], "Wrong"),
        (b'{"error": {"message": "Wrong."}}', "Wrong"),
        ("plain\n  words", "plain words"),
        ("<html><head><title>502 Bad\nGateway</title></head><body>x</body></html>", "502 Bad Gateway"),
        ("{not json", "{not json"),
        ("", "no reason given"),
        (None, "no reason given"),
        ({"code": 3}, '{"code":3}'),
        (b"\xff\xfe", "��"),
    ],
)
def test_messages(body: Any, said: str) -> None:
    assert f": HTTP 422: {said}. " in str(error(422, body))


@pytest.mark.parametrize("levels", [0, 300, 1000])
@pytest.mark.parametrize("key", ["a", "message"])
def test_an_error_of_any_json_is_told(key: str, levels: int) -> None:
    body = orjson.loads(f'{{"{key}": {"[" * levels}5{"]" * levels}, "limit": {2**64 - 1}}}')
    for each in (body, {**body, "limit": 2**70}):
        assert isinstance(error(400, each), BadRequestError)
        assert isinstance(error_in_body(200, {"error": each}, header_of({}), "d"), ServerError)


def test_a_long_message_is_cut() -> None:
    assert len(str(error(400, {"error": {"message": "x" * 9000}}))) < 700


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            ContentFilterError,
        ),
        (400, {"error": {"message": "triggering Azure OpenAI's content management policy"}}, ContentFilterError),
        (400, {"error": {"message": "the parameter max_tokens is too large"}}, BadRequestError),
        (418, {}, BadRequestError),
        (504, {}, ServerError),
        (301, "", NotFoundError),
    ],
)
def test_kinds(status: int, body: Any, expected: type[RequestError]) -> None:
    assert type(error(status, body)) is expected


def test_quota_and_rate_limit_are_told_apart() -> None:
    used_up = error(429, {"error": {"type": "insufficient_quota", "message": "x"}})
    assert (type(used_up), used_up.retryable) == (RateLimitError, False)
    assert "billing" in str(used_up)
    assert error(429, {"error": {"type": "tokens", "message": "x"}}, {"retry-after": "2"}).retry_after == 2.0


def test_a_404_names_what_was_asked() -> None:
    said = str(error(404, {"error": "no"}, url="http://me:secret@host:8000/v1?key=secret", model="m"))
    assert "'m'" in said
    assert "http://host:8000" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("Incorrect API key provided: sk-proj-abcdef123456.", ()),
        ("Incorrect API key provided: sk-abc***********wxyz.", ()),
        ("Authorization: Bearer abc.def-123456 refused", ()),
        ("key mysecretkey0123 is unknown", ("mysecretkey0123",)),
        ("key mysecret… is unknown, mysecretkey01", ("mysecretkey0123",)),
        ("key abc123 is unknown", ("abc123",)),
        ("at https://user:abc123@host/v1", ()),
        ("at https://host/v1/models?api-key=abc123&x=1", ()),
        ("gsk_abcdef123456 AIzaSyA0123456789abcdefghijklmnopqrstuvw", ()),
    ],
)
def test_redaction(text: str, secrets: tuple[str, ...]) -> None:
    redacted = redact(text, *secrets, None, "")
    for part in ("abcdef123456", "wxyz", "def-123456", "mysecret", "abc123", "AIzaSy"):
        assert part not in redacted
    assert "[redacted]" in redacted


def test_redaction_leaves_words_alone() -> None:
    text = "The task-force asked for a risk-free answer about keys in the sky"
    assert redact(text, "key", "a-longer-secret-key") == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a:b@host/v1?k=s", "https://host"),
        ("http://[::1]:80/v1", "http://[::1]:80"),
        ("http://host:99999999/", "?"),
    ],
)
def test_origin(url: str, shown: str) -> None:
    assert origin(url) == shown


def test_secret_values() -> None:
    named = {
        "Authorization": "Bearer abc",
        "X-Api-Key": "k1",
        "OPENAI_API_KEY": "k2",
        "KEYBOARD": "us",
        "TOKENIZERS": "no",
    }
    assert secret_values(named) == ["Bearer abc", "abc", "k1", "k2"]
