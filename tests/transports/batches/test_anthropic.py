"""What Anthropic's batches have of their own: no files, no mark of ours, and requests that LiteLLM writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import APIConnectionError, AuthenticationError, ConfigError, InputError, RequestError
from infermesh.transports import make_transport
from infermesh.transports.batches import AnthropicBatches, BatchStatus, make_batch_wire
from infermesh.types import Request
from tests.transports.batches.conftest import KEY, TOKEN, Bench, chat
from tests.transports.conftest import serving

Make = Callable[..., Bench]


@pytest.fixture
def make(bench: Make) -> Make:
    return lambda **settings: bench("anthropic", **settings)


def wire_at(url: str | None, model: str = "claude-sonnet-4-5", **config: Any) -> AnthropicBatches:
    config.setdefault("api_key", KEY)
    transport = make_transport(DeploymentConfig(f"anthropic/{model}", url, **config), label="d")
    wire = make_batch_wire("d", f"anthropic/{model}", transport)
    assert isinstance(wire, AnthropicBatches)
    return wire


def as_batch(batch_id: str = "msgbatch_1", requests: int = 1, made: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A batch as the listing has it."""
    ended = fields.get("processing_status") == "ended"
    counts = {"processing": 0 if ended else requests, "succeeded": requests if ended else 0, "errored": 0}
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(made or time.time()))
    return {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {**counts, "canceled": 0, "expired": 0},
        "created_at": stamp,
        "results_url": None,
        **fields,
    }


@dataclass
class Service:
    """A service that says what a test wants it to."""

    url: str = ""
    batches: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, bytes] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    message: dict[str, Any] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path)
        self.bodies.append(await request.read())
        if request.path == "/v1/messages":
            return web.json_response(self.message, headers={"request-id": "req_1"})
        if request.path.endswith("/results"):
            found = self.results.get(request.path.split("/")[-2])
            return web.Response(status=404) if found is None else web.Response(body=found)
        if request.method == "POST":
            return web.json_response(as_batch())
        if request.path.endswith("/batches"):
            return web.json_response({"data": self.batches, "has_more": False})
        return web.json_response(next(each for each in self.batches if request.path.endswith(each["id"])))


@pytest.fixture
async def service(litellm: Any) -> AsyncIterator[Service]:
    seen = Service()
    async with serving(seen.answer) as url:
        seen.url = url
        yield seen


# What is sent

SCHEMA = {
    "type": "object",
    "properties": {"values": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer", "minimum": 3}},
    "required": ["values"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "Answer", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look/up", "description": "Looks.", "parameters": SCHEMA}}
PLAIN_TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look/up", "arguments": '{"n": 3}'}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}}
PAYLOADS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [user("Hello.")]},
    "parameters": {"messages": [{"role": "system", "content": "Brief."}, user("A\u2028b")], "max_tokens": 50},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, user("Hello.")]},
    "turns": {"messages": [user("a"), user("b"), {"role": "assistant", "content": "c "}, user("d")]},
    "opening": {"messages": [user("a"), {"role": "assistant", "content": "b "}]},
    "nothing": {"messages": [user("")]},
    "schema": {"messages": [user("a")], "response_format": FORMAT},
    "json": {"messages": [user("a")], "response_format": {"type": "json_object"}},
    "tools": {"messages": [user("a")], "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "calls": {
        "messages": [
            user("a"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "r"},
        ],
        "tools": [TOOL],
    },
    "picture": {"messages": [user([{"type": "text", "text": "x"}, PICTURE])]},
    "cache": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}]},
            user("x"),
        ]
    },
    "prefix": {"messages": [user("a"), {"role": "assistant", "content": "{", "prefix": True}]},
    "plain tools": {"messages": [user("a")], "tools": [PLAIN_TOOL]},
    "tools and schema": {"messages": [user("a")], "tools": [PLAIN_TOOL], "response_format": FORMAT},
    "effort": {"messages": [user("a")], "reasoning_effort": "low"},
    "thinking": {"messages": [user("a")], "thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 3000},
    "top_k": {"messages": [user("a")], "top_k": 5},
    "dropped": {"messages": [user("a")], "seed": 5, "drop_params": True},
}


def message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [*content],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 7,
            "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
            "output_tokens": 4,
            "service_tier": "batch",
        },
        **fields,
    }


TEXT = {"type": "text", "text": "Hi."}


def asked(name: str) -> Request:
    return Request("chat_completion", json.loads(json.dumps(PAYLOADS[name])))


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-3-haiku-20240307"])  # the older knows no schemas
@pytest.mark.parametrize("name", PAYLOADS)
async def test_params_are_what_litellm_sends_live(service: Service, name: str, model: str) -> None:
    """The one test of what is relied on in LiteLLM for requests; twice, as the second goes the short way."""
    service.message = message(TEXT)
    transport = make_transport(DeploymentConfig(f"anthropic/{model}", service.url, api_key=KEY), label="d")
    wire = make_batch_wire("d", f"anthropic/{model}", transport)
    try:
        await transport.send(asked(name), 20.0)
    except InputError as error:  # the older model takes no effort
        with pytest.raises(InputError, match=re.escape(error.message)):
            wire.line("a-1", asked(name))
        await transport.aclose()
        return
    for _ in range(2):
        line = json.loads(wire.line("a-1", asked(name)))
        assert line["params"] == json.loads(service.bodies[0])
        assert line.get("betas", []) == list(filter(None, service.headers[0].get("anthropic-beta", "").split(",")))
    await transport.aclose()


async def test_only_texts_differ_and_each_has_its_own(service: Service) -> None:
    wire, other = wire_at(service.url), wire_at(service.url)
    for n in range(20):
        messages = [*([{"role": "system", "content": f"S{n}"}] if n % 3 else []), user(f"text {n}")]
        request = Request("chat_completion", {"messages": messages, "temperature": (n % 4) / 4})
        fresh = wire_at(service.url) if n % 5 == 0 else other
        assert json.loads(wire.line("a", request)) == json.loads(fresh.line("a", request))


PLAIN_URL = {"type": "image_url", "image_url": {"url": "http://h.example/a.png"}}


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"messages": [user("a")], "seed": 3}, "seed.*drop_params: true"),
        ({"messages": [user("a")], "n": 2}, "n"),
        ({"messages": [user([PLAIN_URL])]}, "at https://"),
        ({"messages": [user("\ud800")]}, "LiteLLM cannot write it"),
    ],
)
async def test_what_cannot_be_in_a_batch(service: Service, payload: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        wire_at(service.url).line("a-1", Request("chat_completion", payload))
    assert not caught.value.retryable


async def test_the_body_and_the_headers(service: Service, tmp_path: Path) -> None:
    wire = wire_at(service.url, headers={"anthropic-beta": "mine-2026"})
    path = tmp_path / "lines"
    names = ("schema", "plain", "parameters")
    path.write_bytes(b"".join(wire.line(f"a-{number}", asked(name)) for number, name in enumerate(names)))
    await wire.create(TOKEN, "chat_completion", None, path)
    body, headers = json.loads(service.bodies[-1]), service.headers[-1]
    assert [each["custom_id"] for each in body["requests"]] == ["a-0", "a-1", "a-2"]
    assert all(each.keys() == {"custom_id", "params"} for each in body["requests"])
    assert headers["anthropic-beta"] == "mine-2026,structured-outputs-2025-11-13"
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers
    assert int(headers["content-length"]) == len(service.bodies[-1])
    await wire.aclose()


async def test_a_line_that_is_refused_at_once(make: Make) -> None:
    at = make()
    path = at.folder / "lines"
    path.write_bytes(at.wire.line("a b", chat("x")))
    with pytest.raises(RequestError, match=r"requests\.0\.custom_id") as caught:
        await at.wire.create(TOKEN, "chat_completion", None, path)
    assert (caught.value.status_code, caught.value.retryable) == (400, False)


# What comes back


def used(tool: str, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": tool, "input": given}


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "text": (message(TEXT), "plain"),
    "thinking": (message({"type": "thinking", "thinking": "Hm.", "signature": "s"}, TEXT), "thinking"),
    "cut": (message(TEXT, stop_reason="max_tokens"), "parameters"),
    "refusal": (message(TEXT, stop_reason="refusal"), "plain"),
    "empty": (message(), "plain"),
    "schema": (message({"type": "text", "text": '{"values": ["a"], "n": 3}'}), "schema"),
    # "values" is LiteLLM's name of an envelope, and here one of the schema's.
    "json tool": (message(used("json_tool_call", {"values": ["a"]})), "schema"),
    "own tool": (message(TEXT, used("look", {"n": 3}), used("look", {"n": 4}), stop_reason="tool_use"), "plain tools"),
    "both": (message(TEXT, used("json_tool_call", {"values": ["a"]}), used("look", {"n": 3})), "tools and schema"),
    "prefix": (message(TEXT), "prefix"),
    "tool": (message(used("look_up", {"n": 3}), stop_reason="tool_use"), "tools"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_what_litellm_reads_live(service: Service, name: str) -> None:
    service.message, payload = ANSWERS[name]
    model = "claude-3-haiku-20240307" if name in ("json tool", "both") else "claude-sonnet-4-5"
    transport = make_transport(DeploymentConfig(f"anthropic/{model}", service.url, api_key=KEY), label="d")
    live = await transport.send(asked(payload), 20.0)
    line = json.dumps({"custom_id": "a", "result": {"type": "succeeded", "message": service.message}}).encode()
    result = make_batch_wire("d", f"anthropic/{model}", transport).result(line, asked(payload))
    assert (result.kind, result.status, result.body.pop("id")) == ("answered", 200, "msg_1")
    for each in (live.body, result.body):
        each.pop("created")
        assert each["model"] == "claude-sonnet-4-5"
    live.body.pop("id")
    assert result.body == live.body
    usage = result.body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (15, 4)
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (7, 3)
    if name == "json tool":
        assert json.loads(result.body["choices"][0]["message"]["content"]) == {"values": ["a"]}
    if name == "prefix":
        assert result.body["choices"][0]["message"]["content"] == "{Hi."
    if name == "tool":
        assert result.body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look/up"
    await transport.aclose()


@pytest.mark.parametrize(
    ("kind", "status", "retryable"),
    [
        ("invalid_request", 400, False),
        ("authentication", 401, False),
        ("billing", 402, False),
        ("permission", 403, False),
        ("not_found", 404, False),
        ("rate_limit", 429, True),
        ("api", 500, True),
        ("timeout", 504, True),
        ("overloaded", 529, True),
    ],
)
async def test_an_error_has_the_status_of_its_type(service: Service, kind: str, status: int, retryable: bool) -> None:
    wire = wire_at(service.url)
    inner = {"type": f"{kind}_error", "message": f"Because, {KEY}."}
    failed = {"type": "errored", "error": {"type": "error", "request_id": None, "error": inner}}
    result = wire.result(orjson.dumps({"custom_id": "a", "result": failed}))
    assert (result.custom_id, result.kind, result.status) == ("a", "failed", status)
    error = wire.error(result)
    assert (error.status_code, error.retryable) == (status, retryable)
    assert "Because" in error.message
    assert KEY not in error.message


@pytest.mark.parametrize(
    "result",
    [
        {"type": "errored", "error": {"type": "error", "error": {"type": "new_error", "message": "no"}}},
        {"type": "errored", "error": "no"},
        {"type": "errored"},
        {"type": "new"},
        {"type": "succeeded"},
        {"type": "succeeded", "message": {"id": "msg_1", "content": "?"}},
    ],
)
async def test_what_nobody_knows_is_a_failed_line(service: Service, result: dict[str, Any]) -> None:
    wire = wire_at(service.url)
    found = wire.result(orjson.dumps({"custom_id": "a", "result": result}))
    assert (found.custom_id, found.kind) == ("a", "failed")
    assert wire.error(found).deployment == "d"


# What is found

OWN, OTHER = f'{{"custom_id":"{TOKEN[:8]}-0-1"}}\n'.encode(), b'{"custom_id":"ffffffff-0-1"}\n'


async def find(service: Service, wire: AnthropicBatches | None = None) -> BatchStatus | None:
    wire = wire or wire_at(service.url)
    try:
        return await wire.find(TOKEN, None, 3, time.time())
    finally:
        await wire.aclose()


async def test_one_in_progress_is_taken_for_ours(service: Service) -> None:
    service.batches = [
        as_batch("msgbatch_other", 4),
        as_batch("msgbatch_own", 3),
        as_batch("msgbatch_old", 3, time.time() - 3600),
    ]
    found = await find(service)
    assert found is not None
    assert (found.id, found.phase) == ("msgbatch_own", "working")


async def test_ended_ones_are_told_by_their_results(service: Service) -> None:
    service.batches = [as_batch(f"msgbatch_{n}", 3, processing_status="ended") for n in range(3)]
    service.results = {"msgbatch_0": OTHER, "msgbatch_1": OWN + OTHER * 9, "msgbatch_2": OTHER}
    found = await find(service)
    assert found is not None
    assert (found.id, found.phase) == ("msgbatch_1", "ended")
    service.results["msgbatch_1"] = OTHER
    assert await find(service) is None


async def test_of_several_nobody_can_tell_yet(service: Service) -> None:
    service.batches = [as_batch("msgbatch_1", 3), as_batch("msgbatch_2", 3)]
    with pytest.raises(RequestError, match="msgbatch_1 or msgbatch_2 may be") as caught:
        await find(service)
    assert caught.value.retryable
    assert caught.value.retry_after == 60


async def test_an_ended_one_whose_results_are_not_there_may_be_ours(service: Service) -> None:
    service.batches = [as_batch("msgbatch_1", 3, processing_status="ended")]
    with pytest.raises(RequestError, match="msgbatch_1 may be") as caught:
        await find(service)
    assert caught.value.retryable


async def test_batches_that_are_known_are_not_taken(service: Service, tmp_path: Path) -> None:
    service.batches = [as_batch("msgbatch_1", 3), as_batch("msgbatch_2", 3), as_batch("msgbatch_3", 3)]
    wire = wire_at(service.url)
    path = tmp_path / "lines"
    path.write_bytes(wire.line("a", chat("x")))
    await wire.create("f" * 32, "chat_completion", None, path)  # msgbatch_1
    await wire.status("msgbatch_3")
    found = await find(service, wire)
    assert found is not None
    assert found.id == "msgbatch_2"


async def test_two_creates_that_were_not_confirmed_share_no_batch(service: Service) -> None:
    """One of them was made: whose it is, only its results can tell."""
    service.batches = [as_batch("msgbatch_1", 3)]
    wire, other = wire_at(service.url), "f" * 32
    wire._unsure[other] = 3  # as a create leaves it whose answer was lost
    for token in (TOKEN, other):
        with pytest.raises(RequestError, match="msgbatch_1 may be"):
            await wire.find(token, None, 3, time.time())
    service.batches = [as_batch("msgbatch_1", 3, processing_status="ended")]
    service.results = {"msgbatch_1": OTHER}
    assert await wire.find(TOKEN, None, 3, time.time()) is None
    found = await wire.find(other, None, 3, time.time())
    assert found is not None
    assert found.phase == "ended"
    await wire.aclose()


# Where it is


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/messages"])
async def test_an_api_base_as_litellm_takes_it(service: Service, end: str) -> None:
    service.batches = [as_batch()]
    wire = wire_at(service.url + end)
    assert (await wire.status("msgbatch_1")).id == "msgbatch_1"
    assert service.paths == ["/v1/messages/batches/msgbatch_1"]
    await wire.aclose()


@pytest.mark.parametrize(
    ("given", "followed"),
    [
        ("{url}/elsewhere/results", "/elsewhere/results"),
        ("https://elsewhere.invalid/results", "/v1/messages/batches/msgbatch_1/results"),
        (None, "/v1/messages/batches/msgbatch_1/results"),
    ],
)
async def test_the_key_goes_to_no_other_place(
    service: Service, tmp_path: Path, given: str | None, followed: str
) -> None:
    url = given and given.format(url=service.url)
    service.batches = [as_batch(processing_status="ended", results_url=url)]
    service.results = {"elsewhere": OWN, "msgbatch_1": OWN}
    wire = wire_at(service.url)
    await wire.download(await wire.status("msgbatch_1"), tmp_path / "results")
    assert service.paths[-1] == followed
    assert (tmp_path / "results").read_bytes() == OWN
    await wire.aclose()


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=302, headers={"location": "/other"})

    async with serving(answer) as url:
        wire = wire_at(url)
        for call in (
            wire.download(BatchStatus("b", "ended", "ended", files=(f"{url}/results",)), tmp_path / "results"),
            wire.status("b"),
        ):
            with pytest.raises(RequestError):
                await call
        await wire.aclose()
    assert asked == ["/results", "/v1/messages/batches/b"]


async def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AuthenticationError, match=r"no key for https://api\.anthropic\.com"):
        wire_at(None, api_key=None)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-0123456789")
    assert wire_at(None, api_key=None)._access.headers["authorization"] == "Bearer token-0123456789"
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-0123456789")
    access = wire_at(None, api_key=None)._access
    assert access.headers["x-api-key"] == "key-0123456789"
    assert "key-0123456789" in access.secrets
    assert access.url("/v1/messages/batches") == "https://api.anthropic.com/v1/messages/batches"
    assert wire_at(None)._access.headers["x-api-key"] == KEY
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://proxy.example/v1/")
    assert wire_at(None)._access.url("/v1/x") == "https://proxy.example/v1/x"


async def test_who_has_none() -> None:
    transport = make_transport(DeploymentConfig("bedrock/anthropic.claude-x"), label="d")
    with pytest.raises(ConfigError, match=r"deployments\.d.batch: .* bedrock is not spoken"):
        make_batch_wire("d", "bedrock/anthropic.claude-x", transport)


async def test_nothing_is_there() -> None:
    wire = wire_at("http://127.0.0.1:9")
    with pytest.raises(APIConnectionError) as caught:
        await wire.status("x")
    assert KEY not in caught.value.message
    await wire.aclose()


def test_litellm_is_not_loaded_to_ask_how_a_batch_is() -> None:
    script = """
import asyncio, sys
from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import RequestError
from infermesh.transports import make_transport
from infermesh.transports.batches import make_batch_wire

async def main():
    transport = make_transport(DeploymentConfig("anthropic/claude-x", "http://127.0.0.1:9", api_key="k"), label="d")
    wire = make_batch_wire("d", "anthropic/claude-x", transport)
    try:
        await wire.status("x")
    except RequestError:
        pass
    await wire.aclose()

asyncio.run(main())
assert "litellm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
