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
from infermesh.errors import BadRequestError
from infermesh.results import RequestMetrics
from infermesh.transports import make_transport
from infermesh.types import Audio, Request, Transport

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


VERBOSE_REFUSED = [
    "Currently only support response_format `text` or `json`",
    "response_format 'verbose_json' is not compatible with model 'mine'. Use 'json' or 'text' instead.",
]


@pytest.mark.parametrize("said", VERBOSE_REFUSED)
async def test_the_form_of_transcripts_is_learned(said: str) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return (
            (400, {"error": {"message": said}}) if body["response_format"] == "verbose_json" else (200, {"text": "t"})
        )

    async with server(answer) as (base, seen):
        transport = make_transport(DeploymentConfig("hosted_vllm/whisper", base), label="d")
        for _ in range(3):
            assert (await sent(transport, clip()))[0] == {"text": "t"}
        assert [body["response_format"] for body in seen] == ["verbose_json", "json", "json", "json"]
        for chosen in ({"response_format": "verbose_json"}, {"timestamp_granularities": ["word"]}):
            with pytest.raises(BadRequestError):  # what somebody asked for is not replaced in silence
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
