"""Proxies: which one the environment names, and requests through real ones, on every event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import anyio
import pytest
from tiny_proxy import Socks4ProxyHandler, Socks5ProxyHandler

from infermesh.errors import APIConnectionError, InputError, RequestError
from infermesh.transports.http.client import HttpClient
from infermesh.transports.http.connection import Response
from infermesh.transports.http.form import form
from infermesh.transports.http.proxies import Proxy, proxy_for
from infermesh.types import Audio

from .conftest import KEY, Authority, Loopback
from .proxy import HttpProxy

BASIC = "Basic bWU6YTpiQGM="  # me, a:b@c
AS_ME = "me:a%3Ab%40c@"


@pytest.fixture
async def proxy() -> AsyncIterator[HttpProxy]:
    async with HttpProxy().serving() as serving:
        yield serving


@pytest.fixture
async def secure_proxy(trusted: Authority) -> AsyncIterator[HttpProxy]:
    async with HttpProxy().serving(trusted.serving()) as serving:
        yield serving


class Urls:
    """The loopback server under a name that only a proxy can find."""

    def __init__(self, loopback: Loopback, port: int) -> None:
        self.http = f"http://endpoint.invalid:{loopback.port}/ok/v1"
        self.https = f"https://endpoint.invalid:{port}/ok/v1"


@pytest.fixture
async def urls(loopback: Loopback, trusted: Authority) -> Urls:
    return Urls(loopback, await loopback.listen(trusted.serving("endpoint.invalid")))


async def ask(url: str, times: int = 1) -> Response:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    client = HttpClient("gpu-0", url, {"chat_completion": url + "/chat/completions"}, headers)
    try:
        for _ in range(times):
            answer = await client.post("chat_completion", b'{"model": "m"}', 10.0)
        return answer
    finally:
        await client.aclose()


async def failure(url: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await ask(url)
    return caught.value


async def test_requests_are_forwarded(
    proxy: HttpProxy, urls: Urls, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{AS_ME}{proxy.address}")
    proxy.wanted = BASIC
    assert (await ask(urls.http, times=3)).status == 200
    assert proxy.heads[0].startswith(f"POST {urls.http}/chat/completions HTTP/1.1\r\n".encode())
    assert proxy.fields()["host"] == f"endpoint.invalid:{loopback.port}"
    assert len(proxy.heads) == 1  # the connection is kept
    assert len(loopback.requests) == 3


async def test_a_tunnel_is_asked_for(
    proxy: HttpProxy, urls: Urls, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy learns the endpoint's name, and the endpoint nothing of the proxy's password."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://{AS_ME}{proxy.address}")
    proxy.wanted = BASIC
    assert (await ask(urls.https, times=3)).status == 200
    (head,) = proxy.heads
    place = urls.https.split("/")[2]
    assert head == f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\nproxy-authorization: {BASIC}\r\n\r\n".encode()
    assert all("proxy-authorization" not in headers for headers in loopback.headers)
    assert len(loopback.requests) == 3


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_over_tls(
    scheme: str, secure_proxy: HttpProxy, urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"https://{secure_proxy.address}")
    assert (await ask(getattr(urls, scheme))).status == 200
    assert len(secure_proxy.heads) == 1


@contextlib.asynccontextmanager
async def socks(handler: Socks4ProxyHandler | Socks5ProxyHandler) -> AsyncIterator[str]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    serving = asyncio.ensure_future(listener.serve(handler.handle))
    try:
        yield f"localhost:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await listener.aclose()


@pytest.mark.parametrize("target", ["http", "https"])
@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
async def test_socks(
    scheme: str, target: str, loopback: Loopback, trusted: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Socks4ProxyHandler("me") if scheme.startswith("socks4") else Socks5ProxyHandler("me", "a:b@c")
    url = (loopback.url() if target == "http" else loopback.secure_url()).replace("127.0.0.1", "localhost")
    async with socks(handler) as address:
        monkeypatch.setenv("all_proxy", f"{scheme}://{AS_ME}{address}")
        assert (await ask(url, times=2)).status == 200


async def test_socks_with_a_wrong_password(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    async with socks(Socks5ProxyHandler("me", "other")) as address:
        monkeypatch.setenv("all_proxy", f"socks5://{AS_ME}{address}")
        error = await failure(loopback.url())
    assert type(error) is APIConnectionError
    assert f"through the proxy socks5://{address}: it refused the connection" in str(error)
    assert "a:b" not in str(error)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_is_not_there(scheme: str, urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"{scheme}://{AS_ME}127.0.0.1:1")
    error = await failure(urls.https)
    assert type(error) is APIConnectionError
    assert f"through the proxy {scheme}://127.0.0.1:1: connection refused" in str(error)
    assert "HTTPS_PROXY" in str(error)
    assert "a:b" not in str(error)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\n\r\nno",
            "refused the connection (HTTP 407)",
        ),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n", "refused the connection (HTTP 403)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200", "the server reset the connection"),
    ],
)
async def test_a_proxy_that_gives_no_tunnel(
    answer: bytes, said: str, proxy: HttpProxy, urls: Urls, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
    proxy.answer = answer
    error = await failure(urls.https)
    assert type(error) is APIConnectionError
    assert said in str(error)
    assert loopback.requests == []


async def test_a_tunnel_to_a_server_with_a_wrong_certificate(
    proxy: HttpProxy, loopback: Loopback, trusted: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
    error = await failure(loopback.secure_url().replace("127.0.0.1", "endpoint.invalid"))
    assert type(error) is APIConnectionError
    assert "not valid for 'endpoint.invalid'" in str(error)
    assert loopback.requests == []


async def test_a_request_that_is_cancelled_while_a_tunnel_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    asking = asyncio.ensure_future(ask("https://endpoint.invalid/v1"))
    await asyncio.wait_for(asked.wait(), 10.0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(gone.wait(), 10.0)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_large_form(
    scheme: str, proxy: HttpProxy, urls: Urls, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", f"http://{proxy.address}")
    url = getattr(urls, scheme)
    client = HttpClient("gpu-0", url, {"transcription": url + "/audio/transcriptions"}, {})
    clip = Audio(bytes(900_000), "clip.wav")
    assert (await client.post_form("transcription", form({"model": ["m"]}, clip), 10.0)).status == 200
    assert loopback.requests[0]["file"] == {"filename": "clip.wav", "data": clip.data}
    await client.aclose()


@pytest.mark.parametrize("value", ["ftp://proxy:21", "http://", "http://[::1", "http://proxy:port"])
async def test_what_is_no_proxy(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", value)
    error = await failure("http://endpoint.invalid/v1")
    assert type(error) is InputError
    assert "HTTP_PROXY holds no proxy's URL" in str(error)


@pytest.mark.parametrize(
    ("environ", "scheme", "expected"),
    [
        ({}, "http", None),
        ({"http_proxy": "http://a:3128"}, "http", Proxy("http", "a", 3128)),
        ({"http_proxy": "http://a:3128"}, "https", None),
        ({"HTTPS_PROXY": "http://a:3128"}, "https", Proxy("http", "a", 3128)),
        ({"ALL_PROXY": "a"}, "https", Proxy("http", "a", 80)),
        ({"all_proxy": "http://a", "https_proxy": "https://b"}, "https", Proxy("https", "b", 443)),
        ({"http_proxy": "http://low", "HTTP_PROXY": "http://up"}, "http", Proxy("http", "low", 80)),
        ({"http_proxy": "socks5h://u%40x:p%3Aw@[::1]"}, "http", Proxy("socks5h", "::1", 1080, "u@x", "p:w")),
        ({"http_proxy": "http://a", "no_proxy": "b,gpu-0"}, "http", None),
        ({"http_proxy": "http://a", "NO_PROXY": "gpu-0:8000"}, "http", None),
        ({"http_proxy": "http://a", "NO_PROXY": "gpu-0:9000"}, "http", Proxy("http", "a", 80)),
        ({"http_proxy": "http://a", "no_proxy": "*"}, "http", None),
    ],
)
def test_what_the_environment_says(
    environ: dict[str, str], scheme: str, expected: Proxy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(scheme, "gpu-0", 8000) == expected


@pytest.mark.parametrize(
    ("host", "listed", "bypassed"),
    [
        ("a.cluster.local", ".cluster.local", True),
        ("a.cluster.local", "cluster.local", True),
        ("acluster.local", "cluster.local", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "x, 10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("fd00::7", "fd00::/8", True),
        ("::1", "::1", True),
    ],
)
def test_what_needs_no_proxy(host: str, listed: str, bypassed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://a")
    monkeypatch.setenv("no_proxy", listed)
    assert (proxy_for("http", host, 80) is None) is bypassed
