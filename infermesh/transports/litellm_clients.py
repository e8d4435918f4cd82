"""What LiteLLM's HTTP clients may do: follow no redirect, and read no answer beyond its bound.

Imported with LiteLLM, and so as late.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import httpx

from infermesh.errors import MalformedResponseError
from infermesh.transports.http.coding import inflater_for
from infermesh.transports.http.failures import too_long

__all__ = ["BOUND", "Bound", "guard_clients", "guarded"]

_MOST_OF_AN_ERROR = 1 << 16  # bytes: LiteLLM searches an error's text on the event loop, for some 7 µs a byte


class Bound(NamedTuple):
    """How long an answer may be, and who is asked."""

    most: int
    label: str
    place: str


BOUND: ContextVar[Bound | None] = ContextVar("infermesh_bound", default=None)
"""The bound of the request under way. The clients are shared by deployments, each of which has one of its own."""


@cache
def guard_clients() -> None:
    """Change the clients that LiteLLM makes from here on."""
    from litellm.llms.custom_httpx import aiohttp_handler, http_handler

    handlers: Any = http_handler
    handlers.AsyncHTTPHandler.create_client = _making(handlers.AsyncHTTPHandler.create_client, guarded)
    handlers.HTTPHandler.create_client = _making(handlers.HTTPHandler.create_client, _without_redirects)
    sessions: Any = aiohttp_handler.BaseLLMAIOHTTPHandler
    sessions._create_client_session_with_transport = _making(
        sessions._create_client_session_with_transport, _guarded_session
    )


def guarded(client: Any) -> Any:
    """Change a client of httpx."""
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [_bound, *hooks["response"]]}
    return _without_redirects(client)


def _making(make: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        return change(make(*args, **kwargs))

    return made


def _without_redirects(client: Any) -> Any:
    """httpx takes ``Authorization`` out of what it sends to another host (``Client._redirect_headers``), and no more.

    ``x-api-key`` and ``x-goog-api-key`` would go wherever an endpoint points.
    """
    client.follow_redirects = False
    return client


async def _bound(response: httpx.Response) -> None:
    if (bound := BOUND.get()) is not None:
        response.stream = _BoundStream(response, bound)


class _BoundStream(httpx.AsyncByteStream):
    """The body of an answer, decoded. httpx itself unpacks each piece whole, however much comes of it."""

    def __init__(self, response: httpx.Response, bound: Bound) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream, self._bound = response.stream, bound
        self._good = response.is_success
        self._most = bound.most if self._good else min(bound.most, _MOST_OF_AN_ERROR)
        announced = response.headers.get("content-length", "")
        if self._good and announced.isdigit() and int(announced) > bound.most:
            raise too_long(bound.label, bound.place, bound.most)
        self._inflater, self._readable = None, True
        try:
            self._inflater = inflater_for(response.headers.pop("content-encoding", ""), self._most)
        except ValueError as error:
            if self._good:
                raise self._malformed(error) from None
            self._readable = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not self._readable:
            return
        left = self._most
        async for raw in self._stream:
            piece, fits = self._decoded(raw)
            left -= len(piece)
            if fits and left >= 0:
                yield piece
            elif self._good:
                raise too_long(self._bound.label, self._bound.place, self._most)
            else:  # of an error, what was read of it is enough
                yield piece[: max(left + len(piece), 0)]
                return
        if self._inflater is not None and not self._inflater.complete and self._good:
            raise self._malformed(ValueError("it is cut short"))

    def _decoded(self, raw: bytes) -> tuple[bytes, bool]:
        if self._inflater is None:
            return raw, True
        try:
            fits = self._inflater.add(raw)
        except zlib.error as error:
            if self._good:
                raise self._malformed(error) from None
            return b"", False
        return self._inflater.take(), fits

    def _malformed(self, error: Exception) -> MalformedResponseError:
        label, place = self._bound.label, self._bound.place
        return MalformedResponseError(
            f"{label}: the answer of {place} cannot be decoded ({error}): check any proxy between here and the server",
            status_code=200,
            deployment=label,
        )

    async def aclose(self) -> None:
        await self._stream.aclose()


def _guarded_session(session: Any) -> Any:
    """Change a session of aiohttp, which has settings for neither."""
    request = session._request

    async def _request(*args: Any, **kwargs: Any) -> Any:
        response = await request(*args, **{**kwargs, "allow_redirects": False})
        bound = BOUND.get()
        if bound is not None and kwargs.get("auto_decompress") is not False:  # else httpx reads it
            await _read(response, bound)
        return response

    session._request = _request
    return session


async def _read(response: Any, bound: Bound) -> None:
    """Read the body here, where the bound is known; the response keeps it for who asks."""
    body = bytearray()
    async for piece in response.content.iter_any():
        if len(body) + len(piece) > bound.most:
            response.close()
            if response.ok:
                raise too_long(bound.label, bound.place, bound.most)
            break
        body += piece
    response._body = bytes(body)
