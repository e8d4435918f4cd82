"""What is the native transport's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    InputError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)
from infermesh.simulator import Simulator, SimulatorSettings
from infermesh.transports import NativeTransport
from infermesh.types import Audio, Reply, Request
from infermesh.wire import answers
from infermesh.wire import requests as wire
from infermesh.wire.vectors import parse_embeddings

from .conftest import KEY, Loopback, serving


def chat(prompt: str = "hi") -> Request:
    return wire.generation_request("chat_completion", prompt, {})


@pytest.fixture
async def transport(loopback: Loopback) -> AsyncIterator[NativeTransport]:
    made = NativeTransport(label="gpu-0", model="m", api_base=loopback.url() + "/?api-version=1", headers={"X-A": "b"})
    yield made
    await made.aclose()


async def test_headers_and_query(transport: NativeTransport, loopback: Loopback) -> None:
    await transport.send(chat(), None)
    sent = loopback.headers[0]
    assert sent["user-agent"].startswith("infermesh/")
    assert (sent["content-type"], sent["x-a"]) == ("application/json", "b")
    assert "authorization" not in sent


async def test_form_fields(transport: NativeTransport, loopback: Loopback) -> None:
    params = {"temperature": 0.5, "timestamp_granularities": ["word", "segment"], "prompt": "é", "flag": True}
    await transport.send(wire.transcription_request(Audio(b"fLaC", 'a "b".flac'), params), 5.0)
    sent = loopback.requests[0]
    assert (sent["temperature"], sent["prompt"], sent["flag"]) == ("0.5", "é", "true")
    assert "timestamp_granularities[]" in sent
    assert sent["file"]["data"] == b"fLaC"


async def test_a_cancelled_request_spares_the_others(loopback: Loopback) -> None:
    transport = NativeTransport(label="a", model="m", api_base=loopback.url("hang"))
    kept, dropped = (asyncio.create_task(transport.send(chat(), 30.0)) for _ in range(2))
    while loopback.open_requests < 2:
        loopback.arrived.clear()
        await asyncio.wait_for(loopback.arrived.wait(), 5.0)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropped
    with pytest.raises(RequestTimeoutError):
        await transport.send(chat(), 0.1)
    assert not kept.done()
    await transport.aclose()
    with pytest.raises(APIConnectionError, match="closed"):
        await kept
    await asyncio.wait_for(loopback.gone.wait(), 5.0)


async def test_a_gateway_that_wraps_its_upstreams_error(loopback: Loopback) -> None:
    transport = NativeTransport(label="a", model="m", api_base=loopback.url("error200-429"), api_key=KEY)
    with pytest.raises(RateLimitError) as caught:
        await transport.send(chat(), 5.0)
    assert caught.value.status_code == 429
    assert KEY not in str(caught.value)
    await transport.aclose()


REQUESTS = {
    "chat_completion": chat(),
    "responses": wire.generation_request("responses", "hi", {}),
    "embedding": wire.embedding_request(["a"], {}),
    "transcription": wire.transcription_request(Audio(b"RIFF", "a.wav"), {}),
}
TOO_LONG = "This model's maximum context length is 8192 tokens."


@pytest.mark.parametrize(
    ("operation", "body", "expected", "status"),
    [
        ("chat_completion", {"error": {"code": "context_length_exceeded", "message": "no"}}, ContextLengthError, 400),
        ("chat_completion", {"error": TOO_LONG}, ContextLengthError, 400),
        ("chat_completion", {"error": {"code": "400", "message": TOO_LONG}}, ContextLengthError, 400),
        ("chat_completion", {"error": {"code": "429", "message": "no"}}, RateLimitError, 429),
        ("chat_completion", {"error": {"type": "invalid_api_key", "message": "no"}}, AuthenticationError, 401),
        ("chat_completion", {"error": {"code": "model_not_found", "message": "no"}}, NotFoundError, 404),
        ("chat_completion", {"error": {"type": "overloaded_error", "message": "no"}}, ServerError, 503),
        ("chat_completion", {"error": {"type": "invalid_request_error", "message": "no"}}, BadRequestError, 400),
        ("chat_completion", {"error": {"message": "no"}}, ServerError, 502),
        ("chat_completion", {"object": "error", "message": TOO_LONG, "code": 400}, ContextLengthError, 400),
        ("embedding", {"detail": TOO_LONG}, ContextLengthError, 400),
        ("transcription", {"message": "Too many requests"}, RateLimitError, 429),
        ("responses", {"error": {"code": "rate_limit_exceeded", "message": "no"}}, RateLimitError, 429),
    ],
)
async def test_an_error_in_a_success_is_what_it_is_elsewhere(
    operation: str, body: dict[str, Any], expected: type[RequestError], status: int
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(body)

    async with serving(answer) as base:
        transport = NativeTransport(label="a", model="m", api_base=base)
        with pytest.raises(expected) as caught:
            await transport.send(REQUESTS[operation], 5.0)
        await transport.aclose()
    assert (type(caught.value), caught.value.status_code) == (expected, status)
    assert "a: HTTP 200 with an error in place of an answer" in str(caught.value)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("asked", "kind", "body"),
    [
        ("text", "application/json", b'{"text": "hello"}'),
        ("text", "application/json", b'"hello"'),
        ("text", "text/plain", BOM + b"hello\n"),
        ("srt", "application/json", b'{"text": "hello"}'),
        (None, "text/plain; charset=utf-8", b"hello\n"),
        (None, "application/json", b'"hello"'),
        (None, "application/json", BOM + b'{"text": "hello"}'),
        (None, "application/json", b'{"segments": [{"text": " hel"}, {"text": "lo"}]}'),
        (None, "application/json", b'{"result": {"text": "hello"}, "success": true}'),
    ],
)
async def test_a_transcript_in_whatever_dress(asked: str | None, kind: str, body: bytes) -> None:
    result = answers.parse_transcription(await _transcribed(asked, kind, body))
    assert result.text == "hello"


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html", b"<html></html>"), ("text/plain", b""), ("application/json", b"[1]")]
)
async def test_what_is_no_transcript(kind: str, body: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        await _transcribed(None, kind, body)


async def _transcribed(asked: str | None, kind: str, body: bytes) -> Reply:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"content-type": kind})

    async with serving(answer) as base:
        transport = NativeTransport(label="a", model="m", api_base=base)
        try:
            params = {} if asked is None else {"response_format": asked}
            return await transport.send(wire.transcription_request(Audio(b"RIFF", "a.wav"), params), 5.0)
        finally:
            await transport.aclose()


async def test_a_byte_order_mark_before_any_answer() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=BOM + b'{"choices": []}', content_type="application/json")

    async with serving(answer) as base:
        transport = NativeTransport(label="a", model="m", api_base=base)
        reply = await transport.send(chat(), 5.0)
        await transport.aclose()
    assert (reply.body, reply.data) == ({"choices": []}, b'{"choices": []}')


@pytest.mark.parametrize(
    ("headers", "usage", "cost"),
    [
        ({"x-litellm-response-cost": "8.7e-05"}, {"prompt_tokens": 9, "completion_tokens": 2}, 8.7e-05),
        ({"x-litellm-response-cost": "8.7e-05"}, {"prompt_tokens": 9, "completion_tokens": 2, "cost": 0.5}, 0.5),
        ({"x-litellm-response-cost": "None"}, {"prompt_tokens": 9, "completion_tokens": 2}, None),
        ({"x-litellm-response-cost": "8.7e-05"}, None, None),
        ({}, {"prompt_tokens": 9, "completion_tokens": 2}, None),
    ],
)
async def test_the_cost_that_litellms_proxy_tells(
    headers: dict[str, str], usage: dict[str, Any] | None, cost: float | None
) -> None:
    async def answer(request: web.Request) -> web.Response:
        choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": usage}, headers=headers)

    async with serving(answer) as base:
        transport = NativeTransport(label="a", model="m", api_base=base)
        for _ in range(2):
            result = answers.parse_generation("chat_completion", await transport.send(chat(), 5.0))
            told = None if result.token_usage is None else result.token_usage.details
            assert (told or {}).get("reported_cost") == cost
        await transport.aclose()


async def test_a_key_that_is_no_header() -> None:
    transport = NativeTransport(label="a", model="m", api_base="http://127.0.0.1:1/v1", api_key="sk-öff\nline")
    with pytest.raises(InputError, match=r"the key.* one line") as caught:
        await transport.send(chat(), 1.0)
    assert "sk-" not in str(caught.value)


async def test_names_that_do_not_resolve() -> None:
    transport = NativeTransport(label="a", model="m", api_base="http://nowhere.invalid/v1")
    with pytest.raises(APIConnectionError, match=r"nowhere\.invalid.*resolved"):
        await transport.send(chat(), 5.0)
    await transport.aclose()


async def test_tls_to_a_plain_server(loopback: Loopback) -> None:
    transport = NativeTransport(label="a", model="m", api_base=loopback.url().replace("http:", "https:"))
    with pytest.raises(APIConnectionError, match="http://"):
        await transport.send(chat(), 5.0)
    await transport.aclose()


async def test_against_the_simulator() -> None:
    with Simulator(SimulatorSettings(reasoning_tokens=4)) as simulator:
        transport = NativeTransport(label="a", model="m", api_base=simulator.url)
        replies = await asyncio.gather(*(transport.send(chat(f"Say {i}."), 20.0) for i in range(50)))
        results = [answers.parse_generation("chat_completion", reply) for reply in replies]
        assert all(r.output_text and r.reasoning and r.token_usage and r.finish_reason == "stop" for r in results)
        request = wire.generation_request("responses", "Say it.", {})
        assert answers.parse_generation("responses", await transport.send(request, 20.0)).output_text
        embedding = await transport.send(wire.embedding_request(["a", "b"], {"encoding_format": "base64"}), 20.0)
        assert [len(r.embedding) for r in parse_embeddings(embedding, 2)] == [64, 64]
        await transport.aclose()
