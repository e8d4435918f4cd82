"""The worker's end of a link: messages in, one at a time, and answers out."""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import socket
import struct
from typing import Any, Protocol

__all__ = ["HEAD", "Channel", "QueueChannel", "SocketChannel", "framed"]

HEAD = struct.Struct("!Q")  # before each message: its length in bytes


def framed(message: Any) -> bytes:
    """A message as it travels over a socket: its length, and its pickle."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(body)) + body


class Channel(Protocol):
    """Where a worker hears its hub, and answers."""

    def receive(self, timeout_s: float | None) -> Any:
        """Wait for the next message, in a thread. Raises ``EOFError`` or ``OSError``: the hub is gone, or silent."""
        ...

    async def send(self, message: Any) -> None:
        """Answer."""
        ...


class SocketChannel:
    """A socket that the hub's process has opened. It is at its end when that process is."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outgoing = socket.socket(fileno=os.dup(connection.fileno()))

    def receive(self, timeout_s: float | None) -> Any:
        # To the system both are one file, which is in blocking mode or not: nobody sends while this waits for ever.
        self._connection.settimeout(timeout_s)
        (length,) = HEAD.unpack(self._exactly(HEAD.size))
        return pickle.loads(self._exactly(length))

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if not (part := self._connection.recv(min(size - len(parts), 1 << 20))):
                raise EOFError
            parts += part
        return bytes(parts)

    async def send(self, message: Any) -> None:
        self._outgoing.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(self._outgoing, framed(message))


class QueueChannel:
    """Calls that come in another thread of this process, which waits for their answers: :meth:`call`."""

    def __init__(self) -> None:
        self._incoming: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def call(self, message: bytes) -> bytes:
        """Take a pickled message, and wait for its pickled answer."""
        self._incoming.put(message)
        return self._outgoing.get()

    def receive(self, timeout_s: float | None) -> Any:
        try:
            return pickle.loads(self._incoming.get(timeout=timeout_s))
        except queue.Empty:
            raise EOFError from None

    async def send(self, message: Any) -> None:
        self._outgoing.put(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
