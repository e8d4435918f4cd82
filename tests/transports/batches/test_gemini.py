"""What Gemini's batches have of their own: an upload in two steps, states of operations, and LiteLLM's requests."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import (
    AuthenticationError,
    ConfigError,
    InputError,
    MalformedResponseError,
    NotFoundError,
    RequestError,
)
from infermesh.transports import make_transport
from infermesh.transports.batches import GeminiBatches, OpenAIBatches, make_batch_wire
from infermesh.transports.native import NativeTransport
from infermesh.types import Request
from tests.transports.batches.conftest import KEY, TOKEN, Bench, chat
from tests.transports.batches.test_anthropic import CALL, PAYLOADS, SCHEMA, TOOL, user
from tests.transports.conftest import serving

Make = Callable[..., Bench]
MODELS = ("gemini-2.5-flash", "gemini-3-pro-preview")  # LiteLLM writes them differently


@pytest.fixture
def make(bench: Make) -> Make:
    return lambda **settings: bench("gemini", **settings)


def wire_at(url: str | None, model: str = MODELS[0], **config: Any) -> GeminiBatches:
    config.setdefault("api_key", KEY)
    transport = make_transport(DeploymentConfig(f"gemini/{model}", url, **config), label="d")
    wire = make_batch_wire("d", f"gemini/{model}", transport)
    assert isinstance(wire, GeminiBatches)
    return wire


def operation(name: str = "batches/1", state: str = "BATCH_STATE_RUNNING", **fields: Any) -> dict[str, Any]:
    """A batch as the API shows it; `error` stands beside its metadata, and the rest in it."""
    outside: dict[str, Any] = {each: fields.pop(each) for each in ("error", "response") if each in fields}
    return {"name": name, "metadata": {"name": name, "state": state, "displayName": "else", **fields}, **outside}


@dataclass
class Service:
    """A service that says what a test wants it to."""

    url: str = ""
    pages: list[dict[str, Any]] = field(default_factory=list)
    batch: dict[str, Any] = field(default_factory=operation)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    message: dict[str, Any] = field(default_factory=dict)
    upload_url: str | None = "https://elsewhere.invalid/upload?upload_id=u1&upload_protocol=resumable"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path_qs)
        self.bodies.append(await request.read())
        if request.path.endswith(":generateContent"):
            return web.json_response(self.message)
        if request.headers.get("x-goog-upload-command") == "start":
            return web.Response(headers={"x-goog-upload-url": self.upload_url} if self.upload_url else {})
        if "upload_id" in request.query:
            return web.json_response({"file": {"name": "files/f1"}})
        if request.path.endswith(":download"):
            return web.Response(body=b'{"key":"a","response":{}}\n')
        if request.path.endswith("/batches"):
            return web.json_response(self.pages[int(request.query.get("pageToken", "0"))])
        return web.json_response(self.batch)


@pytest.fixture
async def service(litellm: Any) -> AsyncIterator[Service]:
    seen = Service()
    async with serving(seen.answer) as url:
        seen.url = url
        yield seen


# What is sent

REQUESTS = {
    **{name: payload for name, payload in PAYLOADS.items() if name not in ("thinking", "dropped")},
    "detail": {
        "messages": [
            user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K", "detail": "low"}}])
        ]
    },
    "pdf": {"messages": [user([{"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0K"}}])]},
    "sound": {"messages": [user([{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}])]},
    "several": {"messages": [user("a")], "n": 2, "seed": 3, "stop": ["x"], "temperature": 0.5},
    "parallel": {
        "messages": [user("a")],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": CALL["function"]},
    },
    "functions": {"messages": [user("a")], "functions": [{"name": "look", "parameters": SCHEMA}]},
    "thinking": {"messages": [user("a")], "thinking": {"type": "enabled", "budget_tokens": 200}},
    "safety": {
        "messages": [user("a")],
        "safety_settings": [{"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}],
    },
}


def asked(name: str) -> Request:
    return Request("chat_completion", json.loads(json.dumps(REQUESTS[name])))


def response(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": [*parts], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": 15,
            "cachedContentTokenCount": 7,
            "candidatesTokenCount": 4,
            "thoughtsTokenCount": 6,
            "totalTokenCount": 25,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 15}],
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
        **fields,
    }


TEXT = {"text": "Hi."}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", REQUESTS)
async def test_requests_are_what_litellm_sends_live(service: Service, name: str, model: str) -> None:
    """The one test of what is relied on in LiteLLM for requests; twice, as the second goes the short way."""
    service.message = response(TEXT)
    transport = make_transport(DeploymentConfig(f"gemini/{model}", service.url, api_key=KEY), label="d")
    wire = make_batch_wire("d", f"gemini/{model}", transport)
    try:
        await transport.send(asked(name), 20.0)
    except InputError as error:
        with pytest.raises(InputError, match=re.escape(error.message)):
            wire.line("a-1", asked(name))
        await transport.aclose()
        return
    for _ in range(2):
        line = json.loads(wire.line("a-1", asked(name)))
        assert line == {"key": "a-1", "request": json.loads(service.bodies[0])}
    await transport.aclose()


async def test_only_texts_differ_and_each_has_its_own(service: Service) -> None:
    wire, other = wire_at(service.url), wire_at(service.url)
    for n in range(20):
        messages = [*([{"role": "system", "content": f"S{n}"}] if n % 3 else []), user(f"text {n}")]
        more = {"temperature": (n % 4) / 4} if n % 2 else {}
        request = Request("chat_completion", {"messages": messages, **more})
        fresh = wire_at(service.url) if n % 5 == 0 else other
        assert json.loads(wire.line("a", request)) == json.loads(fresh.line("a", request))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"messages": [user("a")], "logit_bias": {"3": 1}}, "logit_bias.*drop_params: true"),
        ({"messages": [user([{"type": "image_url", "image_url": {"url": "https://h.example/a.png"}}])]}, "as a file"),
        ({"messages": [user([{"type": "image_url", "image_url": "http://h.example/a.png"}])]}, "as a file"),
        ({"messages": [user([{"type": "file", "file": {"file_id": "https://h.example/a.pdf"}}])]}, "as a file"),
    ],
)
async def test_what_cannot_be_in_a_batch(service: Service, payload: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        wire_at(service.url).line("a-1", Request("chat_completion", payload))
    assert not caught.value.retryable


async def test_what_is_left_out_is_said_once(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    wire = wire_at(service.url)
    cached = [{"type": "text", "text": "S. " * 9000, "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "system", "content": cached}, user("x")]
    plain = [{"role": "system", "content": [{"type": "text", "text": "S. " * 9000}]}, user("x")]
    with caplog.at_level(logging.WARNING, logger="infermesh"):
        for _ in range(3):
            line = wire.line("a", Request("chat_completion", {"messages": messages, "service_tier": "flex"}))
    assert line == wire.line("a", Request("chat_completion", {"messages": plain}))
    said = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert [each.split()[1] for each in said] == ["service_tier", "cache_control"]
    assert service.paths == []  # no cache was made


async def test_an_upload_and_a_create(service: Service, tmp_path: Path) -> None:
    wire = wire_at(service.url)
    path = tmp_path / "lines"
    path.write_bytes(wire.line("a-0", chat("x")))
    file_id = await wire.upload(path, "mine.jsonl")
    assert file_id == "files/f1"
    # The bytes go to the endpoint, wherever the answer sends them.
    assert service.paths == ["/upload/v1beta/files", "/upload/v1beta/files?upload_id=u1&upload_protocol=resumable"]
    assert json.loads(service.bodies[0]) == {"file": {"displayName": "mine.jsonl", "mimeType": "application/jsonl"}}
    assert service.bodies[1] == path.read_bytes()
    assert service.headers[0]["x-goog-upload-header-content-length"] == str(len(service.bodies[1]))
    assert service.headers[1]["x-goog-upload-command"] == "upload, finalize"
    assert service.headers[0]["x-goog-api-key"] == KEY
    await wire.create(TOKEN, "chat_completion", file_id, path)
    assert service.paths[-1] == "/v1beta/models/gemini-2.5-flash:batchGenerateContent"
    batch = {"displayName": TOKEN, "inputConfig": {"fileName": "files/f1"}}
    assert json.loads(service.bodies[-1]) == {"batch": batch}
    await wire.aclose()


async def test_an_upload_that_names_no_place(service: Service, tmp_path: Path) -> None:
    service.upload_url = None
    wire = wire_at(service.url)
    (tmp_path / "lines").write_bytes(b"{}\n")
    with pytest.raises(MalformedResponseError, match="no URL to go on at"):
        await wire.upload(tmp_path / "lines", "x")
    await wire.aclose()


async def test_a_line_that_is_refused_at_once(make: Make) -> None:
    at = make(invalid_marker="mole")
    with pytest.raises(RequestError, match="invalid argument") as caught:
        await at.create([chat("A mole.")])
    assert (caught.value.status_code, caught.value.retryable) == (400, False)


async def test_a_file_that_is_gone_is_sent_once_more(make: Make) -> None:
    """A run that is resumed after two days, between its upload and its create."""
    at = make()
    path = at.write([chat("One. Two.")])
    made = await at.wire.create(TOKEN, "chat_completion", "files/gone", path)
    assert [each.kind for each in await at.results(await at.ended(made.id))] == ["answered"]
    other = make(plain={"models": ["other"]})
    with pytest.raises(NotFoundError, match="models/gemini"):  # which is no reason to
        await other.wire.create(TOKEN, "chat_completion", "files/gone", path)
    assert other.simulator.stats()["batches"]["calls"] == {"gemini_batches.create": 1}


# What comes back

ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "text": (response(TEXT), "plain"),
    "thoughts": (response({"text": "Hm.", "thought": True}, {**TEXT, "thoughtSignature": "c2ln"}), "effort"),
    "cut": (response(candidates=[{"content": {"parts": [TEXT]}, "finishReason": "MAX_TOKENS"}]), "parameters"),
    "unsafe": (response(candidates=[{"finishReason": "SAFETY", "index": 0}]), "plain"),
    "blocked": ({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}}, "plain"),
    "empty": (response(), "plain"),
    "two": (response(candidates=[{"content": {"parts": [TEXT]}, "finishReason": "STOP"}] * 2), "several"),
    "schema": (response({"text": '{"values": ["a"], "n": 3}'}), "schema"),
    "call": (response({"functionCall": {"name": "look/up", "args": {"n": 3}}, "thoughtSignature": "c2ln"}), "tools"),
    "function": (response({"functionCall": {"name": "look", "args": {"n": 3}}}), "functions"),
    "picture": (response({"inlineData": {"mimeType": "image/png", "data": "iVBORw0K"}}), "plain"),
    "no id": ({name: value for name, value in response(TEXT).items() if name != "responseId"}, "plain"),
}


def told(body: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from one reading to the next."""
    body = json.loads(json.dumps(body))
    body.pop("created")
    body.pop("id")  # which LiteLLM leaves out where it finds no answer
    for choice in body["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call["id"] = call["id"].partition("__thought__")[2]  # before it stands a random number
    return body


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_what_litellm_reads_live(service: Service, name: str) -> None:
    service.message, payload = ANSWERS[name]
    transport = make_transport(DeploymentConfig("gemini/gemini-2.5-flash", service.url, api_key=KEY), label="d")
    live = await transport.send(asked(payload), 20.0)
    line = json.dumps({"key": "a", "response": service.message}).encode()
    result = make_batch_wire("d", "gemini/gemini-2.5-flash", transport).result(line, asked(payload))
    assert (result.custom_id, result.kind, result.status) == ("a", "answered", 200)
    assert told(result.body) == told(live.body)
    assert result.body["id"] == service.message.get("responseId")
    if name == "text":
        usage = result.body["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (15, 10)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 7
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 6
    await transport.aclose()


@pytest.mark.parametrize(
    ("code", "status", "retryable"),
    [
        (3, 400, False),
        (4, 504, True),
        (5, 404, False),
        (7, 403, False),
        (8, 429, True),
        (13, 500, True),
        (14, 503, True),
        (16, 401, False),
        (400, 400, False),
        (503, 503, True),
        ("13", 500, True),
    ],
)
@pytest.mark.parametrize("where", ["error", "status"])
async def test_an_error_has_the_status_of_its_code(
    service: Service, where: str, code: Any, status: int, retryable: bool
) -> None:
    wire = wire_at(service.url)
    result = wire.result(orjson.dumps({"key": "a", where: {"code": code, "message": f"Because, {KEY}."}}))
    assert (result.custom_id, result.kind, result.status) == ("a", "failed", status)
    error = wire.error(result)
    assert (error.status_code, error.retryable) == (status, retryable)
    assert "Because" in error.message
    assert KEY not in error.message


@pytest.mark.parametrize(
    "fields",
    [{"error": "no"}, {"error": {}}, {"error": {"code": 99}}, {"response": 3}, {"response": {"candidates": 3}}],
)
async def test_what_nobody_knows_is_a_failed_line(service: Service, fields: dict[str, Any]) -> None:
    wire = wire_at(service.url)
    found = wire.result(orjson.dumps({"key": "a", **fields}))
    assert (found.custom_id, found.kind) == ("a", "failed")
    assert wire.error(found).deployment == "d"


async def test_a_line_without_a_key_or_that_was_cancelled(service: Service) -> None:
    wire = wire_at(service.url)
    assert wire.result(orjson.dumps({"response": response(TEXT)})).custom_id is None
    cancelled = wire.result(orjson.dumps({"key": "a", "error": {"code": 1, "message": "cancelled"}}))
    assert cancelled.kind == "unserved"


# How a batch is

OUTPUT = {"responsesFile": "files/out-1"}
STATS = {"requestCount": "5", "successfulRequestCount": "3", "failedRequestCount": "1", "pendingRequestCount": "1"}
LONG_AGO = "2025-01-12T05:59:14.154311Z"


@pytest.mark.parametrize("prefix", ["BATCH", "JOB"])
@pytest.mark.parametrize(
    ("state", "fields", "phase"),
    [
        ("PENDING", {}, "working"),
        ("RUNNING", {"batchStats": STATS}, "working"),
        ("UNSPECIFIED", {}, "working"),
        ("CANCELLING", {}, "working"),
        ("SUCCEEDED", {"output": OUTPUT}, "ended"),
        ("SUCCEEDED", {"response": OUTPUT}, "ended"),
        ("SUCCEEDED", {}, "working"),  # its file is yet to come
        ("SUCCEEDED", {"endTime": LONG_AGO}, "ended"),  # and will not come any more
        ("PARTIALLY_SUCCEEDED", {"output": OUTPUT}, "ended"),
        ("CANCELLED", {"error": {"code": 13, "message": "cancelled"}}, "ended"),
        ("CANCELLED", {"output": OUTPUT}, "ended"),
        ("EXPIRED", {"batchStats": STATS}, "ended"),
        ("FAILED", {"error": {"code": 3, "message": "bad"}}, "failed"),
        ("FAILED", {"error": {"code": 8, "message": "full"}}, "failed"),
        ("FAILED", {"error": {"code": 13, "message": "oops"}}, "ended"),  # its lines go into another
        ("FAILED", {"output": OUTPUT}, "ended"),
    ],
)
async def test_states(service: Service, prefix: str, state: str, fields: dict[str, Any], phase: str) -> None:
    service.batch = operation("batches/b1", f"{prefix}_STATE_{state}", **fields)
    wire = wire_at(service.url)
    found = await wire.status("batches/b1")
    assert service.paths == ["/v1beta/batches/b1"]
    assert (found.id, found.phase, found.said) == ("batches/b1", phase, state.lower())
    there = phase == "ended" and OUTPUT in fields.values()
    assert found.files == (("files/out-1",) if there else ())
    if "batchStats" in fields:
        assert (found.total, found.finished) == (5, 4 if phase == "working" else 0)  # there is nothing to fetch
    if phase == "failed":
        (problem,) = found.problems
        assert (problem.line, problem.full) == (None, problem.code == "RESOURCE_EXHAUSTED")
        assert problem.message == fields["error"]["message"]
    await wire.aclose()


async def test_its_file_comes_after_it_has_succeeded(make: Make) -> None:
    at = make(late_output_s=0.4)
    made = await at.create([chat("One. Two.")])
    seen = await at.until(made.id, lambda status: status.said == "succeeded")
    assert (seen.phase, seen.files) == ("working", ())
    ended = await at.ended(made.id)
    assert [each.kind for each in await at.results(ended)] == ["answered"]


async def test_where_results_are(service: Service, tmp_path: Path) -> None:
    wire = wire_at(service.url)
    service.batch = operation(state="BATCH_STATE_SUCCEEDED", output=OUTPUT)
    await wire.download(await wire.status("batches/1"), tmp_path / "results")
    assert service.paths[-1] == "/download/v1beta/files/out-1:download?alt=media"
    assert wire.glance((tmp_path / "results").read_bytes()).custom_id == "a"
    service.batch = operation(
        state="BATCH_STATE_SUCCEEDED", output={"responsesFile": "files/../../x"}, endTime=LONG_AGO
    )
    assert (await wire.status("batches/1")).files == ()
    await wire.aclose()


async def test_it_is_found_by_its_name_or_its_file(service: Service) -> None:
    wire = wire_at(service.url)
    listed = [operation(f"batches/{n}", inputConfig={"fileName": f"files/{n}"}) for n in range(6)]
    listed[4]["metadata"]["displayName"] = TOKEN
    service.pages = [
        {"operations": listed[:3], "nextPageToken": "1"},
        {"nextPageToken": "2"},  # a page may be empty
        {"operations": listed[3:]},
    ]
    by_name = await wire.find(TOKEN, None, 1, time.time())
    by_file = await wire.find("f" * 32, "files/5", 1, time.time())
    assert by_name is not None
    assert by_file is not None
    assert (by_name.id, by_file.id) == ("batches/4", "batches/5")
    assert await wire.find("f" * 32, None, 1, time.time()) is None
    service.pages = [{}]
    assert await wire.find(TOKEN, "files/5", 1, time.time()) is None
    await wire.aclose()


# Where it is


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1beta/", "/proxy/v1beta"])
async def test_an_api_base_as_litellm_takes_it(service: Service, end: str) -> None:
    wire = wire_at(service.url + end)
    assert (await wire.status("1")).id == "batches/1"
    assert service.paths == [f"{'/proxy' if 'proxy' in end else ''}/v1beta/batches/1"]
    await wire.aclose()


async def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AuthenticationError, match=r"no key for https://generativelanguage\.googleapis\.com"):
        wire_at(None, api_key=None)
    monkeypatch.setenv("GEMINI_API_KEY", "key-0123456789")
    access = wire_at(None, api_key=None)._access
    assert access.headers["x-goog-api-key"] == "key-0123456789"
    assert "key-0123456789" in access.secrets
    assert access.url("/v1beta/batches") == "https://generativelanguage.googleapis.com/v1beta/batches"
    monkeypatch.setenv("GOOGLE_API_KEY", "other-0123456789")  # which is the one that LiteLLM takes of both
    assert wire_at(None, api_key=None)._access.headers["x-goog-api-key"] == "other-0123456789"
    assert wire_at(None)._access.headers["x-goog-api-key"] == KEY
    monkeypatch.setenv("GEMINI_API_BASE", "https://proxy.example/v1beta/")
    assert wire_at(None)._access.url("/v1beta/x") == "https://proxy.example/v1beta/x"


def test_who_has_which() -> None:
    native = NativeTransport(label="d", model="gemini-x", api_base="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="gemini is not spoken"):  # Google's server of OpenAI's format takes no files
        make_batch_wire("d", "gemini/gemini-x", native)
    assert isinstance(make_batch_wire("d", "gemini/gemini-x", native, simulated=True), OpenAIBatches)
    vertex = make_transport(DeploymentConfig("vertex_ai/gemini-x"), label="d")
    with pytest.raises(ConfigError, match="vertex_ai is not spoken"):
        make_batch_wire("d", "vertex_ai/gemini-x", vertex)
