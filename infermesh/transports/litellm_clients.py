"""What LiteLLM's HTTP clients may do: follow no redirect, and read no answer beyond its bound.

Imported with LiteLLM, and so as late.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import httpx

from infermesh.errors import MalformedResponseError
from infermesh.transports.http.coding import Inflater, inflater_for
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
    handlers.HTTPHandler.create_client = _making(handlers.HTTPHandler.create_client, guarded)
    sessions: Any = aiohttp_handler.BaseLLMAIOHTTPHandler
    sessions._create_client_session_with_transport = _making(
        sessions._create_client_session_with_transport, _guarded_session
    )


def guarded(client: Any) -> Any:
    """Change a client of httpx.

    httpx takes ``Authorization`` out of what it sends to another host (``Client._redirect_headers``), and nothing else:
    ``x-api-key`` and ``x-goog-api-key`` would go wherever an endpoint points.
    """
    hook = _bound if isinstance(client, httpx.AsyncClient) else _bound_in_a_thread
    client.event_hooks = {**client.event_hooks, "response": [hook, *client.event_hooks["response"]]}
    client.follow_redirects = False
    return client


def _making(make: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        return change(make(*args, **kwargs))

    return made


async def _bound(response: httpx.Response) -> None:
    if (bound := BOUND.get()) is not None:
        response.stream = _Stream(response.stream, _Reading(response, bound))


def _bound_in_a_thread(response: httpx.Response) -> None:
    if (bound := BOUND.get()) is not None:
        response.stream = _StreamInAThread(response.stream, _Reading(response, bound))


class _Reading:
    """Decodes the body of an answer. httpx itself unpacks each piece whole, however much comes of it."""

    def __init__(self, response: httpx.Response, bound: Bound) -> None:
        self._bound = bound
        self._good = response.is_success
        self._most = self._room = bound.most if self._good else min(bound.most, _MOST_OF_AN_ERROR)
        self.over = False  # of an error, what was read of it is enough
        self._inflater: Inflater | None = None
        announced = response.headers.get("content-length", "")
        if self._good and announced.isdigit() and int(announced) > bound.most:
            raise self._too_long()
        try:
            self._inflater = inflater_for(response.headers.pop("content-encoding", ""), self._most)
        except ValueError as error:
            self._cannot(error)

    def read(self, raw: bytes) -> bytes:
        """What comes of a piece. Raises ``MalformedResponseError`` where an answer is too long, or is not decoded."""
        piece, fits = b"" if self.over else raw, True
        if self._inflater is not None:
            try:
                fits = self._inflater.add(raw)
            except zlib.error as error:
                self._cannot(error)
            piece = self._inflater.take()
        room = self._room
        self._room -= len(piece)
        if not fits or self._room < 0:
            if self._good:
                raise self._too_long()
            self.over = True
        return piece[:room]

    def end(self) -> None:
        """The end has come."""
        if self._inflater is not None and not self._inflater.complete:
            self._cannot(ValueError("it is cut short"))

    def _cannot(self, error: Exception) -> None:
        """Something cannot be decoded."""
        self.over = True
        if self._good:
            raise MalformedResponseError(
                f"{self._bound.label}: the answer of {self._bound.place} cannot be decoded ({error}): check any proxy "
                "between here and the server",
                status_code=200,
                deployment=self._bound.label,
            ) from None

    def _too_long(self) -> MalformedResponseError:
        return too_long(self._bound.label, self._bound.place, self._most)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, stream: Any, reading: _Reading) -> None:
        self._stream, self._reading = stream, reading

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for raw in self._stream:
            yield self._reading.read(raw)
            if self._reading.over:
                return
        self._reading.end()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _StreamInAThread(httpx.SyncByteStream):
    """The same for providers that LiteLLM asks in a thread."""

    def __init__(self, stream: Any, reading: _Reading) -> None:
        self._stream, self._reading = stream, reading

    def __iter__(self) -> Iterator[bytes]:
        for raw in self._stream:
            yield self._reading.read(raw)
            if self._reading.over:
                return
        self._reading.end()

    def close(self) -> None:
        self._stream.close()


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
    try:
        async for piece in response.content.iter_any():
            room = bound.most - len(body)
            body += piece[:room]
            if len(piece) > room:
                response.close()
                if response.ok:
                    raise too_long(bound.label, bound.place, bound.most)
                break
    except BaseException:
        response.close()
        raise
    response._body = bytes(body)
