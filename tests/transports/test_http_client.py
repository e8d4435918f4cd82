"""The HTTP client against a server that answers byte by byte what a test says, over plain connections and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from infermesh.errors import APIConnectionError, MalformedResponseError, RequestError, RequestTimeoutError
from infermesh.transports.http.client import HttpClient
from infermesh.transports.http.connection import Connection, Response, _keeps

from .conftest import Authority

BODY = b'{"ok": true}'
OK = b"HTTP/1.1 200 OK\r\nX-Request-ID: r-1\r\ncontent-length: 12\r\n\r\n" + BODY


class Server:
    """Answers each request with the next of ``answers``, or the last again; ``None`` closes, ``...`` says nothing."""

    def __init__(self) -> None:
        self.answers: list[Any] = [OK]
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []
        self.changed = asyncio.Condition()
        self.port = 0
        self.scheme = "http"
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.append(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open -= 1
            await self.tell()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not (isinstance(answer, bytes) and answer.startswith(b"HTTP/1.1 413")):
            head += await reader.readexactly(length)
        self.requests.append(head)
        await self.tell()
        if answer is ...:
            await reader.read()
            return False
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        return b"connection: close" not in answer and not answer.startswith(b"HTTP/1.0")

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, met: Callable[[], bool]) -> None:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(met), 10.0)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@pytest.fixture(params=["http", "https"])
async def server(request: pytest.FixtureRequest, trusted: Authority) -> AsyncIterator[Server]:
    made = Server()
    made.scheme = request.param
    context = trusted.serving("127.0.0.1", "replicas.invalid") if made.scheme == "https" else None
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=2**22, ssl=context)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    made.hang_up()
    listening.close()
    await listening.wait_closed()
    await made.until(lambda: not made.open)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[HttpClient]:
    made = of(server.url)
    yield made
    await made.aclose()


def of(url: str, **headers: str) -> HttpClient:
    return HttpClient("gpu-0", url, {"chat_completion": url + "/chat/completions?a=b"}, headers)


def post(client: HttpClient, content: bytes = b"{}", timeout: float | None = 10.0) -> Awaitable[Response]:
    return client.post("chat_completion", content, timeout)


async def failure(client: HttpClient, timeout: float = 10.0) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await post(client, timeout=timeout)
    return caught.value


async def test_one_request(server: Server) -> None:
    client = of(server.url, accept="x/y")
    answer = await post(client, b'{"a": 1}')
    assert (answer.status, answer.data) == (200, BODY)
    assert (answer.header("x-request-id"), answer.header("X-REQUEST-ID"), answer.header("nope")) == ("r-1", "r-1", None)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/chat/completions?a=b HTTP/1.1",
        f"host: 127.0.0.1:{server.port}".encode(),
        *([b"accept-encoding: gzip"] if server.scheme == "https" else []),
        b"accept: x/y",
        b"content-length: 8",
    ]
    assert body == b'{"a": 1}'
    await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"ok"\r\n7\r\n: true}\r\n0\r\n\r\n',
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nc;x=y\r\n" + BODY + b"\r\n0\r\ntrailer: 1\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\ncontent-length: %d\r\n\r\n%b"
        % (len(gzip.compress(BODY, mtime=0)), gzip.compress(BODY, mtime=0)),
        b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 12\r\n\r\n" + BODY,
        b"HTTP/1.1 200\r\nx: %b\r\ncontent-length: 12\r\n\r\n%b\r\n" % (b"y" * 1_000_000, BODY),
    ],
    ids=[
        *("chunked", "trailers", "early-hints", "continue", "gzip", "close", "until-the-end", "http-1.0"),
        *("offers-an-upgrade", "huge-header"),
    ],
)
async def test_ways_to_frame_an_answer(answer: bytes, server: Server, client: HttpClient) -> None:
    server.answers = [answer]
    for _ in range(2):
        found = await post(client)
        assert (found.status, found.data) == (200, BODY)
    ends = b"connection: close" in answer or answer.startswith(b"HTTP/1.0")
    assert server.connections == (2 if ends else 1)


@pytest.mark.parametrize("header", [b"connection: close", b"content-encoding: gzip\r\ncontent-length: 0"])
async def test_an_empty_body(header: bytes, server: Server, client: HttpClient) -> None:
    server.answers = [b"HTTP/1.1 401 Unauthorized\r\n%b\r\n\r\n" % header]
    for _ in range(2):
        assert (await post(client))[:2] == (401, b"")


async def test_answers_in_pieces(server: Server, client: HttpClient) -> None:
    big = orjson.dumps({"x": "y" * 3_000_000})
    server.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(big), big)]
    for _ in range(3):
        assert (await post(client, big)).data == big
    assert server.requests[0].endswith(big)
    assert server.connections == 1


async def test_connections_are_kept_and_as_many_as_needed(server: Server, client: HttpClient) -> None:
    for _ in range(3):
        await asyncio.gather(*[post(client) for _ in range(5)])
    assert (server.connections, len(server.requests)) == (5, 15)


async def test_a_kept_connection_that_the_server_has_closed(server: Server, client: HttpClient) -> None:
    await post(client)
    server.hang_up()
    await server.until(lambda: not server.open)
    await asyncio.sleep(0)
    assert (await post(client)).status == 200
    assert server.connections == 2


async def test_what_nobody_asked_for_is_not_an_answer(server: Server, client: HttpClient) -> None:
    late = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    server.answers = [OK + late, OK]
    assert (await post(client)).data == BODY
    assert (await post(client)).status == 200
    assert server.connections == 2


@pytest.mark.long
async def test_closed_connections_leave_no_garbage(server: Server, client: HttpClient) -> None:
    server.answers = [OK.replace(b"content", b"connection: close\r\ncontent")]
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await post(client)
        await server.until(lambda: not server.open)
        for _ in range(20):  # until the event loop has let go of them too
            await asyncio.sleep(0)
        assert not [one for one in gc.get_objects() if isinstance(one, Connection)]
    finally:
        gc.enable()


async def test_an_answer_before_the_request_was_read(server: Server, client: HttpClient) -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    server.answers = [refusal, OK]
    with contextlib.suppress(APIConnectionError):  # the server's reset may overtake its answer
        assert (await post(client, b"x" * 20_000_000)).status == 413
    assert (await post(client)).status == 200


async def test_a_server_that_hangs_up_while_the_request_is_written() -> None:
    """It closes its half, and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        client = of(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
        asking = asyncio.ensure_future(post(client, b"x" * 20_000_000, timeout=None))
        peer, _ = await asyncio.wait_for(client.loop.sock_accept(listening), 10.0)
        with peer:
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(APIConnectionError):
                await asyncio.wait_for(asking, 10.0)
        await client.aclose()


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (None, APIConnectionError, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-le\0connection: close", MalformedResponseError, "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\nconnection: close\r\n\r\n{", APIConnectionError, "broke before"),
        (b"HTTP/1.1 200 OK\r\nconnection: close", APIConnectionError, "broke before"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
            MalformedResponseError,
            "not HTTP .*Content-Length",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            MalformedResponseError,
            "not HTTP .*Content-Length",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", MalformedResponseError, "chunk size"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2\r\nconnection: close", MalformedResponseError, "not HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", MalformedResponseError, "scheme"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", MalformedResponseError, "not HTTP"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx",
            MalformedResponseError,
            "cannot be decoded .*br",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx",
            MalformedResponseError,
            "cannot be decoded",
        ),
    ],
)
async def test_broken_answers(
    answer: bytes | None, expected: type[RequestError], said: str, server: Server, client: HttpClient
) -> None:
    server.answers = [answer, OK]
    with pytest.raises(expected, match=said) as caught:
        await post(client)
    assert f"gpu-0: {'the answer of ' if expected is MalformedResponseError else ''}{server.scheme}://" in str(
        caught.value
    )
    assert caught.value.retryable
    assert (await post(client)).status == 200


async def test_a_timeout_closes_the_connection(server: Server, client: HttpClient) -> None:
    server.answers = [...]
    error = await failure(client, timeout=0.05)
    assert isinstance(error, RequestTimeoutError)
    assert "0.05 s" in str(error)
    await server.until(lambda: not server.open)
    server.answers = [OK]
    assert (await post(client)).status == 200


async def test_a_timeout_while_connecting() -> None:
    with socket.socket() as full:  # its queue takes one connection, and nobody accepts
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        client = of(f"http://127.0.0.1:{full.getsockname()[1]}/v1")
        error = await failure(client, timeout=0.1)
        assert type(error) is APIConnectionError
        assert "no connection within 0.1 s" in str(error)
        await client.aclose()
        for filler in fillers:
            filler.close()


async def test_a_cancelled_request_closes_its_connection_alone(server: Server, client: HttpClient) -> None:
    server.answers = [..., ..., OK]
    dropped, kept = (asyncio.ensure_future(post(client)) for _ in range(2))
    await server.until(lambda: len(server.requests) == 2)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropped
    await server.until(lambda: server.open == 1)
    assert not kept.done()
    assert (await post(client)).status == 200
    await client.aclose()
    with pytest.raises(APIConnectionError, match="closed") as caught:
        await kept
    assert not caught.value.retryable


@pytest.mark.parametrize("soon", [False, True])
async def test_cancelled_as_the_answer_comes(soon: bool, server: Server, client: HttpClient) -> None:
    """The connection may serve the next request by then, and is left alone."""
    released = client.released

    def cancelling(connection: Any) -> None:
        released(connection)
        client.loop.call_soon(asking.cancel) if soon else asking.cancel()

    client.released = cancelling  # type: ignore[method-assign]
    asking = asyncio.ensure_future(post(client))
    with pytest.raises(asyncio.CancelledError):
        await asking
    client.released = released  # type: ignore[method-assign]
    assert (await post(client)).status == 200
    assert server.connections == 1


@pytest.mark.parametrize("announced", [True, False])
async def test_idle_connections_are_closed_before_the_server_does(
    announced: bool, server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if announced:
        server.answers = [OK.replace(b"content", b"Keep-Alive: timeout=0, max=9\r\ncontent")]
    else:
        monkeypatch.setattr("infermesh.transports.http.connection._KEEP_ALIVE_S", 0.1)
    await post(client)
    await server.until(lambda: not server.open)


@pytest.mark.parametrize(
    ("announced", "expected"),
    [(None, 4.0), ("timeout=5", 4.0), ("max=100, Timeout = 10", 8.0), ("timeout=9999", 60.0), ("timeout=soon", 4.0)],
)
def test_how_long_a_connection_is_used(announced: str | None, expected: float) -> None:
    assert _keeps(announced) == expected


async def test_a_request_as_the_server_closes_a_kept_connection(
    server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is read, and the connection not closed yet."""
    await post(client)
    ended = asyncio.Event()
    asked: list[asyncio.Future[Response]] = []
    received = Connection.eof_received

    def eof_received(connection: Connection) -> None:
        received(connection)
        if not asked:
            asked.append(asyncio.ensure_future(post(client)))
            ended.set()

    monkeypatch.setattr(Connection, "eof_received", eof_received)
    server.hang_up()
    await asyncio.wait_for(ended.wait(), 10.0)
    assert (await asked[0]).status == 200


async def test_who_waits_to_connect_takes_what_comes_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infermesh.transports.http.client._CONNECTING", 1)
    client = of(server.url)
    await post(client)
    async with client._connecting:
        first, second = (asyncio.ensure_future(post(client)) for _ in range(2))
        assert (await first).status == 200
        assert not second.done()
    assert (await second).status == 200
    assert server.connections == 1
    await client.aclose()


@pytest.mark.parametrize("passes", range(5))
async def test_cancelled_while_the_connection_is_made(
    passes: int, server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel_in(left: int) -> None:
        client.loop.call_soon(cancel_in, left - 1) if left else asking.cancel()

    monkeypatch.setattr("infermesh.transports.http.route._tune", lambda _: cancel_in(passes))
    asking = asyncio.ensure_future(post(client))
    server.answers = [...]
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not client._open
    monkeypatch.undo()
    server.answers = [OK]
    assert (await post(client)).status == 200
    await client.aclose()
    await server.until(lambda: not server.open)


async def test_closed_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told at once; what the lookup finds in the end, an error too, is nobody's business."""
    answered = asyncio.Event()
    noise: list[Any] = []

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        await answered.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: noise.append(context))
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    client = of("http://replicas.invalid:1/v1")
    waiting = [asyncio.ensure_future(post(client, timeout=None)) for _ in range(70)]
    await asyncio.sleep(0)
    await client.aclose()
    for one in waiting:
        with pytest.raises(APIConnectionError, match="was closed"):
            await asyncio.wait_for(one, 10.0)
    answered.set()
    lookup = client._way._addresses._lookup
    assert lookup is not None
    await asyncio.wait([lookup])
    del client, waiting, one, lookup
    gc.collect()
    assert noise == []


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".local"])
async def test_a_name_that_cannot_be_resolved(host: str) -> None:
    client = of(f"http://{host}:1/v1")
    assert "the host name cannot be resolved" in str(await failure(client))
    await client.aclose()


async def test_a_name_that_is_resolved_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        if not found:
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    client = of(f"{server.scheme}://replicas.invalid:1/v1")
    assert "cannot be resolved" in str(await failure(client))
    found.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port)))
    assert (await post(client)).status == 200
    await client.aclose()


async def test_a_name_with_several_addresses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take turns, one that refuses is passed over, and the name is looked up once for all who wait."""
    with socket.socket() as closed:  # bound, not listening
        closed.bind(("127.0.0.1", 0))
        asked: list[str] = []

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            if host == "127.0.0.1":  # uvloop asks again for what it connects to
                return [(*stream, (host, port))]
            asked.append(host)
            await asyncio.sleep(0)
            return [(*stream, closed.getsockname()), (*stream, ("127.0.0.1", server.port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        client = of(f"{server.scheme}://replicas.invalid:1/v1")
        await asyncio.gather(*[post(client) for _ in range(6)])
        await client.aclose()
    assert (server.connections, asked) == (6, ["replicas.invalid"])
