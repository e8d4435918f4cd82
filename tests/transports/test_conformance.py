"""Both transports against one server: equal results, equal errors, over TLS and through a proxy too.

What LiteLLM cannot do alike is marked below.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    InputError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)
from infermesh.results import TokenUsage, ToolCall
from infermesh.transports import NativeTransport, make_transport
from infermesh.transports.litellm import import_litellm
from infermesh.types import Audio, Request, Transport
from infermesh.wire import answers
from infermesh.wire import requests as wire
from infermesh.wire.structured import ResponseFormat
from infermesh.wire.vectors import parse_embeddings

from .conftest import KEY, Authority, Loopback, serving
from .proxy import HttpProxy

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]

# Over TLS; through a proxy that forwards; through a tunnel that it gives, over TLS.
NATIVE = ("native", "native-tls", "native-proxy", "native-tunnel")
KINDS = (*NATIVE, "litellm-vllm", "litellm-openai")
SECURE = ("native-tls", "native-tunnel", "litellm-vllm", "litellm-openai")
Make = Callable[..., Transport]


@pytest.fixture(scope="module", autouse=True)
def _litellm_is_imported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_litellm()


@pytest.fixture
async def proxy() -> AsyncIterator[HttpProxy]:
    async with HttpProxy().serving() as serving:
        yield serving


@pytest.fixture
async def make(
    loopback: Loopback, proxy: HttpProxy, trusted: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    made: list[Transport] = []

    def build(kind: str, base: str, operation: str = "", **config: Any) -> Transport:
        if kind in ("native-proxy", "native-tunnel"):
            monkeypatch.setenv("all_proxy", f"http://{proxy.address}")
        if kind in ("native-tls", "native-tunnel"):
            base = base.replace("http://", "https://").replace(str(loopback.port), str(loopback.tls_port))
        prefix = "openai" if kind == "litellm-openai" else "hosted_vllm"
        transport: Any = kind.partition("-")[0]
        deployment = DeploymentConfig(f"{prefix}/m", base, KEY, transport=transport, **config)
        made.append(one := make_transport(deployment, label="gpu-0", environ={"TEAM": "provided"}))
        return one

    yield build
    for transport in made:
        await transport.aclose()


def chat(**params: Any) -> Request:
    return wire.generation_request("chat_completion", "hi", {"temperature": 0.1, **params})


CLIP = Audio(b"RIFF\0\0\0\0WAVEfmt ", "clip.wav")
REQUESTS: dict[str, Callable[[], Request]] = {
    "chat": chat,
    "text": lambda: wire.generation_request("text_completion", "hi", {"max_tokens": 5}),
    "responses": lambda: wire.generation_request("responses", "hi", {"max_tokens": 50}),
    "embedding": lambda: wire.embedding_request(["one", "two"], {}),
    "transcription": lambda: wire.transcription_request(CLIP, {}),
}


def parse(request: Request, reply: Any) -> Any:
    if request.operation == "embedding":
        return parse_embeddings(reply, 2)
    if request.operation == "transcription":
        return answers.parse_transcription(reply)
    return answers.parse_generation(request.operation, reply)


async def result_of(transport: Transport, request: Request) -> Any:
    result = parse(request, await transport.send(request, 10.0))
    for one in result if isinstance(result, list) else [result]:
        one.raw_body = None  # LiteLLM's is its own reading
    return result


async def error_of(transport: Transport, request: Request, timeout: float = 10.0) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(request, await transport.send(request, timeout))
    return caught.value


USAGE = TokenUsage(12, 5, 17, reasoning_tokens=3, cached_tokens=8)


@pytest.mark.parametrize("kind", KINDS)
class TestAnswers:
    async def test_chat(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url()), chat(max_tokens=9, top_k=3))
        assert result.output_text == str(result) == "Hello there."
        assert (result.finish_reason, result.request_id, result.model_id) == ("stop", "chatcmpl-7", "m")
        assert result.token_usage == USAGE
        assert (result.tool_calls, result.reasoning, result.output_parsed) == (None, None, None)
        assert loopback.requests == [
            {
                "model": "m",
                "messages": [{"role": "user", "content": "hi"}],
                "temperature": 0.1,
                "max_tokens": 9,
                "top_k": 3,
            }
        ]
        assert loopback.headers[0]["authorization"] == f"Bearer {KEY}"

    async def test_text_completion(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url()), REQUESTS["text"]())
        assert (result.output_text, result.finish_reason, result.request_id) == (" and so on", "length", "cmpl-7")
        assert result.token_usage == USAGE
        assert loopback.requests == [{"model": "m", "prompt": "hi", "max_tokens": 5}]

    async def test_responses(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url(), "responses"), REQUESTS["responses"]())
        assert (result.output_text, result.finish_reason, result.reasoning) == ("Hello there.", "stop", "I think.")
        assert (result.request_id, result.model_id) == ("resp_7", "m")
        assert result.token_usage == USAGE
        assert loopback.requests == [{"model": "m", "input": "hi", "max_output_tokens": 50}]

    async def test_responses_cut_short(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url("length"), "responses"), REQUESTS["responses"]())
        assert result.finish_reason == "length"

    async def test_responses_tools(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url("tools"), "responses"), REQUESTS["responses"]())
        assert result.tool_calls == [ToolCall("call_1", "weather", '{"city": "Oslo"}')]
        assert (result.output_text, result.finish_reason) == ("", "tool_calls")

    async def test_embeddings_follow_the_index(self, kind: str, make: Make, loopback: Loopback) -> None:
        results = await result_of(make(kind, loopback.url()), REQUESTS["embedding"]())
        assert [r.embedding for r in results] == [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]]
        assert [r.token_usage for r in results] == [TokenUsage(5, 0, 5), TokenUsage(5, 0, 5)]
        assert loopback.requests[0]["input"] == ["one", "two"]

    async def test_base64_embeddings(self, kind: str, make: Make, loopback: Loopback) -> None:
        request = wire.embedding_request(["one", "two"], {"encoding_format": "base64"})
        results = await result_of(make(kind, loopback.url()), request)
        assert [r.embedding for r in results] == [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]]

    async def test_transcription(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url()), REQUESTS["transcription"]())
        assert (result.text, result.language, result.duration_s) == ("Good morning.", "en", 2.5)
        sent = loopback.requests[0]
        assert sent["file"] == {"filename": "clip.wav", "data": CLIP.data}
        assert (sent["model"], sent["response_format"]) == ("m", "verbose_json")

    async def test_transcription_as_text(self, kind: str, make: Make, loopback: Loopback) -> None:
        request = wire.transcription_request(CLIP, {"response_format": "text"})
        result = await result_of(make(kind, loopback.url()), request)
        # LiteLLM keeps the line break.
        assert result.text == ("Good morning." if kind.startswith("native") else result.text.strip() + "\n")

    async def test_structured_output(self, kind: str, make: Make, loopback: Loopback) -> None:
        schema = {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "confidence": {"type": "number"}},
            "required": ["value", "confidence"],
            "additionalProperties": False,
        }
        form = ResponseFormat.of(schema)
        result = await result_of(make(kind, loopback.url("json")), chat(response_format=form.wire))
        assert form.parse(result.output_text) == {"value": 4, "confidence": 0.5}
        assert loopback.requests[0]["response_format"] == form.wire

    async def test_tool_calls(self, kind: str, make: Make, loopback: Loopback) -> None:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        result = await result_of(make(kind, loopback.url("tools")), chat(tools=tools))
        assert result.tool_calls == [
            ToolCall("call_1", "weather", '{"city": "Oslo"}'),
            ToolCall("call_2", "weather", '{"city": "Rome"}'),
        ]
        assert (result.output_text, result.finish_reason) == ("", "tool_calls")
        assert loopback.requests[0]["tools"] == tools

    async def test_reasoning(self, kind: str, make: Make, loopback: Loopback) -> None:
        result = await result_of(make(kind, loopback.url("reasoning")), chat())
        assert (result.output_text, result.reasoning) == ("42", "six times seven")

    async def test_a_filtered_answer(self, kind: str, make: Make, loopback: Loopback) -> None:
        assert type(await error_of(make(kind, loopback.url("filtered")), chat())) is ContentFilterError

    async def test_limit_headers_come_back(self, kind: str, make: Make, loopback: Loopback) -> None:
        reply = await make(kind, loopback.url()).send(chat(), 10.0)
        assert reply.header("X-RateLimit-Remaining-Requests") == "41"
        assert reply.header("x-absent") is None

    async def test_configured_headers_are_sent(self, kind: str, make: Make, loopback: Loopback) -> None:
        headers = {"X-Team": "blue", "X-Other": {"env": "TEAM"}}
        await make(kind, loopback.url(), headers=headers).send(chat(), 10.0)
        assert loopback.headers[0]["x-team"] == "blue"
        assert loopback.headers[0]["x-other"] == "provided"

    async def test_a_header_from_a_variable_is_shown_in_no_message(
        self, kind: str, make: Make, loopback: Loopback
    ) -> None:
        error = await error_of(make(kind, loopback.url("401"), headers={"X-Other": {"env": "TEAM"}}), chat())
        assert "Your key was [redacted]" in str(error)


STATUSES: list[tuple[str, int, type[RequestError], bool]] = [
    ("400", 400, BadRequestError, False),
    ("401", 401, AuthenticationError, False),
    ("402", 402, PermissionDeniedError, False),
    ("403", 403, PermissionDeniedError, False),
    ("404", 404, NotFoundError, False),
    ("405", 405, NotFoundError, False),
    ("408", 408, RequestTimeoutError, True),
    ("409", 409, BadRequestError, True),
    ("413", 413, BadRequestError, False),
    ("422", 422, BadRequestError, False),
    ("429", 429, RateLimitError, True),
    ("429-quota", 429, RateLimitError, False),
    ("500", 500, ServerError, True),
    ("502", 502, ServerError, True),
    ("503", 503, ServerError, True),
    ("503-html", 503, ServerError, True),
    ("529", 529, ServerError, True),
    ("400-context", 400, ContextLengthError, False),
    ("400-context-code", 400, ContextLengthError, False),
    ("400-filter", 400, ContentFilterError, False),
]


@pytest.mark.parametrize("kind", KINDS)
class TestFailures:
    @pytest.mark.parametrize(("behaviour", "status", "expected", "retryable"), STATUSES)
    async def test_status(
        self,
        kind: str,
        behaviour: str,
        status: int,
        expected: type[RequestError],
        retryable: bool,
        make: Make,
        loopback: Loopback,
    ) -> None:
        error = await error_of(make(kind, loopback.url(behaviour)), chat())
        assert (type(error), error.status_code, error.retryable) == (expected, status, retryable)
        assert error.retry_after == (7.0 if status == 429 else None)
        assert (error.deployment, error.request_id) == ("gpu-0", "req-err")
        assert str(error).startswith(f"gpu-0: HTTP {status}: ")
        assert len(loopback.requests) == 1
        assert KEY not in str(error)
        assert "hunter2" not in str(error)
        assert (type(back := pickle.loads(pickle.dumps(error))), vars(back)) == (type(error), vars(error))

    @pytest.mark.parametrize("operation", ["text", "responses", "embedding", "transcription"])
    @pytest.mark.parametrize(("behaviour", "expected"), [("429", RateLimitError), ("503", ServerError)])
    async def test_every_endpoint(
        self, kind: str, operation: str, behaviour: str, expected: type[RequestError], make: Make, loopback: Loopback
    ) -> None:
        error = await error_of(make(kind, loopback.url(behaviour), operation), REQUESTS[operation]())
        assert (type(error), error.status_code) == (expected, int(behaviour))
        assert len(loopback.requests) == 1
        assert KEY not in str(error)

    async def test_the_messages_are_equal(self, kind: str, make: Make, loopback: Loopback) -> None:
        for behaviour in ("400", "404", "429", "503-html", "400-context"):
            base = loopback.url(behaviour)
            error = await error_of(make(kind, base), chat())
            native = await error_of(make("native", base), chat())
            said = str(error).replace("openai/m", "m").replace("hosted_vllm/m", "m")
            secure, plain = (url.partition("/ok")[0] for url in (loopback.secure_url(), loopback.url()))
            assert said.replace(secure, plain) == str(native)

    @pytest.mark.parametrize("operation", list(REQUESTS))
    @pytest.mark.parametrize("behaviour", ["badjson", "notjson", "list", "shape"])
    async def test_malformed(self, kind: str, behaviour: str, operation: str, make: Make, loopback: Loopback) -> None:
        error = await error_of(make(kind, loopback.url(behaviour), operation), REQUESTS[operation]())
        assert (type(error), error.status_code, error.retryable) == (MalformedResponseError, 200, True)

    async def test_an_error_that_calls_itself_a_success(self, kind: str, make: Make, loopback: Loopback) -> None:
        error = await error_of(make(kind, loopback.url("error200")), chat())
        if kind.startswith("native"):  # LiteLLM makes up a status
            assert (type(error), error.status_code) == (ServerError, 502)
            assert "HTTP 200 with an error in place of an answer" in str(error)
        assert KEY not in str(error)
        assert "hunter2" not in str(error)

    @pytest.mark.parametrize("operation", list(REQUESTS))
    @pytest.mark.parametrize("behaviour", ["drop", "truncate"])
    async def test_broken(self, kind: str, behaviour: str, operation: str, make: Make, loopback: Loopback) -> None:
        error = await error_of(make(kind, loopback.url(behaviour), operation), REQUESTS[operation]())
        assert (type(error), error.status_code, error.retryable) == (APIConnectionError, None, True)
        port = loopback.tls_port if kind in ("native-tls", "native-tunnel") else loopback.port
        assert f"127.0.0.1:{port}" in str(error)
        assert isinstance(error, APIConnectionError)
        assert error.connected

    async def test_refused(self, kind: str, make: Make) -> None:
        if kind == "native-proxy":
            pytest.skip("the proxy answers for the server, with a status")
        with socket.socket() as closed:  # bound, not listening
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            error = await error_of(make(kind, f"http://127.0.0.1:{port}/v1"), chat())
        assert (type(error), error.status_code, error.retryable) == (APIConnectionError, None, True)
        assert f"127.0.0.1:{port}" in str(error)
        assert "refused" in str(error).lower() or "connect" in str(error).lower()
        assert isinstance(error, APIConnectionError)
        assert not error.connected
        assert not pickle.loads(pickle.dumps(error)).connected

    @pytest.mark.parametrize("operation", list(REQUESTS))
    async def test_timeout(self, kind: str, operation: str, make: Make, loopback: Loopback) -> None:
        error = await error_of(make(kind, loopback.url("hang"), operation), REQUESTS[operation](), timeout=0.4)
        assert (type(error), error.status_code, error.retryable) == (RequestTimeoutError, None, True)
        assert "0.4 s" in str(error)
        assert "connect" not in str(error)
        await asyncio.wait_for(loopback.gone.wait(), 5.0)

    async def test_cancelled_requests_leave_no_connection(self, kind: str, make: Make, loopback: Loopback) -> None:
        transport = make(kind, loopback.url("hang"))
        tasks = [asyncio.create_task(transport.send(chat(), 60.0)) for _ in range(8)]
        while loopback.open_requests < len(tasks):
            loopback.arrived.clear()
            await asyncio.wait_for(loopback.arrived.wait(), 10.0)
        for task in tasks:
            task.cancel()
        assert all(isinstance(o, asyncio.CancelledError) for o in await asyncio.gather(*tasks, return_exceptions=True))
        await asyncio.wait_for(loopback.gone.wait(), 5.0)
        assert loopback.open_requests == 0

    async def test_closed(self, kind: str, make: Make, loopback: Loopback) -> None:
        transport = make(kind, loopback.url())
        await transport.send(chat(), 10.0)
        await transport.aclose()
        await transport.aclose()
        error = await error_of(transport, chat())
        assert (type(error), error.retryable) == (APIConnectionError, False)


@pytest.mark.parametrize("kind", SECURE)
class TestCertificates:
    async def test_one_that_is_right(self, kind: str, make: Make, loopback: Loopback, trusted: Authority) -> None:
        port = await loopback.listen(trusted.serving())
        assert (await result_of(make(kind, f"https://127.0.0.1:{port}/ok/v1"), chat())).output_text == "Hello there."

    @pytest.mark.parametrize("wrong", ["authority", "name", "date"])
    async def test_one_that_is_not(
        self, wrong: str, kind: str, make: Make, loopback: Loopback, trusted: Authority, tmp_path: Path
    ) -> None:
        authority = Authority(tmp_path) if wrong == "authority" else trusted
        names = ("elsewhere.example",) if wrong == "name" else ()
        port = await loopback.listen(authority.serving(*names, expired=wrong == "date"))
        error = await error_of(make(kind, f"https://127.0.0.1:{port}/ok/v1"), chat())
        assert (type(error), error.status_code) == (APIConnectionError, None)
        assert error.retryable is kind.startswith("litellm")  # which does not tell certificates apart
        assert "certificate" in str(error).lower()
        assert loopback.requests == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", list(REQUESTS))
async def test_redirects_are_told_and_not_followed(kind: str, operation: str, make: Make, loopback: Loopback) -> None:
    error = await error_of(make(kind, loopback.url("redirect"), operation), REQUESTS[operation]())
    assert (type(error), error.status_code) == (NotFoundError, 307)
    assert "it redirects to http://elsewhere.invalid/v1/chat/completions" in str(error)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("anthropic/claude-sonnet-4-5", ""),
        ("gemini/gemini-2.5-flash", ""),
        ("cohere_chat/command-r", ""),
        ("azure/mine", ""),
        ("xai/grok-3", "/v1"),
        ("aiohttp_openai/m", "/v1/chat/completions"),
    ],
)
async def test_no_key_goes_where_an_endpoint_redirects(model: str, path: str) -> None:
    """Another host (localhost for 127.0.0.1) that would get whatever header holds the key."""
    carried: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        carried.append(f"{request.raw_path} {dict(request.headers)}")
        return web.json_response({})

    async with serving(elsewhere) as there:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"location": there.replace("127.0.0.1", "localhost")})

        async with serving(redirect) as here:
            config = DeploymentConfig(model, here + path, KEY)
            transport = make_transport(config, label="d", environ={})
            options = {"api_version": "2024-10-21"} if model.startswith("azure") else {}
            error = await error_of(transport, chat(**options))
            await transport.aclose()
    assert carried == []
    if not model.startswith("aiohttp"):  # LiteLLM reads the redirect itself as an answer
        assert (type(error), error.status_code) == (NotFoundError, 307)
        assert f"it redirects to {there.replace('127.0.0.1', 'localhost')}" in str(error)


async def test_an_error_object_that_litellm_found_in_a_success() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

    async with serving(answer) as base:
        transport = make_transport(DeploymentConfig("anthropic/claude-sonnet-4-5", base, KEY), label="d", environ={})
        error = await error_of(transport, chat())
        await transport.aclose()
    assert (type(error), error.retryable) == (ServerError, True)


@pytest.mark.parametrize("by", ["ca_bundle", "a folder", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_an_authority_can_be_named_in_several_ways(
    by: str, loopback: Loopback, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await loopback.listen(authority.serving())
    base = f"https://127.0.0.1:{port}/ok/v1"
    bundle = None
    if by == "ca_bundle":
        bundle = str(authority.file)
    elif by == "a folder":
        hashing = ["openssl", "x509", "-hash", "-noout", "-in", str(authority.file)]
        hashed = await asyncio.to_thread(subprocess.run, hashing, check=True, capture_output=True, text=True)
        name = hashed.stdout.strip()
        (tmp_path / f"{name}.0").write_bytes(authority.file.read_bytes())  # the name by which OpenSSL looks it up
        bundle = str(tmp_path)
    else:
        monkeypatch.setenv(by, str(authority.file))
    transport = NativeTransport(label="d", model="m", api_base=base, ca_bundle=bundle)
    assert (await transport.send(chat(), 10.0)).status_code == 200
    await transport.aclose()


async def test_a_bundle_that_is_none_is_told_by_name(loopback: Loopback, tmp_path: Path) -> None:
    transport = NativeTransport(label="d", model="m", api_base="https://127.0.0.1:9/v1", ca_bundle=str(tmp_path / "no"))
    with pytest.raises(InputError, match=r"ca_bundle names .*no: No such file"):
        await transport.send(chat(), 10.0)
