"""What a deployment takes under another name, known or learned, over a real loopback server."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from infermesh.config.deployment import DeploymentConfig
from infermesh.dispatch import Deployment, Router
from infermesh.dispatch.dispatcher import Dispatcher
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import BadRequestError, MalformedResponseError, RequestError
from infermesh.results import RequestMetrics
from infermesh.transports import make_transport
from infermesh.types import Audio, Request, Transport
from infermesh.wire.requests import embedding_request
from infermesh.wire.vectors import parse_embeddings

from .conftest import serving

Answer = tuple[int, dict[str, Any]]
OK = {"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}


@asynccontextmanager
async def server(answer: Callable[[dict[str, Any]], Answer]) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers by what a request has in it; gives its base URL and the requests."""
    seen: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        if request.content_type == "application/json":
            body = await request.json()
        else:
            body = {name: str(value) for name, value in (await request.post()).items() if name != "file"}
        seen.append(body)
        status, content = answer(body)
        return web.Response(status=status, body=json.dumps(content), content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", seen
    finally:
        await runner.cleanup()


def chat() -> Request:
    return Request("chat_completion", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64})


def clip(**fields: Any) -> Request:
    return Request("transcription", fields, Audio(b"RIFF", "a.wav"))


async def sent(transport: Transport, request: Request) -> tuple[dict[str, Any], RequestMetrics]:
    """Send through a dispatcher that never retries."""
    dispatcher = Dispatcher(Router([Deployment("d", transport)]), RetryPolicy(max_retries=0))
    return await dispatcher.send(request, lambda reply: (reply.body, None), 10.0)


@pytest.mark.parametrize("kind", ["native", "litellm"])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/o1", "max_completion_tokens"),
        ("openai/o3-mini-2025-01-31", "max_completion_tokens"),
        ("openai/ft:o4-mini-2025-04-16:org::id", "max_completion_tokens"),
        ("openai/gpt-5", "max_completion_tokens"),
        ("openai/gpt-5.1-mini", "max_completion_tokens"),
        ("openai/gpt-4.1-mini", "max_tokens"),
        ("openai/gpt-4o", "max_tokens"),
        ("hosted_vllm/o3-mini", "max_tokens"),
        ("hosted_vllm/openai/gpt-oss-20b", "max_tokens"),
    ],
)
async def test_the_limit_arrives_under_the_models_name_for_it(kind: str, model: str, name: str) -> None:
    async with server(lambda body: (200, OK)) as (base, seen):
        transport = make_transport(DeploymentConfig(model, base, api_key="k", transport=kind), label="d")
        await transport.send(chat(), 10.0)
        await transport.aclose()
    assert {key: value for key, value in seen[0].items() if key.startswith("max_")} == {name: 64}


async def test_another_name_is_learned_once_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            return 400, {"error": {"message": said + "instead.", "code": "unsupported_parameter"}}
        return 200, OK

    async with server(answer) as (base, seen):
        transport = make_transport(DeploymentConfig("azure_like/mine", base), label="d")
        with caplog.at_level(logging.WARNING, "infermesh"):
            attempts = [len((await sent(transport, chat()))[1].attempts) for _ in range(3)]
        await transport.aclose()
    assert attempts == [2, 1, 1]  # what is sent is told, and costs no retry: there are none
    assert len(seen) == 4
    assert seen[-1]["max_completion_tokens"] == 64
    assert [record.message for record in caplog.records] == [
        "d: it takes max_completion_tokens in place of max_tokens, and gets it from now on"
    ]


OLD, NEW = "max_tokens", "max_completion_tokens"


@pytest.mark.parametrize(
    ("sent_as", "taken_as", "status", "said"),
    [
        (OLD, NEW, 400, "max_tokens is not supported with this model. Use max_completion_tokens instead."),
        (OLD, NEW, 400, "`max_tokens` is not supported for this model, please use `max_completion_tokens`"),
        (OLD, NEW, 400, "Unsupported parameter: 'max_tokens'"),
        (NEW, OLD, 400, "Unrecognized request argument supplied: max_completion_tokens"),
        (NEW, OLD, 422, "body.max_completion_tokens: Extra inputs are not permitted"),
    ],
)
async def test_the_limits_other_name_is_learned(sent_as: str, taken_as: str, status: int, said: str) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return (status, {"message": said}) if sent_as in body else (200, OK)

    request = Request("chat_completion", {"messages": [{"role": "user", "content": "hi"}], sent_as: 64})
    async with server(answer) as (base, seen):
        transport = make_transport(DeploymentConfig("azure_like/mine", base), label="d")
        for _ in range(2):
            await sent(transport, request)
        await transport.aclose()
    assert [sorted(body.keys() & {OLD, NEW}) for body in seen] == [[sent_as], [taken_as], [taken_as]]


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens must be at most 4096",
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "temperature is not supported with this model, use a default",
    ],
)
async def test_a_limit_that_is_too_large_teaches_nothing(said: str) -> None:
    async with server(lambda body: (400, {"message": said})) as (base, seen):
        transport = make_transport(DeploymentConfig("azure_like/mine", base), label="d")
        with pytest.raises(BadRequestError):
            await sent(transport, chat())
        await transport.aclose()
    assert len(seen) == 1


async def test_a_server_that_takes_neither_name_is_asked_twice() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return 400, {"message": f"Unrecognized request argument supplied: {OLD if OLD in body else NEW}"}

    async with server(answer) as (base, seen):
        transport = make_transport(DeploymentConfig("azure_like/mine", base), label="d")
        with pytest.raises(BadRequestError):
            await sent(transport, chat())
        await transport.aclose()
    assert len(seen) == 2


async def test_a_server_that_streams_is_told_once_not_to(caplog: pytest.LogCaptureFixture) -> None:
    done = {"id": "r", "object": "response", "status": "completed", "output": []}

    async def answer(request: web.Request) -> web.Response:
        streams = (await request.json()).get("stream", True)
        seen.append(streams)
        text = 'event: response.created\ndata: {"type": "response.created"}\n\n' if streams else json.dumps(done)
        return web.Response(text=text, content_type="text/event-stream" if streams else "application/json")

    seen: list[bool] = []
    async with serving(answer) as base:
        transport = make_transport(DeploymentConfig("hosted_vllm/m", base), label="d")
        with caplog.at_level(logging.WARNING, "infermesh"):
            for _ in range(2):
                assert (await sent(transport, Request("responses", {"input": "hi"})))[0] == done
        with pytest.raises(MalformedResponseError, match="a stream of events"):
            await sent(transport, Request("responses", {"input": "hi", "stream": True}))
        await transport.aclose()
    assert seen == [True, False, False, True]
    assert [record.message for record in caplog.records] == [
        "d: it streams unless told not to, and gets stream=false from now on"
    ]


VERBOSE_REFUSED = [
    (400, "Currently only support response_format `text` or `json`"),
    (400, "response_format 'verbose_json' is not compatible with model 'mine'. Use 'json' or 'text' instead."),
    (400, "timestamps are not supported by this model"),
    (422, [{"loc": ["body", "response_format"], "msg": "Input should be 'json' or 'text'", "input": "verbose_json"}]),
    (404, "response_format verbose_json not found"),
    (500, "Unsupported response_format: verbose_json"),
    (501, "response_format verbose_json is not implemented"),
    (200, "Currently do not support verbose_json for this model"),
]


@pytest.mark.parametrize(("status", "said"), VERBOSE_REFUSED)
async def test_the_form_of_transcripts_is_learned(status: int, said: Any) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return (status, {"detail": said}) if body["response_format"] == "verbose_json" else (200, {"text": "t"})

    async with server(answer) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/whisper", base), label="d")
        for _ in range(3):
            assert (await sent(transport, clip()))[0] == {"text": "t"}
        assert [body["response_format"] for body in seen] == ["verbose_json", "json", "json", "json"]
        for chosen in ({"response_format": "verbose_json"}, {"timestamp_granularities": ["word"]}):
            with pytest.raises(RequestError):  # what somebody asked for is not replaced in silence
                await sent(transport, clip(**chosen))
        await transport.aclose()


async def test_another_refusal_teaches_nothing() -> None:
    async with server(lambda body: (400, {"error": {"message": "the clip is empty"}})) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/whisper", base), label="d")
        with pytest.raises(BadRequestError):
            await sent(transport, clip())
        await transport.aclose()
    assert len(seen) == 1


@pytest.mark.parametrize(("model", "form"), [("whisper-1", "verbose_json"), ("gpt-4o-mini-transcribe", "json")])
async def test_the_form_that_openais_models_take_is_known(model: str, form: str) -> None:
    async with server(lambda body: (200, {"text": "t"})) as (base, seen):
        transport = make_transport(DeploymentConfig(f"openai/{model}", base, api_key="k"), label="d")
        await transport.send(clip(), 10.0)
        await transport.aclose()
    assert [body["response_format"] for body in seen] == [form]


NUMBERS = {"data": [{"index": 0, "embedding": [0.5, 1.5]}]}
PACKED = {"data": [{"index": 0, "embedding": "AAAAPwAAwD8="}]}
BASE64_REFUSED = [
    (400, "'encoding_format' is not supported by this model"),
    (422, [{"loc": ["body", "encoding_format"], "msg": "Extra inputs are not permitted", "input": "base64"}]),
    (400, "Setting {'encoding_format': 'base64'} is not supported by cohere"),
    (500, "base64 embeddings are not implemented"),
]


def vectors(**params: Any) -> Request:
    return embedding_request(["a"], params)


async def test_embeddings_are_asked_for_in_base64() -> None:
    async with server(lambda body: (200, PACKED if "encoding_format" in body else NUMBERS)) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/e5", base), label="d")
        (result,) = parse_embeddings(await transport.send(vectors(dimensions=2), 10.0), 1)
        await transport.aclose()
    assert seen == [{"model": "e5", "input": ["a"], "dimensions": 2, "encoding_format": "base64"}]
    assert result.embedding == [0.5, 1.5]


async def test_a_server_that_knows_no_base64_answers_with_numbers() -> None:
    async with server(lambda body: (200, NUMBERS)) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/e5", base), label="d")
        (result,) = parse_embeddings(await transport.send(vectors(), 10.0), 1)
        await transport.aclose()
    assert (result.embedding, len(seen)) == ([0.5, 1.5], 1)


@pytest.mark.parametrize(("status", "said"), BASE64_REFUSED)
async def test_a_server_that_refuses_base64_is_asked_for_numbers(
    status: int, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return (status, {"detail": said}) if body.get("encoding_format") == "base64" else (200, NUMBERS)

    async with server(answer) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/e5", base), label="d")
        with caplog.at_level(logging.WARNING, "infermesh"):
            for _ in range(3):
                assert (await sent(transport, vectors()))[0] == NUMBERS
        assert [body.get("encoding_format") for body in seen] == ["base64", None, None, None]
        with pytest.raises(RequestError):  # what somebody asked for is not replaced in silence
            await sent(transport, vectors(encoding_format="base64"))
        await transport.aclose()
    assert [record.message for record in caplog.records] == [
        "d: it does not take encoding_format=base64, and is asked for numbers from now on"
    ]


async def test_a_refusal_of_the_text_leaves_base64() -> None:
    async with server(lambda body: (400, {"error": {"message": "the input is too long"}})) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/e5", base), label="d")
        for _ in range(2):
            with pytest.raises(BadRequestError):
                await sent(transport, vectors())
        await transport.aclose()
    assert [body.get("encoding_format") for body in seen] == ["base64", "base64"]
