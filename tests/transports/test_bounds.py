"""How much of an answer is read, on both transports: a server cannot fill the memory."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from infermesh import LMClient
from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import ConfigError, MalformedResponseError, RequestError, ServerError
from infermesh.transports import make_transport
from infermesh.transports.http.coding import Inflater
from infermesh.transports.litellm import import_litellm
from infermesh.types import Reply, Request

from .conftest import KEY, Authority, Script, _chat, scripted

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]

MOST = 100_000
LONG = 40 * MOST
# As LiteLLM asks: through httpx over aiohttp; through OpenAI's SDK; through its own handler; through aiohttp itself.
MODELS = {
    "native": "hosted_vllm/m",
    "native-tls": "hosted_vllm/m",
    "litellm-vllm": "hosted_vllm/m",
    "litellm-openai": "openai/m",
    "litellm-anthropic": "anthropic/m",
    "litellm-aiohttp": "aiohttp_openai/m",
}


@pytest.fixture(scope="module", autouse=True)
def _litellm_is_imported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_litellm()


def deflated(wbits: int, length: int = LONG) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return coder.compress(b" " * length) + coder.flush()


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = b"".join(b"%b\r\n" % header for header in headers)
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        *(status, lines, len(body)),
        body,
    )


def says(*pieces: bytes, again: bool = False) -> Script:
    """Write the pieces; the last one for ever, with ``again``."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        while again:
            writer.write(pieces[-1])
            await writer.drain()

    return script


_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_CHUNK = b"2000\r\n" + b" " * 8192 + b"\r\n"
BOMBS: dict[str, Callable[[], Script]] = {
    "plain": lambda: says(answer(b" " * LONG)),
    "announced": lambda: says(_OK + b"content-length: 99999999999\r\n\r\n "),
    "until it closes": lambda: says(_OK + b"\r\n", b" " * 8192, again=True),
    "chunks": lambda: says(_OK + b"transfer-encoding: chunked\r\n\r\n", _CHUNK, again=True),
    "small chunks": lambda: says(_OK + b"transfer-encoding: chunked\r\n\r\n", b"2\r\n  \r\n" * 999, again=True),
    "events": lambda: says(
        _OK.replace(b"application/json", b"text/event-stream") + b"\r\n", b": x\n\n" * 999, again=True
    ),
    "gzip": lambda: says(answer(deflated(31), b"content-encoding: gzip")),
    "x-gzip": lambda: says(answer(deflated(31), b"Content-Encoding: X-GZIP")),
    "deflate": lambda: says(answer(deflated(15), b"content-encoding: deflate")),
    "bare deflate": lambda: says(answer(deflated(-15), b"content-encoding: deflate")),
    "gzip in chunks": lambda: says(
        _OK + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n",
        *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [gzip.compress(b" " * MOST)] * 3),
        b"0\r\n\r\n",
    ),
}


async def ask(kind: str, url: str, most: int = MOST, timeout: float = 10.0) -> Reply:
    model, transport = MODELS[kind], kind.partition("-")[0]
    if kind == "litellm-aiohttp":
        url += "/chat/completions"
    if kind == "native-tls":
        url = url.replace("http:", "https:")
    config = DeploymentConfig(model, url, KEY, transport=transport, max_response_bytes=most)
    asked = make_transport(config, label="gpu-0", environ={})
    try:
        payload: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        return await asked.send(Request("chat_completion", payload), timeout)
    finally:
        await asked.aclose()


async def error_of(kind: str, script: Script, authority: Authority, most: int = MOST) -> tuple[RequestError, int]:
    context = authority.serving() if kind == "native-tls" else None
    async with scripted(script, context) as server:
        with pytest.raises(RequestError) as caught:
            await ask(kind, server.url, most)
    return caught.value, len(server.requests)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_longer_answer_is_an_error_that_names_the_bound(kind: str, bomb: str, trusted: Authority) -> None:
    if kind == "litellm-aiohttp" and bomb in ("announced", "x-gzip"):
        pytest.skip("aiohttp waits for what was announced, and knows no x-gzip")
    error, requests = await error_of(kind, BOMBS[bomb](), trusted)
    assert (type(error), error.retryable, error.status_code) == (MalformedResponseError, False, 200)
    assert "longer than 100,000 bytes" in str(error)
    assert "raise max_response_bytes" in str(error)
    assert "gpu-0: the answer of http" in str(error)
    assert requests == 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("coding", ["plain", "chunks", "gzip", "br", "broken gzip"])
async def test_a_longer_error_is_that_error(kind: str, coding: str, trusted: Authority) -> None:
    body = orjson.dumps({"error": {"message": "Out of memory."}})
    status = b"503 Busy"
    if coding == "plain":
        script = says(answer(body + b" " * LONG, status=status))
    elif coding == "chunks":
        script = says(_OK.replace(b"200 OK", status) + b"transfer-encoding: chunked\r\n\r\n", _CHUNK, again=True)
    elif coding == "gzip":
        script = says(answer(gzip.compress(body + b" " * LONG), b"content-encoding: gzip", status=status))
    else:
        script = says(answer(body, b"content-encoding: " + coding[-4:].strip().encode(), status=status))
    error, _ = await error_of(kind, script, trusted)
    if kind == "litellm-aiohttp":
        return  # it has no status for an error that it cannot read
    assert (type(error), error.status_code, error.retryable) == (ServerError, 503, True)
    assert ("Out of memory" in str(error)) is (coding in ("plain", "gzip"))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("coding", ["", "gzip", "members", "deflate", "bare deflate"])
async def test_an_answer_within_the_bound(kind: str, coding: str, trusted: Authority) -> None:
    body = orjson.dumps(_chat("ok", {"model": "m"}))
    if kind == "litellm-anthropic":
        block = {"type": "text", "text": "Hello there."}
        rest: dict[str, Any] = {"stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}}
        rest |= {"id": "a", "type": "message", "role": "assistant", "model": "m"}
        body = orjson.dumps({"content": [block], **rest})
    wbits = {"gzip": 31, "deflate": 15, "bare deflate": -15}.get(coding)
    sent, headers = body, []
    if coding == "members":
        sent, headers = gzip.compress(body[:50]) + gzip.compress(body[50:]), [b"content-encoding: gzip"]
    elif wbits is not None:
        coder = zlib.compressobj(9, zlib.DEFLATED, wbits)
        sent = coder.compress(body) + coder.flush()
        headers = [b"content-encoding: " + coding.split()[-1].encode()]
    context = trusted.serving() if kind == "native-tls" else None
    async with scripted(says(answer(sent, *headers)), context) as server:
        reply = await ask(kind, server.url, most=max(len(body), len(sent)))
    assert reply.body["choices"][0]["message"]["content"] == "Hello there."


@pytest.mark.parametrize("bomb", ["announced", "until it closes", "gzip"])
async def test_what_litellm_asks_in_a_thread_is_bounded_too(bomb: str) -> None:
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    from infermesh.transports.litellm_clients import BOUND, Bound

    handler: Any = HTTPHandler()
    BOUND.set(Bound(MOST, "gpu-0", "http://host"))
    async with scripted(BOMBS[bomb]()) as server:
        with pytest.raises(MalformedResponseError, match="longer than 100,000 bytes"):
            await asyncio.to_thread(handler.post, server.url, json={})
    async with scripted(says(answer(gzip.compress(b"{}"), b"content-encoding: gzip"))) as server:
        found = await asyncio.to_thread(handler.post, server.url, json={})
    assert found.content == b"{}"
    handler.close()


@pytest.mark.parametrize("most", [0, 1, 63, 64, 65])
@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("wbits", [31, 15])
def test_a_bound_is_exact(most: int, step: int, wbits: int) -> None:
    encoded = deflated(wbits, 64)
    inflater = Inflater(most)
    fits = all(inflater.add(encoded[at : at + step]) for at in range(0, len(encoded), step))
    assert fits is (most >= 64)
    assert len(inflater.data) <= most
    assert inflater.complete is fits or not fits


def test_what_is_decoded_is_what_was_encoded() -> None:
    text = orjson.dumps(list(range(200_000)))
    encoded = gzip.compress(text) + gzip.compress(b"and more") + b"\0\0"
    inflater = Inflater(10_000_000)
    assert all(inflater.add(encoded[at : at + 1000]) for at in range(0, len(encoded), 1000))
    assert inflater.data == text + b"and more"
    assert inflater.complete


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


TRAILERS = (_OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1000)


@pytest.mark.parametrize(
    ("script", "most", "expected"),
    [
        (says(answer(deflated(31, 40_000_000), b"content-encoding: gzip")), 4_000_000, 12_000_000),
        (BOMBS["small chunks"](), 300_000, 3_000_000),
        (says(*TRAILERS, again=True), 300_000, 60_000_000),
    ],
    ids=["gzip", "small chunks", "trailers"],
)
async def test_the_memory_that_one_takes_is_bounded(
    script: Script, most: int, expected: int, trusted: Authority, memory: Callable[[], int]
) -> None:
    error, _ = await error_of("native", script, trusted, most)
    assert type(error) is MalformedResponseError
    assert memory() < expected


@pytest.mark.parametrize("piece", [b"a: b\r\n", b"x" * 1000, b"x\r\n\r\nHTTP/1.1 103 Early Hints\r\na: "])
async def test_a_head_without_end(piece: bytes, trusted: Authority) -> None:
    error, _ = await error_of("native", says(b"HTTP/1.1 103 Early Hints\r\nb: ", piece * 100, again=True), trusted)
    assert (type(error), error.retryable) == (MalformedResponseError, True)
    assert "headers of more than 1 MiB" in str(error)


async def test_a_row_whose_answer_is_too_long_is_not_tried_again(trusted: Authority) -> None:
    async with scripted(BOMBS["gzip"]()) as server:
        async with LMClient("hosted_vllm/m", api_base=server.url, max_response_bytes=MOST) as client:
            batch = await client.agenerate_batch(["a"] * 8)
        deployments: dict[str, Any] = {label: {"model": "m", "api_base": server.url} for label in "ab"}
        async with LMClient("m", deployments=deployments, max_response_bytes=MOST) as client:
            with pytest.raises(MalformedResponseError, match=r"100,000"):
                await client.agenerate("a")
    assert {type(error) for error in batch.errors} == {MalformedResponseError}
    assert len(server.requests) == 9


async def test_vectors_that_are_too_long_together_are_asked_for_apart(trusted: Authority) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = len(orjson.loads(bodies.pop(0))["input"])
        data = [{"index": i, "embedding": [0.5] * 100} for i in range(count)]
        writer.write(answer(orjson.dumps({"data": data, "model": "m", "object": "list"})))
        await writer.drain()

    bodies: list[bytes] = []
    async with (
        scripted(script, bodies=bodies) as server,
        LMClient("hosted_vllm/m", api_base=server.url, max_response_bytes=1500) as client,
    ):
        batch = await client.aembed_batch(["a"] * 8, micro_batch_size=8)
    assert batch.failures == {}
    assert [len(result.embedding) for result in batch.results if result is not None] == [100] * 8


def test_a_bound_that_is_none_is_refused() -> None:
    for bound in (0, None):
        with pytest.raises(ConfigError, match="max_response_bytes: expected a number of bytes, at least 1, got"):
            LMClient("m", max_response_bytes=bound)  # type: ignore[arg-type]
