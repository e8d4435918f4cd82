"""A loopback server that speaks the protocol, and breaks it on demand: the path's first segment says how."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from aiohttp import web

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop

KEY = "sk-loopback-0123456789abcdef"
SECRET_ECHO = f"Your key was {KEY}. Bearer {KEY} at http://user:hunter2@host/v1?api_key=hunter2"


class Authority:
    """A certificate authority of the tests' own, and servers' settings with its certificates."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def serving(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """The settings of a server with these names or addresses: 127.0.0.1 and localhost if none is given."""
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate = self._authority.issue_cert(*(names or ("127.0.0.1", "::1", "localhost")), not_after=until)
        certificate.configure_cert(context)
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The authority, which clients made from here on accept."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass
class Loopback:
    """The server's addresses, at http:// and https://, and what it has seen."""

    port: int = 0
    tls_port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open_requests: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    runner: web.AppRunner | None = None

    def url(self, behaviour: str = "ok") -> str:
        return f"http://127.0.0.1:{self.port}/{behaviour}/v1"

    def secure_url(self, behaviour: str = "ok") -> str:
        return f"https://127.0.0.1:{self.tls_port}/{behaviour}/v1"

    async def listen(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> int:
        """Open another port, with TLS settings of its own."""
        assert self.runner is not None
        before = set(self.runner.addresses)
        await web.TCPSite(self.runner, host, 0, ssl_context=context).start()
        return int((set(self.runner.addresses) - before).pop()[1])


USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "completion_tokens_details": {"reasoning_tokens": 3},
    "prompt_tokens_details": {"cached_tokens": 8},
}
CHAT_MESSAGES: dict[str, dict[str, Any]] = {
    "ok": {"role": "assistant", "content": "Hello there."},
    "json": {"role": "assistant", "content": '{"value": 4, "confidence": 0.5}'},
    "reasoning": {"role": "assistant", "content": "42", "reasoning_content": "six times seven"},
    "tools": {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        ],
    },
}


def _chat(behaviour: str, body: dict[str, Any]) -> dict[str, Any]:
    finish = {"tools": "tool_calls", "length": "length", "filtered": "content_filter"}.get(behaviour, "stop")
    message = CHAT_MESSAGES.get(behaviour, CHAT_MESSAGES["ok"])
    if behaviour == "filtered":
        message = {"role": "assistant", "content": ""}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body["model"],
        "choices": [choice],
        "usage": USAGE,
    }


def _text(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "cmpl-7",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": body["model"],
        "choices": [{"index": 0, "text": " and so on", "finish_reason": "length", "logprobs": None}],
        "usage": USAGE,
    }


def _response(behaviour: str, body: dict[str, Any]) -> dict[str, Any]:
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I think."}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello there.", "annotations": []}],
        },
    ]
    if behaviour == "tools":
        output = [
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "weather",
                "arguments": '{"city": "Oslo"}',
                "status": "completed",
            }
        ]
    incomplete = behaviour == "length"
    return {
        "id": "resp_7",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "incomplete" if incomplete else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 17,
        },
    }


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    vectors = [[float(i), 0.5, -0.25] for i in range(len(body["input"]))]
    as_text = body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(struct.pack("<3f", *v)).decode() if as_text else v,
        }
        for i, v in enumerate(vectors)
    ]
    data.reverse()  # a client must go by the index
    usage = {"prompt_tokens": 10, "total_tokens": 10}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _transcript(fields: dict[str, Any]) -> web.Response:
    if fields.get("response_format") == "text":
        return web.Response(text="Good morning.\n")
    verbose = {"task": "transcribe", "language": "english", "duration": 2.5, "segments": []}
    extra = verbose if fields.get("response_format") == "verbose_json" else {}
    return web.json_response({"text": "Good morning.", **extra}, headers={"x-request-id": "req-7"})


ERROR_BODIES: dict[str, Any] = {
    "context": {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}},
    "context-code": {"error": {"message": "Too long.", "code": "context_length_exceeded"}},
    "filter": {"error": {"message": "Blocked.", "code": "content_filter"}},
    "quota": {"error": {"message": "No quota.", "type": "insufficient_quota", "code": "insufficient_quota"}},
}


async def _error(request: web.Request, status: int, variant: str) -> web.Response:
    headers = {"x-request-id": "req-err"}
    if status == 429:
        headers["retry-after"] = "7"
    if variant == "html":
        page = "<html><head><title>503 Busy</title></head><body>no</body></html>"
        return web.Response(status=status, text=page, content_type="text/html", headers=headers)
    default = {"error": {"message": f"Server says {status}. {SECRET_ECHO}", "type": "some_error", "code": None}}
    return web.json_response(ERROR_BODIES.get(variant, default), status=status, headers=headers)


async def _broken(request: web.Request, behaviour: str) -> web.StreamResponse:
    assert request.transport is not None
    if behaviour == "drop":
        request.transport.abort()
        return web.Response()
    if behaviour == "truncate":
        answer = web.StreamResponse(headers={"content-length": "1000", "content-type": "application/json"})
        await answer.prepare(request)
        await answer.write(b'{"id": "chatcmpl-7", ')
        request.transport.close()
        return answer
    texts = {"badjson": '{"id": "chatcmpl-7", "choi', "notjson": "Welcome!", "list": "[1, 2]", "shape": '{"hello": 1}'}
    texts["error200"] = orjson.dumps({"error": {"message": SECRET_ECHO}}).decode()
    texts["error200-429"] = orjson.dumps({"error": {"message": SECRET_ECHO, "code": 429}}).decode()
    return web.Response(text=texts[behaviour], content_type="application/json")


class _Handler:
    def __init__(self, seen: Loopback) -> None:
        self.seen = seen

    async def answer(self, request: web.Request) -> web.StreamResponse:
        behaviour, _, operation = request.path.lstrip("/").partition("/v1/")
        self.seen.headers.append({k.lower(): v for k, v in request.headers.items()})
        body = await self._body(request)
        self.seen.requests.append(body)
        if behaviour == "hang":
            return await self._hang()
        if behaviour in ("drop", "truncate", "badjson", "notjson", "list", "shape", "error200", "error200-429"):
            return await _broken(request, behaviour)
        if behaviour == "redirect":
            return web.Response(status=307, headers={"location": "http://elsewhere.invalid/v1/chat/completions"})
        if behaviour[:3].isdigit():
            return await _error(request, int(behaviour[:3]), behaviour[4:])
        if operation == "audio/transcriptions":
            return _transcript(body)
        answers = {
            "chat/completions": lambda: _chat(behaviour, body),
            "completions": lambda: _text(body),
            "responses": lambda: _response(behaviour, body),
            "embeddings": lambda: _embeddings(body),
        }
        return web.json_response(answers[operation](), headers={"x-ratelimit-remaining-requests": "41"})

    async def _body(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "multipart/form-data":
            return dict(await request.json())
        form = await request.post()
        fields: dict[str, Any] = {}
        for name, value in form.items():
            if isinstance(value, web.FileField):
                with value.file:
                    fields[name] = {"filename": value.filename, "data": value.file.read()}
            else:
                fields[name] = value
        return fields

    async def _hang(self) -> web.Response:
        self.seen.open_requests += 1
        self.seen.arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            # aiohttp cancels a handler when its client goes away.
            self.seen.open_requests -= 1
            if not self.seen.open_requests:
                self.seen.gone.set()
        return web.Response()


@pytest.fixture
async def loopback(authority: Authority) -> AsyncIterator[Loopback]:
    seen = Loopback()
    app = web.Application()
    app.router.add_post("/{tail:.*}", _Handler(seen).answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    seen.runner = runner
    seen.port = await seen.listen()
    seen.tls_port = await seen.listen(authority.serving())
    yield seen
    await runner.cleanup()


@asynccontextmanager
async def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """A server that answers every path alike; gives its URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(
    script: Script, context: ssl.SSLContext | None = None, bodies: list[bytes] | None = None
) -> AsyncIterator[Scripted]:
    """A server that writes to the wire what ``script`` says, once a request was read; then it hangs up.

    What was asked goes to ``bodies``, just before.
    """
    seen = Scripted()
    writers: set[asyncio.StreamWriter] = set()
    idle = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        idle.clear()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head, body = await read_request(reader)
            seen.requests.append(head)
            if bodies is not None:
                bodies.append(body)
            await script(reader, writer)
        writer.close()
        writers.discard(writer)
        if not writers:
            idle.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**22, ssl=context)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        if writers:
            await idle.wait()
        await server.wait_closed()


@dataclass
class Scripted:
    """Where it listens, and the heads of what was asked."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read a request, up to its end; gives its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    if (length := re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)) is not None:
        return head, await reader.readexactly(int(length[1]))
    return head, await reader.readuntil(b"0\r\n\r\n")  # LiteLLM's form of a clip


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The client that lives on the loop itself is tested on every loop it may find."""
    on_all = item.path.name in ("test_http_client.py", "test_kept_connections.py", "test_proxies.py", "test_tls.py")
    return LOOPS if on_all else {"asyncio": asyncio.new_event_loop}
