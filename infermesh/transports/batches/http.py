"""Calls to a batch API: files of hundreds of megabytes, sent and fetched without ever being in memory.

aiohttp does it, at no cost that matters: a batch of 50,000 requests takes a handful of calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson

from infermesh.errors import APIConnectionError, InputError, MalformedResponseError, RequestError, RequestTimeoutError
from infermesh.redaction import origin, redact
from infermesh.transports.batches.wire import LineResult
from infermesh.transports.errors import error_from_status, error_in_body
from infermesh.transports.http.trust import client_context
from infermesh.transports.native import Access

__all__ = ["BatchHttp", "Said", "line_error", "moment", "seconds_to_wait"]

_CALL_S = 120.0  # for a call that moves no file
_IDLE_S = 120.0  # without a byte, where one does
_BLOCK = 1 << 18
_MOST = 64 << 20  # bytes of an answer that is no file: a listing of 100 batches has 100 kB
_Body = Callable[[], Any]


class Said(NamedTuple):
    """An answer: its decoded JSON, and a case-insensitive header lookup."""

    body: dict[str, Any]
    header: Callable[[str], str | None]


def line_error(access: Access, result: LineResult) -> RequestError:
    """The error of a line that failed, as a live request would have raised it."""
    body = result.body if isinstance(result.body, dict) else {"error": {"message": str(result.body)[:500]}}
    given: Any = {"secrets": access.secrets, "url": origin(access.url("")), "model": access.model}
    if result.status is None or 200 <= result.status < 300:
        return error_in_body(200, body, _no_header, access.label, **given)
    return error_from_status(result.status, body, _no_header, access.label, **given)


def _no_header(name: str) -> None:
    return None


def seconds_to_wait(header: Callable[[str], str | None]) -> float | None:
    """After how many seconds to look again, as an answer's headers say."""
    said = header("retry-after")
    return float(said) if said is not None and said.replace(".", "", 1).isdigit() else None


def moment(said: Any) -> float | None:
    """A time as a number, or as ISO 8601 writes it, in seconds since the epoch; ``None``: it is none."""
    if isinstance(said, str):
        try:
            return datetime.fromisoformat(said).timestamp()
        except ValueError:
            return None
    return float(said) if isinstance(said, int | float) else None


class BatchHttp:
    """One endpoint's connections, made at the first call in the running loop. Nothing is sent twice.

    aiohttp sends a GET again where a kept connection turns out to be closed, and nothing else.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        body: _Body | None = None,
        blank: bool = False,
    ) -> Said:
        """Send one request, and read its JSON.

        Parameters
        ----------
        body
            Makes what is sent, such as a form with a file in it, which may take its time.
        blank
            Whether an answer may have no body.
        """
        own = {name: value for name, value in self.access.headers.items() if name != "content-type"}
        given: dict[str, Any] = {"headers": {**own, **(headers or {})}, "params": params}
        if json is not None:
            given["data"] = orjson.dumps(json)
            given["headers"]["content-type"] = "application/json"
        elif body is not None:
            given["data"] = body()
        timeout = aiohttp.ClientTimeout(total=None if body is not None else _CALL_S, sock_read=_CALL_S, sock_connect=30)
        try:
            async with self._open().request(method, url, timeout=timeout, allow_redirects=False, **given) as answer:
                data = await answer.content.read(_MOST) if answer.status >= 400 else await answer.read()
                header = answer.headers.get
                if not 200 <= answer.status < 300:
                    raise self._refused(answer.status, data, header)
        except RequestError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._broken(error) from None
        if blank and not data.strip():
            return Said({}, header)
        try:
            read = orjson.loads(data)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            shown = redact(" ".join(data[:2000].decode("utf-8", "replace").split()), *self.access.secrets)[:200]
            raise MalformedResponseError(
                f"{self.access.label}: the answer of {origin(url)} is no JSON object: {shown!r}. Check that api_base "
                "is that of a provider with a batch API",
                deployment=self.access.label,
            )
        return Said(read, header)

    async def fetch(self, url: str, target: Path, *, headers: Mapping[str, str] | None = None) -> None:
        """Append a file to ``target``, and a line's end where it has none.

        Raises where the connection breaks off in between; what has come then stands in ``target``.
        """
        own = {name: value for name, value in self.access.headers.items() if name != "content-type"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=_IDLE_S, sock_connect=30)
        given = {**own, **(headers or {}), "accept": "*/*"}
        try:
            # A redirect is refused: aiohttp would take keys along, but for the one in `authorization`.
            async with self._open().get(url, timeout=timeout, headers=given, allow_redirects=False) as answer:
                if not 200 <= answer.status < 300:
                    raise self._refused(answer.status, await answer.content.read(_MOST), answer.headers.get)
                with target.open("ab") as file:
                    last = b"\n"
                    async for block in answer.content.iter_chunked(_BLOCK):
                        await asyncio.to_thread(file.write, block)
                        last = block[-1:]
                    if last != b"\n":
                        file.write(b"\n")
        except RequestError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._broken(error) from None

    async def first_line(self, url: str) -> bytes:
        """The first line of a file, of which not much more is fetched. ``b""``: it is empty."""
        headers = {name: value for name, value in self.access.headers.items() if name != "content-type"}
        timeout = aiohttp.ClientTimeout(total=_CALL_S, sock_connect=30)
        line = b""
        try:
            async with self._open().get(url, timeout=timeout, headers=headers, allow_redirects=False) as answer:
                if not 200 <= answer.status < 300:
                    raise self._refused(answer.status, await answer.content.read(_MOST), answer.headers.get)
                while b"\n" not in line and len(line) < _MOST and (block := await answer.content.readany()):
                    line += block
                answer.close()  # else the rest would be read, so that the connection can be kept
        except RequestError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._broken(error) from None
        return line.partition(b"\n")[0]

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            try:
                trusted = client_context(self.access.ca_bundle)
            except ValueError as error:
                raise InputError(f"{self.access.label}: {error}", deployment=self.access.label) from None
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trusted, limit=8), trust_env=True, auto_decompress=True
            )
        return self._session

    def _refused(self, status: int, data: bytes, header: Any) -> RequestError:
        access = self.access
        return error_from_status(status, data, header, access.label, secrets=access.secrets)

    def _broken(self, error: Exception) -> RequestError:
        label, place = self.access.label, origin(self.access.url(""))
        said = redact(str(error) or type(error).__name__, *self.access.secrets)
        if isinstance(error, TimeoutError):
            return RequestTimeoutError(f"{label}: {place} did not answer in time", deployment=label)
        broken = APIConnectionError(f"{label}: {place}: {said}", deployment=label)
        broken.connected = not isinstance(error, aiohttp.ClientConnectorError)
        return broken
