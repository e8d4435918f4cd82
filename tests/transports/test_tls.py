"""TLS: whose certificates are accepted, and what a broken connection means, on every event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import truststore

from infermesh.errors import APIConnectionError, InputError, RequestError
from infermesh.transports.http import trust
from infermesh.transports.http.client import HttpClient
from infermesh.transports.http.connection import Connection, Response

from .conftest import Authority

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Serve = Callable[..., Awaitable[str]]


@pytest.fixture(autouse=True)
async def noise() -> AsyncIterator[list[Any]]:
    """Nothing is left to the event loop to complain about."""
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    assert not heard


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server that reads, answers and closes; gives its URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(context: ssl.SSLContext | None, host: str = "127.0.0.1") -> str:
            async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(OK)
                    await writer.drain()
                writer.close()

            server = await asyncio.start_server(one, host, 0, ssl=context)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            shown = f"[{host}]" if ":" in host else host
            return f"https://{shown}:{server.sockets[0].getsockname()[1]}/v1"

        yield start


async def ask(url: str, timeout: float | None = 10.0, content: bytes = b"{}") -> Response:
    client = HttpClient("gpu-0", url, {"chat_completion": url + "/chat/completions"}, {})
    try:
        return await client.post("chat_completion", content, timeout)
    finally:
        await client.aclose()


async def failure(url: str, timeout: float = 10.0) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await ask(url, timeout)
    return caught.value


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_of_a_known_authority(version: ssl.TLSVersion, trusted: Authority, serve: Serve) -> None:
    context = trusted.serving()
    context.minimum_version = context.maximum_version = version
    assert (await ask(await serve(context))).status == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
async def test_an_address_of_ip_version_6(trusted: Authority, serve: Serve) -> None:
    assert (await ask(await serve(trusted.serving("::1"), "::1"))).status == 200


async def test_a_server_that_also_speaks_http_2(trusted: Authority, serve: Serve) -> None:
    """It is asked for HTTP/1.1, by name."""
    context = trusted.serving("localhost")
    context.set_alpn_protocols(["h2", "http/1.1"])
    names: list[tuple[str, str | None]] = []
    context.sni_callback = lambda socket, name, _: names.append((name, socket.selected_alpn_protocol()))
    url = await serve(context)
    assert (await ask(url.replace("127.0.0.1", "localhost"))).status == 200
    assert [name for name, _ in names] == ["localhost"]


@pytest.mark.parametrize(
    ("names", "expired", "said"),
    [
        ((), True, "certificate has expired"),
        (("elsewhere.example",), False, "not valid for '127.0.0.1'"),
        (("127.0.0.2",), False, "not valid for '127.0.0.1'"),
    ],
)
async def test_certificates_that_are_not_accepted(
    names: tuple[str, ...], expired: bool, said: str, trusted: Authority, serve: Serve
) -> None:
    error = await failure(await serve(trusted.serving(*names, expired=expired)))
    assert type(error) is APIConnectionError
    assert "certificate was not accepted" in str(error)
    assert said in str(error)


async def test_an_authority_that_is_not_known(authority: Authority, serve: Serve) -> None:
    error = await failure(await serve(authority.serving()))
    assert type(error) is APIConnectionError
    assert "certificate was not accepted (" in str(error)
    assert "SSL_CERT_FILE" in str(error)


async def test_a_name_is_verified_and_not_only_an_address(trusted: Authority, serve: Serve) -> None:
    url = await serve(trusted.serving("127.0.0.1"))
    assert (await ask(url)).status == 200
    assert "not valid for 'localhost'" in str(await failure(url.replace("127.0.0.1", "localhost")))


@contextlib.contextmanager
def raw(context: ssl.SSLContext | None, talk: Callable[[Any], None]) -> Iterator[tuple[str, asyncio.Future[None]]]:
    """A server of one connection in a thread, which does to its socket what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def work() -> None:
            connection, _ = listening.accept()
            connection.settimeout(10)
            with contextlib.suppress(OSError), connection:
                if context is None:
                    talk(connection)
                else:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        talk(secured)

        done = asyncio.get_running_loop().run_in_executor(None, work)
        yield f"https://127.0.0.1:{listening.getsockname()[1]}/v1", done


async def test_a_server_that_speaks_plain_http() -> None:
    with raw(None, lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as (url, done):
        assert "does the server speak plain http://" in str(await failure(url))
        await done


def answering(answer: bytes, farewell: bool) -> Callable[[ssl.SSLSocket], None]:
    def talk(connection: ssl.SSLSocket) -> None:
        connection.recv(1_000_000)
        connection.sendall(answer)
        if farewell:
            with contextlib.suppress(OSError):
                connection.unwrap()
        connection.close()

    return talk


@pytest.mark.parametrize("farewell", [False, True])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"])
async def test_a_server_that_closes_too_early(answer: bytes, farewell: bool, trusted: Authority) -> None:
    with raw(trusted.serving(), answering(answer, farewell)) as (url, done):
        error = await failure(url)
        await done
    assert type(error) is APIConnectionError
    assert ("broke before" if answer else "without an answer") in str(error)


async def test_an_answer_that_ends_with_the_connection(trusted: Authority) -> None:
    with raw(trusted.serving(), answering(b"HTTP/1.1 200 OK\r\n\r\n{}", farewell=True)) as (url, done):
        assert (await ask(url)).data == b"{}"
        await done


async def test_an_answer_that_may_have_been_cut_off(trusted: Authority) -> None:
    """Nothing says that it is whole: neither its length, nor TLS's farewell."""
    if "uvloop" not in type(asyncio.get_running_loop()).__module__:
        pytest.skip("asyncio does not tell the one end from the other")
    with raw(trusted.serving(), answering(b"HTTP/1.1 200 OK\r\n\r\n{}", farewell=False)) as (url, done):
        assert "broke before" in str(await failure(url))
        await done


async def test_a_handshake_that_is_cut_off() -> None:
    with raw(None, lambda connection: connection.recv(1)) as (url, done):
        assert type(await failure(url)) is APIConnectionError
        await done


def silent(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


async def test_a_handshake_that_never_ends() -> None:
    """The time to connect covers it, and the connection is closed."""
    with raw(None, silent) as (url, done):
        error = await failure(url, timeout=0.1)
        assert type(error) is APIConnectionError
        assert "no connection within 0.1 s" in str(error)
        await asyncio.wait_for(done, 10.0)


async def test_a_request_that_is_cancelled_during_the_handshake() -> None:
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def talk(connection: Any) -> None:
        connection.recv(65_536)
        loop.call_soon_threadsafe(arrived.set)
        silent(connection)

    with raw(None, talk) as (url, done):
        asking = asyncio.ensure_future(ask(url, None))
        await asyncio.wait_for(arrived.wait(), 10.0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(done, 10.0)


async def test_a_large_request_waits_for_the_server(trusted: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network does not take yet is not encrypted ahead."""
    length, loop = 20_000_000, asyncio.get_running_loop()
    waits, go = asyncio.Event(), asyncio.Event()
    ahead: list[int] = []
    pause_writing = Connection.pause_writing

    def pausing(connection: Connection) -> None:
        pause_writing(connection)
        ahead.append(connection._transport.get_write_buffer_size())
        waits.set()

    def talk(connection: ssl.SSLSocket) -> None:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        body = connection.recv(65_536).partition(b"\r\n\r\n")[2]
        left = length - len(body)
        while left:
            left -= len(connection.recv(min(left, 1_000_000)))
        connection.sendall(OK)

    monkeypatch.setattr(Connection, "pause_writing", pausing)
    with raw(trusted.serving(), talk) as (url, done):
        asking = asyncio.ensure_future(ask(url, 30.0, b"x" * length))
        await asyncio.wait_for(waits.wait(), 10.0)
        go.set()
        assert (await asking).data == b"{}"
        await done
    assert max(ahead) < 1_000_000


async def test_others_have_their_turn_while_a_large_request_is_sent(trusted: Authority) -> None:
    turns, loop = 0, asyncio.get_running_loop()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not asking.done():
            loop.call_soon(turn)

    def talk(connection: ssl.SSLSocket) -> None:
        left = 20_000_000
        while left > 0:
            left -= len(connection.recv(1_000_000))
        connection.sendall(OK)

    with raw(trusted.serving(), talk) as (url, done):
        asking = asyncio.ensure_future(ask(url, 30.0, b"x" * 20_000_000))
        loop.call_soon(turn)
        assert (await asking).data == b"{}"
        await done
    assert turns > 70


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), ("garbage", "no certificates in it")])
async def test_a_certificate_file_that_is_none(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authorities.pem"
    if content:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    error = await failure("https://127.0.0.1:1/v1")
    assert type(error) is InputError
    assert f"SSL_CERT_FILE names {file}: {said}" in str(error)


@pytest.mark.parametrize("bundles", [trust._BUNDLES, ()])
def test_a_python_whose_openssl_finds_no_authorities(
    bundles: tuple[str, ...], trusted: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are looked for where distributions keep them, and come with a package in the end; one's own are added."""
    nowhere = ssl.get_default_verify_paths()._replace(openssl_cafile=str(tmp_path / "no"), openssl_capath=str(tmp_path))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(trust, "_BUNDLES", bundles)
    trust._context.cache_clear()
    known = trust.client_context().cert_store_stats()["x509_ca"]
    trust._context.cache_clear()
    assert known > 100


async def test_where_the_system_itself_decides(
    trusted: Authority, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows: their verification stands in for OpenSSL's."""
    monkeypatch.setattr(sys, "platform", "darwin")
    trust._context.cache_clear()
    assert isinstance(trust.client_context(), truststore.SSLContext)
    assert (await ask(await serve(trusted.serving()))).status == 200
    assert "not accepted" in str(await failure(await serve(trusted.serving("elsewhere.example"))))
    trust._context.cache_clear()
