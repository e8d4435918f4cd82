"""Servers that close a kept connection without saying so: what is lost is sent again, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from infermesh import LMClient
from infermesh.errors import APIConnectionError
from infermesh.transports.http.client import HttpClient
from infermesh.transports.late_values import LateValues
from infermesh.transports.native import NativeTransport
from infermesh.types import Request

from .conftest import Authority, _chat, read_request

BODY = orjson.dumps(_chat("ok", {"model": "m"}))
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Impatient:
    """A server that answers once on each connection, and then ends it in its own ``way``.

    ``at once``: with the answer. ``unread``: when the next request comes, which it leaves unread, so that the other
    side is told of a reset. ``read``: after it has read that request. ``hang up``: it never answers anything.
    """

    def __init__(self, way: str) -> None:
        self.way = way
        self.read = 0  # requests that it has read
        self.answered = 0
        self.url = ""
        self.connections: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.current_task())
        try:
            await read_request(reader)
            self.read += 1
            if self.way != "hang up":
                writer.write(ANSWER)
                self.answered += 1
            if self.way == "unread":
                await reader.readexactly(1)
                writer.transport.abort()
            elif self.way == "read":
                await read_request(reader)
                self.read += 1
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def impatient(way: str, authority: Authority | None = None) -> AsyncIterator[Impatient]:
    made = Impatient(way)
    context = authority.serving() if authority else None
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.url = f"http{'s' if authority else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield made
    server.close()
    await asyncio.gather(*filter(None, made.connections))


def of(url: str) -> HttpClient:
    return HttpClient("gpu-0", url, {"chat_completion": url + "/chat/completions"}, {})


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("way", ["at once", "unread", "read"])
async def test_it_costs_no_retry(way: str, scheme: str, trusted: Authority) -> None:
    async with (
        impatient(way, trusted if scheme == "https" else None) as server,
        LMClient("hosted_vllm/m", api_base=server.url, max_retries=0, max_parallel_requests=4) as client,
    ):
        started = asyncio.get_running_loop().time()
        batch = await client.agenerate_batch([str(number) for number in range(40)])
        took = asyncio.get_running_loop().time() - started
    assert batch.failures == {}
    assert took < 10  # a wait before each would take 40 s
    assert server.answered == 40
    attempts = [result.metrics.attempts for result in batch.results if result is not None and result.metrics]
    assert len(attempts) == 40
    assert {len(each) for each in attempts} <= {1, 2}
    assert sum(map(len, attempts)) <= 40 + 8  # after some it is known that the server keeps none
    # What the server has read is in the books, whether or not it answered.
    assert sum(map(len, attempts)) >= server.read
    assert {each[0].error_type for each in attempts if len(each) == 2} <= {"connection"}


async def test_a_connection_that_has_ended_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end has arrived, and the event loop, which was busy, has not seen it yet."""
    monkeypatch.setattr("infermesh.transports.http.client._TRUSTED_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        client = of(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
        peers = []
        for _ in range(3):
            asking = asyncio.ensure_future(client.post("chat_completion", b"{}", 10.0))
            peer, _ = await asyncio.wait_for(client.loop.sock_accept(listening), 10.0)
            peers.append(peer)
            assert (await client.loop.sock_recv(peer, 65_536)).startswith(b"POST")
            peer.send(ANSWER)
            await asking
            peer.close()  # at once: the loop has no turn before the next request
        assert len(client._open) == 1
        await client.aclose()


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.long
async def test_a_new_connection_that_breaks_is_a_failure(retries: int) -> None:
    async with (
        impatient("hang up") as server,
        LMClient("hosted_vllm/m", api_base=server.url, max_retries=retries) as client,
    ):
        batch = await client.agenerate_batch(["a"])
        (error,) = batch.errors
    assert isinstance(error, APIConnectionError)
    assert error.metrics is not None
    assert len(error.metrics.attempts) == server.read == 1 + retries


async def test_a_request_with_values_of_variables_is_sent_again_on_a_new_connection() -> None:
    """As any other is: it is a filled-in copy of the request that the lost connection carried."""
    async with impatient("read") as server:
        transport = LateValues(NativeTransport(label="gpu-0", model="m", api_base=server.url), [], {})
        requests = [Request("chat_completion", {"messages": []}) for _ in range(3)]
        await asyncio.gather(*(transport.send(request, 10.0) for request in requests))
        asked = requests[0]
        with pytest.raises(APIConnectionError):
            await transport.send(asked, 10.0)
        assert asked.fresh
        assert (await transport.send(asked, 10.0)).status_code == 200
        await transport.aclose()


async def test_a_request_that_ends_every_connection_is_a_failure() -> None:
    """The first try on a kept connection may be the server's doing; the second, on a new one, is not."""
    poison = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal poison
        try:
            while True:
                _, body = await read_request(reader)
                if b"poison" in body:
                    poison += 1
                    break
                writer.write(ANSWER)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with LMClient("hosted_vllm/m", api_base=url, max_retries=0, max_parallel_requests=1) as client:
        batch = await client.agenerate_batch(["good", "poison", "good"])
    server.close()
    first, error, last = batch.errors
    assert (first, last) == (None, None)
    assert isinstance(error, APIConnectionError)
    assert error.metrics is not None
    assert len(error.metrics.attempts) == poison == 2


async def test_a_kept_connection_that_breaks_later_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server had the request for long: it is not its idle connection that it has closed."""
    monkeypatch.setattr("infermesh.transports.http.connection._CROSSED_S", 0.0)
    async with impatient("read") as server, LMClient("hosted_vllm/m", api_base=server.url, max_retries=0) as client:
        await client.agenerate("a")
        with pytest.raises(APIConnectionError, match="without an answer"):
            await client.agenerate("a")


async def test_a_broken_answer_on_a_kept_connection_is_a_failure() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER)
        await read_request(reader)
        writer.write(ANSWER[:5])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with LMClient("hosted_vllm/m", api_base=url, max_retries=0) as client:
        await client.agenerate("a")
        with pytest.raises(APIConnectionError, match="broke before the answer was complete"):
            await client.agenerate("a")
    server.close()
