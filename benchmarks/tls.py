"""The client over TLS beside other HTTP clients, with and without cancelled requests: `python -m benchmarks.tls`.

The same short completions go to the same endpoint at https://, by turns, over HTTP/1.1: through bare loops over HTTP
clients, through the client's own connections without the rest, through `generate_batch`, and through a run, which
stores the answers. Then again with one request in twenty given up while it waits for an answer that never comes;
afterwards the endpoint is asked how many of these are still open.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.endpoint import TlsEndpoint, tls_endpoint
from benchmarks.harness import BARE, Result, Target, isolated, ratio, rounds, script
from benchmarks.jobs import run_once
from benchmarks.loops import WAYS, by_workers, prompts, request_body

WINDOW = 64
ONE_IN = 20  # is cancelled, in the second part
PATIENCE_S = 0.01
_WARM_UP = 128
AIOHTTP, PYQWEST, HTTPX = "bare aiohttp loop", "bare pyqwest loop", "bare httpx2 loop"
OWN, BATCH, RUN = "the client's connections", "generate_batch", "run"
SLOW = (HTTPX,)
_ANSWERED, _NEVER = "/chat/completions", "/never/completions"
_HEADERS = {"content-type": "application/json"}

Post = Callable[[str, bytes], Awaitable[Any]]


@asynccontextmanager
async def _pyreqwest(endpoint: TlsEndpoint) -> AsyncIterator[Post]:
    from pyreqwest.client import ClientBuilder

    async with ClientBuilder().http1_only().max_connections(None).default_headers(_HEADERS).build() as client:

        async def post(path: str, content: bytes) -> Any:
            response = await client.post(endpoint.url + path).body_bytes(content).build().send()
            return memoryview(await response.bytes())

        yield post


@asynccontextmanager
async def _aiohttp(endpoint: TlsEndpoint) -> AsyncIterator[Post]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=_HEADERS) as session:

        async def post(path: str, content: bytes) -> Any:
            async with session.post(endpoint.url + path, data=content) as response:
                return await response.read()

        yield post


@asynccontextmanager
async def _pyqwest(endpoint: TlsEndpoint) -> AsyncIterator[Post]:
    from pyqwest import Client, HTTPTransport, HTTPVersion

    with open(endpoint.authority, "rb") as file:  # noqa: ASYNC230 - before anything is measured
        authority = file.read()
    transport = HTTPTransport(
        tls_ca_cert=authority,
        http_version=HTTPVersion.HTTP1,
        pool_max_idle_per_host=WINDOW,
        enable_otel=False,
    )
    client = Client(transport)

    async def post(path: str, content: bytes) -> Any:
        return (await client.post(endpoint.url + path, _HEADERS, content)).content

    yield post


@asynccontextmanager
async def _httpx(endpoint: TlsEndpoint) -> AsyncIterator[Post]:
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(timeout=600, limits=limits, headers=_HEADERS) as client:

        async def post(path: str, content: bytes) -> Any:
            return (await client.post(endpoint.url + path, content=content)).content

        yield post


@asynccontextmanager
async def _own(endpoint: TlsEndpoint) -> AsyncIterator[Post]:
    from infermesh.transports.http.client import HttpClient
    from infermesh.types import Operation

    operations: dict[str, Operation] = {_ANSWERED: "chat_completion", _NEVER: "text_completion"}
    urls = {operation: endpoint.url + path for path, operation in operations.items()}
    client = HttpClient("static", endpoint.url, urls, _HEADERS)

    async def post(path: str, content: bytes) -> Any:
        return (await client.post(operations[path], content, 600.0)).data

    yield post
    await client.aclose()


PEERS: dict[str, Callable[[TlsEndpoint], AbstractAsyncContextManager[Post]]] = {
    BARE: _pyreqwest,
    AIOHTTP: _aiohttp,
    PYQWEST: _pyqwest,
    HTTPX: _httpx,
    OWN: _own,
}
for _name, _package in ((BARE, "pyreqwest"), (PYQWEST, "pyqwest"), (HTTPX, "httpx2")):
    if not find_spec(_package):  # the extra "benchmarks" brings them
        del PEERS[_name]


def timed(way: str, endpoint: dict[str, str], requests: int, one_in: int) -> dict[str, float]:
    """Seconds and CPU seconds a request, and what is still open of those given up; made for ``isolated``."""
    import uvloop

    os.environ["SSL_CERT_FILE"] = endpoint["authority"]
    os.environ.pop("SSL_CERT_DIR", None)
    if way == RUN:
        found = run_once(endpoint["url"], requests, 1, WINDOW)
        return {"seconds": found["seconds"] / requests, "cpu_s": found["cpu_s"] / requests}
    if way == BATCH:
        WAYS[way](endpoint["url"], prompts(_WARM_UP), WINDOW)
        cpu, started = time.process_time(), time.perf_counter()
        answers = WAYS[way](endpoint["url"], prompts(requests), WINDOW)
        assert len(answers) == requests
        return _clocked(cpu, started, requests)
    return dict(uvloop.run(_timed(way, TlsEndpoint(**endpoint), requests, one_in)))


async def _timed(way: str, endpoint: TlsEndpoint, requests: int, one_in: int) -> dict[str, float]:
    async with PEERS[way](endpoint) as post:
        await _asked(post, _WARM_UP, 0)
        cpu, started = time.process_time(), time.perf_counter()
        await _asked(post, requests, one_in)
        found = _clocked(cpu, started, requests)
        if one_in:
            await asyncio.sleep(0.5)  # for a client that closes in its own time
            found["open"] = await asyncio.to_thread(endpoint.waiting)
    return found


def _clocked(cpu: float, started: float, requests: int) -> dict[str, float]:
    return {"seconds": (time.perf_counter() - started) / requests, "cpu_s": (time.process_time() - cpu) / requests}


async def _asked(post: Post, requests: int, one_in: int) -> None:
    import orjson

    loop = asyncio.get_running_loop()
    numbers = iter(range(1, requests + 1))

    async def ask(prompt: str) -> Any:
        content = orjson.dumps(request_body(prompt))
        if one_in and next(numbers) % one_in == 0:
            given_up = asyncio.ensure_future(post(_NEVER, content))
            loop.call_later(PATIENCE_S, given_up.cancel)
            with suppress(asyncio.CancelledError):
                await given_up
            return True
        return orjson.loads(await post(_ANSWERED, content))

    answers = await by_workers(prompts(requests), WINDOW, ask)
    assert None not in answers


def measure(quick: bool) -> Result:
    """Every way, some rounds; then the bare loops and the connections with cancelled requests."""
    requests, few, count = (2_000, 100, 2) if quick else (20_000, 400, 5)
    with tls_endpoint() as endpoint:

        def once(way: str, one_in: int) -> dict[str, Any]:
            number = few if way in SLOW else requests
            return dict(isolated(timed, way=way, endpoint=asdict(endpoint), requests=number, one_in=one_in))

        whole = rounds(count, {way: partial(once, way, 0) for way in (*PEERS, BATCH, RUN)})
        broken = rounds(count, {way: partial(once, way, ONE_IN) for way in PEERS if way not in SLOW})
    seconds = {way: [one["seconds"] for one in each] for way, each in whole.items()}
    targets = [
        Target("generate_batch over TLS, of the bare aiohttp loop", ratio(seconds[AIOHTTP], seconds[BATCH]), 1.5),
        Target("run over TLS, of the bare aiohttp loop", ratio(seconds[AIOHTTP], seconds[RUN]), 0.9),
        Target(
            "connections that wait for what was cancelled",
            max(one["open"] for one in broken[OWN]),
            0,
            at_least=False,
        ),
    ]
    if BARE in PEERS:
        targets.insert(
            0, Target("the connections, of the bare pyreqwest loop", ratio(seconds[BARE], seconds[OWN]), 0.5)
        )
    return Result(
        "tls",
        "TLS",
        f"{requests:,} requests to an endpoint at https:// ({few} where it is slow), HTTP/1.1, {WINDOW} in flight, "
        f"{count} rounds by turns, each way in a process of its own; medians. Right: the same with one request in "
        f"{ONE_IN} given up after {1000 * PATIENCE_S:.0f} ms, and how many of the {requests // ONE_IN:,} were still "
        "open at the endpoint half a second after the last.",
        ["", "requests/s", "of aiohttp's", "CPU µs a request", "CPU µs, some cancelled", "still open"],
        [_row(way, seconds, whole[way], broken.get(way)) for way in whole],
        targets,
    )


def _row(
    way: str, seconds: dict[str, list[float]], whole: list[dict[str, Any]], broken: list[dict[str, Any]] | None
) -> list[str]:
    def microseconds(found: list[dict[str, Any]]) -> str:
        return f"{1e6 * statistics.median(one['cpu_s'] for one in found):.1f}"

    cancelled = [microseconds(broken), f"{max(one['open'] for one in broken):,}"] if broken else ["", ""]
    rate = f"{1 / statistics.median(seconds[way]):,.0f}"
    return [way, rate, f"{ratio(seconds[AIOHTTP], seconds[way]):.2f}", microseconds(whole), *cancelled]


if __name__ == "__main__":
    script(measure)
