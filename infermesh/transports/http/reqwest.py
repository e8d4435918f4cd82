"""pyreqwest: HTTP/1.1 and HTTP/2, TLS, proxies and forms, from a thread of its own."""

from __future__ import annotations

import asyncio
import importlib
import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from mimetypes import guess_type
from typing import TYPE_CHECKING, Any

from infermesh.errors import InputError, MalformedResponseError, RequestError
from infermesh.redaction import origin, redact
from infermesh.transports.errors import timed_out
from infermesh.transports.http.client import CONNECT_TIMEOUT_S, Answer, client_closed, connection_failed
from infermesh.transports.http.sockets import Mark, close_marked, next_mark
from infermesh.types import Audio, Operation

if TYPE_CHECKING:
    from pyreqwest.client import Client
    from pyreqwest.http import Url
    from pyreqwest.request import ConsumedRequest, RequestBuilder

__all__ = ["PyreqwestClient"]


@dataclass(eq=False, slots=True)
class _Pool:
    """One HTTP client, the mark of its connections, and how many of its requests are waited for."""

    client: Client
    mark: Mark
    live: int = 0
    retired: bool = False


class PyreqwestClient:
    """Connections of pyreqwest. See :class:`~infermesh.transports.http.client.HttpClient`.

    The connection of a cancelled request is shut down, at the latest when the requests that went out before it have
    ended.

    Parameters
    ----------
    label
        The deployment's label, for messages.
    api_base
        Its base URL, for messages.
    urls
        Where the requests of each operation go.
    headers
        Sent with each request.

    Raises
    ------
    InputError
        A URL or a header cannot be sent.
    """

    def __init__(self, label: str, api_base: str, urls: Mapping[Operation, str], headers: Mapping[str, str]) -> None:
        # Imported here, so that `import infermesh` does not load a TLS stack.
        from pyreqwest.exceptions import PyreqwestError
        from pyreqwest.http import Url

        self.label = label
        self.api_base = api_base
        self._headers = dict(headers)
        self._foreign = PyreqwestError
        self._pool: _Pool | None = None
        self._retired: set[_Pool] = set()
        self._closed = False
        try:
            self._urls: dict[Operation, Url] = {operation: Url(url) for operation, url in urls.items()}
            self._pool = self._connect()
        except (PyreqwestError, ValueError, TypeError):
            # The foreign message may quote the header: say which ones there are, not what is in them.
            raise InputError(
                f"{label}: the client cannot be made: check that api_base ({origin(api_base)}) is a URL and that the "
                f"key and the headers ({', '.join(headers)}) are plain ASCII on one line",
                deployment=label,
            ) from None

    async def post(self, operation: Operation, content: bytes, timeout: float | None) -> Answer:
        """Post JSON. See :class:`~infermesh.transports.http.client.HttpClient`."""
        pool = self._pool or self._connect()
        builder = self._request(pool, operation, timeout)
        return await self._send(pool, builder.body_bytes(content).build(), timeout)

    async def post_form(
        self, operation: Operation, fields: Mapping[str, list[str]], audio: Audio, timeout: float | None
    ) -> Answer:
        """Post a form (RFC 7578) with a file in it, as :meth:`post` does."""
        from pyreqwest.multipart import FormBuilder, PartBuilder

        pool = self._pool or self._connect()
        form = FormBuilder()
        for name, values in fields.items():
            for value in values:
                form = form.text(name, value)
        mime, _ = guess_type(audio.filename)
        part = PartBuilder.from_bytes(audio.data).file_name(audio.filename)
        boundary = form.boundary
        form = form.part("file", part.mime(mime or "application/octet-stream"))
        outgoing = self._request(pool, operation, timeout).multipart(form).build()
        # The client's default content type goes before the form's own.
        outgoing.headers["content-type"] = f"multipart/form-data; boundary={boundary}"
        return await self._send(pool, outgoing, timeout)

    async def aclose(self) -> None:
        """Close every connection. A request in flight fails."""
        self._closed = True
        if self._pool is not None:
            self._retire(self._pool)
        for pool in list(self._retired):
            await pool.client.close()
            self._discard(pool)

    def _request(self, pool: _Pool, operation: Operation, timeout: float | None) -> RequestBuilder:
        builder = pool.client.post(self._urls[operation])
        return builder if timeout is None else builder.timeout(_duration(timeout))

    async def _send(self, pool: _Pool, outgoing: ConsumedRequest, timeout: float | None) -> Answer:
        pool.live += 1
        try:
            response = await outgoing.send()
            data = await response.bytes()
        except self._foreign as error:
            # `from None`: the foreign message quotes the URL, which may hold a key.
            raise self._failure(error, timeout) from None
        except asyncio.CancelledError:
            self._retire(pool)
            raise
        finally:
            pool.live -= 1
            if pool.retired and not pool.live:
                self._discard(pool)
        return Answer(response.status, data.to_bytes(), response.get_header)

    def _connect(self) -> _Pool:
        if self._closed:
            raise client_closed(self.label)
        from pyreqwest.client import ClientBuilder

        mark = next_mark()
        builder = (
            ClientBuilder()
            .default_headers(self._headers)
            .follow_redirects(False)
            .max_connections(None)
            .connect_timeout(timedelta(seconds=CONNECT_TIMEOUT_S))
            .tcp_keepalive(timedelta(seconds=mark.idle_s))
            .tcp_keepalive_interval(timedelta(seconds=mark.interval_s))
        )
        self._pool = _Pool(builder.build(), mark)
        return self._pool

    def _retire(self, pool: _Pool) -> None:
        """Take a pool out of use. Its connections are shut down as soon as none serves a request that is waited for."""
        pool.retired = True
        self._retired.add(pool)
        if self._pool is pool:
            self._pool = None

    def _discard(self, pool: _Pool) -> None:
        self._retired.discard(pool)
        close_marked(pool.mark)

    def _failure(self, error: Exception, timeout: float | None) -> RequestError:
        """Translate a failure below HTTP."""
        from pyreqwest import exceptions as foreign

        causes = _causes(error)
        text = " / ".join(causes).lower()
        if isinstance(error, foreign.RequestTimeoutError):
            # The total timeout surfaces as ConnectTimeoutError wherever it strikes before the answer's head has come:
            # only the causes tell whether a connection was still being made.
            if "client error (connect)" in text or "tcp connect" in text:
                return timed_out(
                    self.label,
                    min(timeout or math.inf, CONNECT_TIMEOUT_S),
                    f" (no connection to {origin(self.api_base)})",
                )
            return timed_out(self.label, timeout)
        if isinstance(error, foreign.BodyDecodeError) and not _broke_off(text):
            return MalformedResponseError(
                f"{self.label}: the answer of {origin(self.api_base)} cannot be decoded ({causes[-1]}): check any "
                "proxy between here and the server",
                deployment=self.label,
            )
        if isinstance(error, foreign.ClientClosedError):
            return client_closed(self.label, "was")
        if isinstance(error, foreign.BuilderError):
            return InputError(f"{self.label}: the request cannot be built: {causes[-1]}", deployment=self.label)
        if isinstance(error, foreign.BodyDecodeError):
            return connection_failed(self.label, self.api_base, "the connection broke off")
        return connection_failed(self.label, self.api_base, text, shown=causes[-1])


def _causes(error: Exception) -> list[str]:
    details: Any = getattr(error, "details", None) or {}
    causes = [redact(str(cause.get("message", ""))) for cause in details.get("causes") or ()]
    return causes or [redact(str(getattr(error, "message", error)))]


def _broke_off(causes: str) -> bool:
    return any(mark in causes for mark in ("end of file", "reading a body from connection", "reset", "closed"))


@lru_cache(maxsize=256)
def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def import_for_good(module: str) -> None:
    """Import an extension module in a thread that does not end before the process: the main one, or one made for it.

    The allocator inside the HTTP client breaks in a new thread once the thread that loaded it has ended
    (https://github.com/microsoft/mimalloc/pull/1393).
    """
    if module in sys.modules:
        return
    if threading.current_thread() is threading.main_thread():
        importlib.import_module(module)
        return
    loaded = threading.Event()

    def load() -> None:
        try:
            importlib.import_module(module)
        finally:
            loaded.set()
        threading.Event().wait()

    threading.Thread(target=load, name=f"{module} (keeps its allocator)", daemon=True).start()
    loaded.wait()
