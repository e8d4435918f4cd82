"""The way to an endpoint: its addresses, the proxy before it, and TLS."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aiohappyeyeballs import start_connection

from infermesh.transports.http.connection import Connection
from infermesh.transports.http.failures import ProxyRefusedError
from infermesh.transports.http.proxies import Proxy
from infermesh.transports.http.trust import client_context

__all__ = ["Route"]

_ADDRESSES_S = 10.0
_HAPPY_EYEBALLS_S = 0.25  # RFC 8305, section 8
_KEEPALIVE_IDLE_S = 30
_KEEPALIVE_INTERVAL_S = 10
_TUNNEL_HEAD = 65_536  # bytes that a proxy may take to say whether it lets a connection through


class Route:
    """Opens connections to one endpoint.

    Parameters
    ----------
    loop
        The event loop of the connections.
    host, port
        The endpoint.
    secure
        Whether it is spoken to over TLS.
    proxy
        What stands before it. An HTTP proxy forwards requests to ``http://`` endpoints, which is the request's
        business, and gives a tunnel to ``https://`` ones (``CONNECT``, RFC 9110, section 9.3.6).
    ca_bundle
        A file or a folder with further authorities.

    Raises
    ------
    ValueError
        ``ca_bundle`` or a variable such as ``SSL_CERT_FILE`` names no file of certificates.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        secure: bool,
        proxy: Proxy | None,
        ca_bundle: str | None = None,
    ) -> None:
        self._loop = loop
        self._host, self._port = host, port
        self._proxy = proxy
        self._name = host if secure else None
        self._proxy_name = proxy.host if proxy and proxy.scheme == "https" else None
        self._context = client_context(ca_bundle) if self._name or self._proxy_name else None
        self._addresses = _Addresses(loop, *((proxy.host, proxy.port) if proxy else (host, port)))

    async def open(self, protocol: Connection) -> None:
        """Open a connection, which then is the protocol's.

        Raises
        ------
        OSError, RuntimeError
            There is none. uvloop raises the one or the other.
        ProxyRefusedError
            The proxy does not let it through.
        """
        proxy = self._proxy
        if proxy is None:
            await self._hand_over(await self._connected(), protocol, self._name)
        elif proxy.socks:
            await self._hand_over(await self._through_socks(proxy), protocol, self._name)
        elif self._name is None:
            await self._hand_over(await self._connected(), protocol, self._proxy_name)
        else:
            await self._through_tunnel(proxy, protocol)

    async def _connected(self) -> socket.socket:
        addresses = await self._addresses.next()
        return await start_connection(addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1)

    async def _through_socks(self, proxy: Proxy) -> socket.socket:
        from python_socks import ProxyConnectionError, ProxyError, ProxyType
        from python_socks.async_.asyncio import Proxy as Socks

        there = proxy.scheme in ("socks5h", "socks4a")  # where the endpoint's name is looked up
        kind = ProxyType.SOCKS5 if proxy.scheme.startswith("socks5") else ProxyType.SOCKS4
        way = Socks(kind, proxy.host, proxy.port, proxy.user or None, proxy.password or None, there, loop=self._loop)
        try:
            return await way.connect(self._host, self._port)
        except ProxyConnectionError as error:
            raise (error.__cause__ or error) from None  # what the system said
        except ProxyError as error:
            raise ProxyRefusedError(f"it refused the connection ({error})") from None

    async def _hand_over(self, opened: socket.socket, protocol: Connection | _Tunnel, name: str | None) -> Any:
        """Make a connection the protocol's, behind a TLS handshake with ``name`` if one is given."""
        try:
            _tune(opened)
        except OSError:
            opened.close()
            raise
        context = None if name is None else self._context
        try:  # from here on the socket is the event loop's, which closes it where this fails
            transport, _ = await self._loop.create_connection(
                lambda: protocol, sock=opened, ssl=context, server_hostname=name
            )
        except BaseException:
            protocol.close()  # asyncio would wait for the other side's farewell, where a handshake has just succeeded
            raise
        return transport

    async def _through_tunnel(self, proxy: Proxy, protocol: Connection) -> None:
        tunnel = _Tunnel(self._loop)
        transport = await self._hand_over(await self._connected(), tunnel, self._proxy_name)
        try:
            transport.write(self._asking_for_a_tunnel(proxy))
            status = await tunnel.status
            if not 200 <= status < 300:
                raise ProxyRefusedError(f"it refused the connection (HTTP {status})")
            assert self._context is not None
            through = await self._loop.start_tls(transport, protocol, self._context, server_hostname=self._host)
            if through is None or through.is_closing():
                raise ConnectionResetError
        except BaseException:
            tunnel.close()
            raise
        protocol.connection_made(through)

    def _asking_for_a_tunnel(self, proxy: Proxy) -> bytes:
        place = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        headers = "".join(f"{name}: {value}\r\n" for name, value in proxy.authorization.items())
        return f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n{headers}\r\n".encode()


class _Addresses:
    """A host's addresses, each time from another one on: a name may stand for several replicas."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self._loop = loop
        self._host, self._port = host, port
        self._lookup: asyncio.Task[list[Any]] | None = None
        self._resolved_at = 0.0
        self._turn = 0

    async def next(self) -> list[Any]:
        """The addresses, as ``getaddrinfo`` gives them; looked up every ten seconds at most."""
        now = self._loop.time()
        if self._lookup is None or (self._lookup.done() and now - self._resolved_at > _ADDRESSES_S):
            self._resolved_at = now
            self._lookup = self._loop.create_task(self._resolve())
            self._lookup.add_done_callback(_seen)
        # One lookup serves all who wait for it; who is cancelled leaves it to the others.
        found = await asyncio.shield(self._lookup)
        self._turn += 1
        first = self._turn % len(found)
        return found[first:] + found[:first]

    async def _resolve(self) -> list[Any]:
        try:
            return list(await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # the latter for a name that no DNS could hold (IDNA)
            self._resolved_at = -_ADDRESSES_S  # asked again by the next one
            raise error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error)) from None


class _Tunnel(asyncio.Protocol):
    """Waits for a proxy to say whether it lets a connection through. The server speaks only when it is spoken to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status: asyncio.Future[int] = loop.create_future()
        self._transport: Any = None
        self._head = b""

    def close(self) -> None:
        """Close the connection, at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._head += data
        if self.status.done() or (b"\r\n\r\n" not in self._head and len(self._head) < _TUNNEL_HEAD):
            return
        version, _, rest = self._head.partition(b" ")
        if version.startswith(b"HTTP/1.") and rest[:3].isdigit():
            self.status.set_result(int(rest[:3]))
        else:
            self.status.set_exception(ProxyRefusedError("it does not answer in HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if not self.status.done():
            self.status.set_exception(exc or ConnectionResetError())


def _seen(task: asyncio.Task[Any]) -> None:
    """The error of a lookup that nobody waits for any more is not reported."""
    if not task.cancelled():
        task.exception()


def _tune(connection: socket.socket) -> None:
    """Send small packets at once, and find out about a peer that has vanished while an answer is waited for."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", _KEEPALIVE_IDLE_S), ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_S)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
