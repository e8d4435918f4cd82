"""One HTTP/1.1 connection (RFC 9112) as an asyncio protocol, which llhttp reads for."""

from __future__ import annotations

import asyncio
import re
import select
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from infermesh.errors import RequestError
from infermesh.transports.errors import timed_out
from infermesh.transports.http.coding import Inflater, inflater_for
from infermesh.transports.http.failures import BROKE_OFF, NO_ANSWER, Cause, cause_of

__all__ = ["Connection", "Response"]

# How long a server keeps an idle connection that does not say (`Keep-Alive: timeout=`): uvicorn's, Node's and
# cpp-httplib's default. A request on a connection that is being closed is lost, so it is left alone a fifth earlier.
_KEEP_ALIVE_S = 5.0
_KEEP_ALIVE_USED = 0.8
_IDLE_S = 60.0  # at most, whatever the server says
_CROSSED_S = 1.0  # the end of an idle connection and the next request cross on the way; later, the request is to blame
_MOST_BESIDE = 1 << 20  # bytes in a row that are no body: headers, interim answers, trailers
_MOST_OF_AN_ERROR = 1 << 20  # bytes that are read of the body: what there is to know stands at its beginning
_PIECE = 262_144  # of a large message: what TLS encrypts at once, in a fifth of a millisecond

_ANNOUNCED = re.compile(r"\btimeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)  # RFC 2068, section 19.7.1.1


class Response(NamedTuple):
    """A complete answer: its status, its decoded body, and a case-insensitive header lookup."""

    status: int
    data: bytes
    header: Callable[[str], str | None]


class Owner(Protocol):
    """Whose connection it is."""

    label: str
    loop: asyncio.AbstractEventLoop
    most: int  # bytes that the body of an answer may have, decoded

    def made(self, connection: Connection) -> None:
        """It is open."""
        ...

    def released(self, connection: Connection) -> None:
        """It can serve the next request."""
        ...

    def crossed(self) -> None:
        """It was kept, and its end and a request have crossed on the way."""
        ...

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        ...

    def broken(self, cause: Cause) -> RequestError:
        """The error for a request whose connection broke."""
        ...

    def malformed(self, what: str) -> RequestError:
        """The error for an answer that cannot be read."""
        ...

    def too_long(self) -> RequestError:
        """The error for an answer of more than ``most`` bytes."""
        ...


class Connection(asyncio.Protocol):
    """One connection, which serves one request at a time."""

    def __init__(self, owner: Owner) -> None:
        self.kept_s = -1.0  # until the first answer has said
        self.idle_since = 0.0  # by the event loop's time, as the next; 0 for one that has not been idle yet
        self.asked_at = 0.0
        self.poll: Callable[[], object] = bool  # tells whether something has come: while idle, only its end can
        self._owner = owner
        self._transport: Any = None
        self._parser: Any = HttpResponseParser(self)
        self._answer: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._body: bytes | bytearray = b""  # a bytearray from the second piece on
        self._inflater: Inflater | None = None  # has the body, if that is encoded
        self._refused: RequestError | None = None  # why no more of the answer is read
        self._beside = 0  # bytes in a row that are none
        self._headers: list[tuple[bytes, bytes]] = []
        self._unsent: list[memoryview] = []  # the last piece first
        self._paused = self._ended = False
        self._headed = False  # whether the head of the answer is complete
        self._begun = self._complete = self._reusable = False

    def ask(self, start: bytes, rest: tuple[bytes | memoryview, ...] = ()) -> asyncio.Future[Response]:
        """Send one request; the future gets its answer, or a ``RequestError``.

        ``rest`` is what follows ``start`` where it is large: it is sent as the network takes it, and not copied.
        """
        self._answer = answer = self._owner.loop.create_future()
        self._begun = self._complete = False
        self._transport.write(start)
        if rest:
            self._unsent = _pieces(rest)[::-1]
            self._send_on()
        return answer

    def expect_within(self, left: float, timeout: float | None) -> None:
        """End the request in ``left`` seconds; the error says ``timeout``."""
        self._timer = self._owner.loop.call_later(left, self._expire, timeout)

    def abandon(self, answer: asyncio.Future[Response]) -> None:
        """Close the connection, unless the request that is no longer waited for has ended already."""
        if self._answer is answer:
            self._end()
            self.close()
        elif not answer.cancelled():
            answer.exception()  # seen: asyncio need not report it

    def fail(self, error: RequestError) -> None:
        """End the request there may be with an error, and close the connection."""
        answer = self._end()
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.close()

    def close(self) -> None:
        """Close the connection, at once."""
        self._unsent = []
        self._owner.lost(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport
        self.poll = _poll_of(transport.get_extra_info("socket"))
        self._owner.made(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._answer is None:  # nothing was asked: a server that says why it is about to close
            self.close()
            return
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._complete:
                self.fail(self._owner.malformed(f"is not HTTP ({error})"))
                return
            self._reusable = False
        if self._complete:
            self._finish()
        else:
            self._beside += len(data)
            self._go_on()

    def pause_writing(self) -> None:
        """Called by the event loop: enough waits to be sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._paused = False
        self._send_on()

    def eof_received(self) -> None:
        """Called by the event loop. No answer can come any more, whatever is still to be sent."""
        self._ended = True
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        # Where TLS was cut off without its own farewell, uvloop does not call that the end; asyncio does (3.11).
        if self._begun and self._ended and self._answer is not None and self._ends_with_connection():
            self._finish()
        else:
            cause = cause_of(exc) if exc else NO_ANSWER
            error = self._owner.broken(BROKE_OFF if self._begun else cause)
            if self._crossed:
                error.rewritten = True
                self._owner.crossed()
            self.fail(error)
        self._parser = None  # it refers to this object, and would leave both to the garbage collector

    @property
    def _crossed(self) -> bool:
        """Whether a kept connection ended as its next request was on the way: not a byte of an answer has come."""
        asked = self._answer is not None and not self._begun
        return asked and self.idle_since > 0 and self._owner.loop.time() - self.asked_at < _CROSSED_S

    def _send_on(self) -> None:
        """Send the next piece, unless the network is to catch up first; others have their turn in between."""
        if self._unsent and not self._paused:
            self._transport.write(self._unsent.pop())
            if self._unsent and not self._paused:  # else resume_writing goes on
                self._owner.loop.call_soon(self._send_on)

    def _go_on(self) -> None:
        """Read more, unless there is too much of it, or it cannot be read."""
        most = self._owner.most
        if self._headed and self._good and any(int(value) > most for value in self._said(b"content-length")):
            self._refused = self._owner.too_long()
        if self._refused is not None:
            self._reusable = False
            self._finish()
        elif self._beside > _MOST_BESIDE:
            self.fail(self._owner.malformed(f"has headers of more than {_MOST_BESIDE >> 20} MiB"))

    @property
    def _good(self) -> bool:
        return bool(self._parser.get_status_code() < 300)

    def _said(self, name: bytes) -> list[bytes]:
        return [value for found, value in self._headers if found.lower() == name]

    # What llhttp has found.

    def on_message_begin(self) -> None:
        """A second answer to one request: what follows cannot be trusted."""
        if self._complete:
            raise ValueError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._headed = True
        for name, value in self._headers:
            if len(name) == 16 and name.lower() == b"content-encoding":
                try:
                    self._inflater = inflater_for(value.decode("latin-1"), self._most)
                except ValueError as error:
                    self._refused = self._owner.malformed(f"cannot be decoded ({error})")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._beside = 0
        if self._body or self._inflater is not None or self._refused is not None or len(body) > self._owner.most:
            self._add(body)
        else:
            self._body = body

    @property
    def _most(self) -> int:
        """Bytes that the body may have."""
        return self._owner.most if self._good else min(self._owner.most, _MOST_OF_AN_ERROR)

    def _add(self, body: bytes) -> None:
        """Add to the body, or drop what nobody will see."""
        if self._refused is not None:
            return
        if self._inflater is not None:
            self._inflate(self._inflater, body)
            return
        if isinstance(self._body, bytes):  # one buffer: small chunks would take many times their length as objects
            self._body = bytearray(self._body)
        room = self._most - len(self._body)
        self._body += body[:room]
        if len(body) > room:
            self._refused = self._owner.too_long()

    def _inflate(self, inflater: Inflater, body: bytes) -> None:
        try:
            if not inflater.add(body):
                self._refused = self._owner.too_long()
        except zlib.error as error:
            self._refused = self._owner.malformed(f"cannot be decoded ({error})")

    def on_message_complete(self) -> None:
        """The end of an answer, or of an interim one (RFC 9110, section 15.2)."""
        if self._parser.get_status_code() < 200:
            self._headers, self._headed = [], False
            return
        self._complete = True
        self._reusable = self._parser.should_keep_alive()

    def _ends_with_connection(self) -> bool:
        """Whether this is the end of a body of unknown length (RFC 9112, section 6.3), which may be empty."""
        return self._headed and not self._said(b"content-length") and not self._said(b"transfer-encoding")

    def _end(self) -> asyncio.Future[Response] | None:
        """The request there may be is over."""
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return answer

    def _finish(self) -> None:
        """Hand over the answer, and the connection for the next request if it can be used again."""
        answer = self._end()
        header, status = _Headers(self._headers).get, self._parser.get_status_code()
        body, refused = self._body, self._refused
        if self._inflater is not None:
            body, refused = self._decoded(self._inflater)
        self._body, self._headers, self._headed = b"", [], False  # an idle connection holds nobody's answer
        self._inflater, self._refused, self._beside = None, None, 0
        if self.kept_s < 0:
            self.kept_s = _keeps(header("keep-alive"))
        sent = not self._unsent and not self._transport.get_write_buffer_size()
        if self._reusable and sent and not self._transport.is_closing():
            self._owner.released(self)
        else:
            self.close()
        if answer is None or answer.done():
            return
        if refused is not None and 200 <= status < 300:
            answer.set_exception(refused)
        else:  # of an error, what could be read of it is enough
            answer.set_result(Response(status, body if isinstance(body, bytes) else bytes(body), header))

    def _decoded(self, inflater: Inflater) -> tuple[bytearray, RequestError | None]:
        if self._refused is None and not inflater.complete:
            self._refused = self._owner.malformed("cannot be decoded (it is cut short)")
        return inflater.data, self._refused

    def _expire(self, timeout: float | None) -> None:
        self.fail(timed_out(self._owner.label, timeout))


class _Headers(list[tuple[bytes, bytes]]):
    """Header lines as they came."""

    def get(self, name: str) -> str | None:
        """The first value of that name, in whatever case."""
        wanted = name.lower().encode()
        for found, value in self:
            if found.lower() == wanted:
                return value.decode("latin-1")
        return None


def _poll_of(opened: Any) -> Callable[[], object]:
    """What tells, when it is called, whether a socket has something to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: select.select([opened], [], [], 0)[0]
    poller = select.poll()
    poller.register(opened.fileno(), select.POLLIN)
    return partial(poller.poll, 0)


def _pieces(parts: Iterable[bytes | memoryview]) -> list[memoryview]:
    """A message in pieces, without a copy."""
    views = [memoryview(part) for part in parts]
    return [view[start : start + _PIECE] for view in views for start in range(0, len(view), _PIECE)]


def _keeps(announced: str | None) -> float:
    """How many seconds a connection may be idle and still be used, by what the server announced."""
    found = _ANNOUNCED.search(announced or "")
    return min((float(found[1]) if found else _KEEP_ALIVE_S) * _KEEP_ALIVE_USED, _IDLE_S)
