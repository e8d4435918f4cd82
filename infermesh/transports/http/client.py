"""HTTP/1.1 on the event loop's own thread: connections to one endpoint, as many as there are requests in flight.

A client that lives in a thread of its own hands each answer over the interpreter's lock, which costs more than the rest
of the request; here bytes go from the event loop, which does TLS too, to llhttp (httptools) in one callback. The
protocol: RFC 9112. Why it is our own: docs/decisions/0001-http-client.md.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

from infermesh.config.deployment import MAX_RESPONSE_BYTES
from infermesh.errors import APIConnectionError, InputError, MalformedResponseError
from infermesh.redaction import origin
from infermesh.transports.http.connection import Connection, Response
from infermesh.transports.http.failures import (
    BROKE_OFF,
    Cause,
    ProxyRefusedError,
    cause_of,
    client_closed,
    connection_failed,
    no_connection,
    too_long,
)
from infermesh.transports.http.form import Form
from infermesh.transports.http.message import head, origin_of
from infermesh.transports.http.proxies import proxy_for
from infermesh.transports.http.route import Route
from infermesh.types import Operation

__all__ = ["HttpClient"]

_CONNECT_TIMEOUT_S = 30.0
_REAP_S = 0.25
_COPIED = 65_536  # a body up to this size is sent in one piece with its head
_TRUSTED_S = 0.1  # idle for less, a connection is used without asking the system whether it has ended
_CROSSINGS = 3  # in a row: the server keeps no connection, though it does not say so
_NONE_KEPT_S = 5.0  # from then on; after that it is given another chance
_CONNECTING = 64  # at once: thousands would hold up the event loop


class HttpClient:
    """Connections to one endpoint, as many as there are requests in flight; idle ones are kept.

    Redirects are not followed, and each request goes out once. A cancelled request's connection is closed. An idle
    connection is used again only while the server surely keeps it: for four fifths of the time that its ``Keep-Alive``
    header announces, or of 5 s, and not after its end has arrived.

    The server may close one all the same as the next request is on the way to it (RFC 9112, section 9.3.1). Whether it
    has read that request cannot be known from here: a process that took it and died looks alike. So it is not sent a
    second time here, where nobody would count it. It fails, and the error says that it is to be sent again
    (``rewritten``), ``fresh`` then, on a new connection: whoever keeps the books has an attempt for each time that the
    server may have seen it, and what breaks a new connection is a failure like any other. Where one kept
    connection after the other ends so, none is kept for a while.

    Made in the event loop that it works in.

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
    ca_bundle
        A file or a folder with further authorities for TLS.
    most
        The most bytes that an answer may have, decoded. One that has more is not read to its end, and fails. Of the
        body of an error, a mebibyte is read at most, and is the answer.

    Raises
    ------
    InputError
        A URL or a header cannot be sent, or what the environment says of proxies or certificates is wrong.
    """

    def __init__(
        self,
        label: str,
        api_base: str,
        urls: Mapping[Operation, str],
        headers: Mapping[str, str],
        ca_bundle: str | None = None,
        most: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self._ca_bundle = ca_bundle
        self.most = most
        self.label = label
        self.api_base = api_base
        self.loop = asyncio.get_running_loop()
        try:
            self._route(urls, headers)
        except ValueError as error:
            raise InputError(f"{label}: the client cannot be made: {error}", deployment=label) from None
        self._idle: dict[Connection, None] = {}  # an ordered set: the most recently used last
        self._open: set[Connection] = set()
        self._connecting = asyncio.Semaphore(_CONNECTING)
        self._waiting: set[asyncio.Timeout] = set()
        self._crossings = 0  # since a kept connection was answered last
        self._none_kept_until = 0.0
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    def _route(self, urls: Mapping[Operation, str], headers: Mapping[str, str]) -> None:
        """Find out how the endpoint is reached, and what its requests begin with."""
        secure, host, port = origin_of(next(iter(urls.values())))
        proxy = proxy_for("https" if secure else "http", host, port)
        self._forwarded = proxy is not None and not secure and not proxy.socks
        if secure:
            headers = {"accept-encoding": "gzip", **headers}
        if proxy is not None and self._forwarded:
            headers = {**headers, **proxy.authorization}
        self._urls, self._headers, self._proxy = urls, headers, proxy
        self._heads = {operation: head(url, headers, forwarded=self._forwarded) for operation, url in urls.items()}
        self._way = Route(self.loop, host, port, secure=secure, proxy=proxy, ca_bundle=self._ca_bundle)

    async def post(
        self,
        operation: Operation,
        content: bytes,
        timeout: float | None,
        rest: bytes | memoryview = b"",
        *,
        fresh: bool = False,
    ) -> Response:
        """Post JSON, and wait ``timeout`` seconds at most for the whole answer; ``fresh``: on a new connection.

        The JSON is ``content``, then ``rest``, which is not copied where it is large.

        Raises
        ------
        RequestError
            No answer came. Any HTTP status is an answer.
        """
        size = len(content) + len(rest)
        start = b"%b%d\r\n\r\n" % (self._heads[operation], size)
        if size <= _COPIED:
            return await self._ask(b"".join((start, content, rest)), (), timeout, fresh)
        return await self._ask(start, (content, rest), timeout, fresh)

    async def post_form(
        self, operation: Operation, form: Form, timeout: float | None, *, fresh: bool = False
    ) -> Response:
        """Post a form, as :meth:`post` does JSON."""
        headers = {**self._headers, "content-type": form.content_type}
        start = head(self._urls[operation], headers, forwarded=self._forwarded)
        return await self._ask(b"%b%d\r\n\r\n" % (start, sum(map(len, form.pieces))), form.pieces, timeout, fresh)

    async def get(self, url: str, timeout: float | None) -> Response:
        """Ask for what stands at a URL of the same origin, with the same headers, on a new connection."""
        return await self._ask(head(url, self._headers, forwarded=self._forwarded, method="GET"), (), timeout, True)

    async def _ask(
        self, start: bytes, rest: tuple[bytes | memoryview, ...], timeout: float | None, fresh: bool
    ) -> Response:
        left = timeout
        now = self.loop.time()
        connection = None if fresh else self._kept(now)
        if connection is None:
            started = now
            connection = await self._connect(timeout, fresh)
            now = self.loop.time()
            if timeout is not None:
                left = max(timeout - (now - started), 0.001)
        connection.asked_at = now
        answer = connection.ask(start, rest)
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

    def _kept(self, now: float) -> Connection | None:
        """The idle connection that was used last, if there is one whose end has not arrived.

        The event loop may have yet to see that end. To look takes as long as a twentieth of a request, so one that was
        idle for a moment is trusted, until the server has ended one.
        """
        while self._idle:
            connection, _ = self._idle.popitem()
            if (now - connection.idle_since < _TRUSTED_S and not self._crossings) or not connection.poll():
                return connection
            connection.close()
        return None

    async def _connect(self, timeout: float | None, fresh: bool) -> Connection:
        if self._closed:
            raise client_closed(self.label)
        patience = _CONNECT_TIMEOUT_S if timeout is None else min(timeout, _CONNECT_TIMEOUT_S)
        limit = asyncio.timeout(patience)
        self._waiting.add(limit)
        try:
            async with limit, self._connecting:
                connection = None if fresh else self._kept(self.loop.time())  # one may have come back by now
                if connection is None:
                    connection = await self._open_another()
        except (OSError, ValueError, RuntimeError, ProxyRefusedError) as error:
            if self._closed:
                raise client_closed(self.label, "was") from None
            late = isinstance(error, TimeoutError) and limit.expired()
            raise self._not_connected(error, no_connection(patience) if late else cause_of(error)) from None
        finally:
            self._waiting.discard(limit)
        if connection not in self._open:
            raise client_closed(self.label, "was") if self._closed else self.broken(BROKE_OFF)
        return connection

    async def _open_another(self) -> Connection:
        connection = Connection(self)
        await self._way.open(connection)
        return connection

    @property
    def _place(self) -> str:
        """The endpoint, and the proxy before it."""
        return origin(self.api_base) + (f" through the proxy {self._proxy}" if self._proxy else "")

    def _not_connected(self, error: Exception, cause: Cause) -> APIConnectionError:
        if self._proxy is not None and not isinstance(error, ssl.SSLError):
            cause = cause._replace(check="check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, and the proxy itself")
        return connection_failed(self.label, self._place, cause, made=False)

    def made(self, connection: Connection) -> None:
        """A connection was made."""
        self._open.add(connection)

    def crossed(self) -> None:
        """The server has ended a kept connection under a request."""
        self._crossings += 1
        self._none_kept_until = self.loop.time() + _NONE_KEPT_S

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def broken(self, cause: Cause) -> APIConnectionError:
        """The error for a connection that broke."""
        return connection_failed(self.label, origin(self.api_base), cause, made=True)

    def malformed(self, what: str) -> MalformedResponseError:
        """The error for an answer that cannot be read."""
        return MalformedResponseError(
            f"{self.label}: the answer of {origin(self.api_base)} {what}: check that api_base has the right scheme and "
            "port, and any proxy between here and the server",
            deployment=self.label,
        )

    def too_long(self) -> MalformedResponseError:
        """The error for an answer of more than ``most`` bytes."""
        return too_long(self.label, origin(self.api_base), self.most)

    def released(self, connection: Connection) -> None:
        """Take back a connection whose answer is complete."""
        now = self.loop.time()
        if self._crossings:
            if connection.idle_since:
                self._crossings = 0
            elif self._crossings >= _CROSSINGS and now < self._none_kept_until:
                connection.close()
                return
        connection.idle_since = now
        self._idle[connection] = None
        if self._reaper is None:
            self._reaper = self.loop.call_later(_REAP_S, self._reap)

    def _reap(self) -> None:
        """Close the connections that the server may close soon. Who asks need not look at the clock then."""
        now = self.loop.time()
        for connection in [one for one in self._idle if one.idle_since + one.kept_s <= now]:
            connection.close()
        self._reaper = self.loop.call_later(_REAP_S, self._reap) if self._idle else None
