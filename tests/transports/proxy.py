"""A proxy as companies have them: it forwards requests to ``http://``, and gives tunnels to ``https://``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class HttpProxy:
    """Its address and what it was asked. It takes every name for this machine.

    ``wanted`` is the ``proxy-authorization`` it insists on, and ``answer`` what it says instead of doing its work.
    """

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.wanted: str | None = None
        self.answer: bytes | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def fields(self, number: int = 0) -> dict[str, str]:
        """The header lines of a request."""
        lines = self.heads[number].decode().split("\r\n")[1:-2]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @asynccontextmanager
    async def serving(self, context: ssl.SSLContext | None = None) -> AsyncIterator[HttpProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(task := asyncio.ensure_future(self._work(reader, writer)))
        task.add_done_callback(self._tasks.discard)

    async def _work(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(head := await reader.readuntil(b"\r\n\r\n"))
            if self.wanted is not None and self.fields(-1).get("proxy-authorization") != self.wanted:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            elif self.answer is not None:
                writer.write(self.answer)
            else:
                await self._pass_on(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = head.split(b" ", 2)
        place = target if method == b"CONNECT" else target.split(b"/")[2]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", int(place.rpartition(b":")[2]))
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return
        whole = b"" if method == b"CONNECT" else b"http://" + place
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            back.write(head.replace(whole, b"", 1))
        pumps = [asyncio.ensure_future(_pump(reader, back, whole)), asyncio.ensure_future(_pump(there, writer, b""))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: bytes) -> None:
    """Bytes from one side to the other; a further request's URL loses what is the proxy's business."""
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data.replace(whole, b"", 1) if whole else data)
            await writer.drain()
