"""HTTP/1.1 on the event loop's own thread, for endpoints that are asked over plain ``http://`` without a proxy.

These are one's own replicas, with many requests and short answers. A client that lives in a thread of its own hands
each answer over the interpreter's lock, which costs more than the rest of the request; here bytes go from the socket to
llhttp (httptools) in one callback. The protocol: RFC 9112. What is not plain (TLS, proxies, HTTP/2, credentials in the
URL) is left to :mod:`infermesh.transports.http.reqwest`.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohappyeyeballs import start_connection

from infermesh.errors import APIConnectionError, MalformedResponseError
from infermesh.redaction import origin
from infermesh.transports.errors import timed_out
from infermesh.transports.http.client import (
    CONNECT_TIMEOUT_S,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    Answer,
    client_closed,
    connection_failed,
)
from infermesh.transports.http.connection import Connection
from infermesh.types import Operation

__all__ = ["PlainClient", "speaks_plainly"]

_REAP_S = 0.25
_ADDRESSES_S = 10.0
_HAPPY_EYEBALLS_S = 0.25  # RFC 8305, section 8
_CONNECTING = 64  # at once: thousands would hold up the event loop
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_HOST = re.compile(r"[0-9A-Za-z._:-]+")
_TARGET = re.compile(r"[\x21-\x7e]*")
# Headers that change how a message is framed or who it is for.
_FRAMING = frozenset(
    ("connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade")
)


def speaks_plainly(url: str, headers: Mapping[str, str]) -> bool:
    """Whether :class:`PlainClient` can ask this URL with these headers, under the process's proxy settings."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return False
    proxies = getproxies()
    return (
        parts.scheme == "http"
        and "@" not in parts.netloc
        and _HOST.fullmatch(host) is not None
        and not parts.fragment
        and _TARGET.fullmatch(url) is not None
        and not (_FRAMING & {name.lower() for name in headers})
        and all(_TOKEN.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers.items())
        and (not ({"http", "all"} & proxies.keys()) or bool(proxy_bypass(host)))
    )


class PlainClient:
    """Connections to one ``http://`` origin. See :class:`~infermesh.transports.http.client.HttpClient`.

    An idle connection is used again only while the server surely keeps it: for four fifths of the time that its
    ``Keep-Alive`` header announces, or of 5 s. One that the server closes under a request all the same fails that
    request, which is not sent a second time here: the server may have worked on it (RFC 9110, section 9.2.2).

    Parameters
    ----------
    label
        The deployment's label, for messages.
    api_base
        Its base URL, for messages.
    urls
        Where the requests of each operation go: all of one origin.
    headers
        Sent with each request.
    """

    def __init__(self, label: str, api_base: str, urls: Mapping[Operation, str], headers: Mapping[str, str]) -> None:
        self.label = label
        self.api_base = api_base
        parts = urlsplit(next(iter(urls.values())))
        self._host, self._port = parts.hostname or "", 80 if parts.port is None else parts.port
        common = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._heads = {
            operation: f"POST {_target(url)} HTTP/1.1\r\nhost: {parts.netloc}\r\n{common}content-length: ".encode()
            for operation, url in urls.items()
        }
        self.loop = asyncio.get_running_loop()
        self._idle: dict[Connection, None] = {}  # an ordered set: the most recently used last
        self._open: set[Connection] = set()
        self._connecting = asyncio.Semaphore(_CONNECTING)
        self._waiting: set[asyncio.Timeout] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._lookup: asyncio.Task[list[Any]] | None = None
        self._resolved_at = 0.0
        self._turn = 0
        self._closed = False

    async def post(self, operation: Operation, content: bytes, timeout: float | None) -> Answer:
        """Post JSON. See :class:`~infermesh.transports.http.client.HttpClient`."""
        message = b"%b%d\r\n\r\n" % (self._heads[operation], len(content))
        left = timeout
        if self._idle:
            connection, _ = self._idle.popitem()
        else:
            started = self.loop.time()
            connection = await self._connect(timeout)
            if timeout is not None:
                left = max(timeout - (self.loop.time() - started), 0.001)
        answer = connection.ask(message, content)
        if left is not None:
            connection.expect_within(left, timeout)
        try:
            return await answer
        except asyncio.CancelledError:
            connection.abandon(answer)
            raise

    async def aclose(self) -> None:
        """Close every connection. A request in flight fails."""
        self._closed = True
        for connection in list(self._open):
            connection.fail(client_closed(self.label, "was"))
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(self.loop.time())
        if self._reaper is not None:
            self._reaper.cancel()

    async def _connect(self, timeout: float | None) -> Connection:
        if self._closed:
            raise client_closed(self.label)
        patience = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
        limit = asyncio.timeout(patience)
        self._waiting.add(limit)
        try:
            async with limit, self._connecting:
                # One may have come back by now.
                connection = self._idle.popitem()[0] if self._idle else await self._open_another()
        except TimeoutError:
            if self._closed:
                raise client_closed(self.label, "was") from None
            raise timed_out(self.label, patience, f" (no connection to {origin(self.api_base)})") from None
        except socket.gaierror as error:
            raise self.broken(f"dns error: {error.strerror}") from None
        except (OSError, RuntimeError) as error:  # uvloop raises the one or the other
            known = isinstance(error, OSError) and error.errno
            raise self.broken(f"{os.strerror(known)}: {error}" if known else str(error)) from None
        finally:
            self._waiting.discard(limit)
        if connection not in self._open:
            raise client_closed(self.label, "was") if self._closed else self.broken("broke off")
        return connection

    async def _open_another(self) -> Connection:
        addresses = await self._addresses()
        opened = await start_connection(addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_S, interleave=1)
        connection = Connection(self)
        try:
            _tune(opened)
            await self.loop.create_connection(lambda: connection, sock=opened)
        except BaseException:
            self.lost(connection)  # uvloop does not say so
            with suppress(OSError):  # uvloop before 0.23 has closed it, and Python's socket does not know
                opened.close()
            raise
        return connection

    async def _addresses(self) -> list[Any]:
        """The host's addresses, each time from another one on: a name may stand for several replicas."""
        now = self.loop.time()
        if self._lookup is None or (self._lookup.done() and now - self._resolved_at > _ADDRESSES_S):
            self._resolved_at = now
            self._lookup = self.loop.create_task(self._resolve())
            self._lookup.add_done_callback(_seen)
        # One lookup serves all who wait for it; who is cancelled leaves it to the others.
        found = await asyncio.shield(self._lookup)
        self._turn += 1
        first = self._turn % len(found)
        return found[first:] + found[:first]

    async def _resolve(self) -> list[Any]:
        try:
            return list(await self.loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # the latter for a name that no DNS could hold (IDNA)
            self._resolved_at = -_ADDRESSES_S  # asked again by the next one
            raise error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error)) from None

    def made(self, connection: Connection) -> None:
        """A connection was made."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def broken(self, cause: str) -> APIConnectionError:
        """The error for a connection that broke."""
        return connection_failed(self.label, self.api_base, cause)

    def malformed(self, what: str) -> MalformedResponseError:
        """The error for an answer that cannot be read."""
        return MalformedResponseError(
            f"{self.label}: the answer of {origin(self.api_base)} {what}: check that api_base has the right scheme and "
            "port, and any proxy between here and the server",
            deployment=self.label,
        )

    def released(self, connection: Connection) -> None:
        """Take back a connection whose answer is complete."""
        connection.kept_until = self.loop.time() + connection.kept_s
        self._idle[connection] = None
        if self._reaper is None:
            self._reaper = self.loop.call_later(_REAP_S, self._reap)

    def _reap(self) -> None:
        """Close the connections that the server may close soon. Who asks need not look at the clock then."""
        now = self.loop.time()
        for connection in [one for one in self._idle if one.kept_until <= now]:
            connection.close()
        self._reaper = self.loop.call_later(_REAP_S, self._reap) if self._idle else None


def _seen(task: asyncio.Task[Any]) -> None:
    """The error of a lookup that nobody waits for any more is not reported."""
    if not task.cancelled():
        task.exception()


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _tune(connection: socket.socket) -> None:
    """Send small packets at once, and find out about a peer that has vanished while an answer is waited for."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", KEEPALIVE_IDLE_S), ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
