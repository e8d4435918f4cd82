"""Workers that are child processes of this machine, over a socket pair."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from infermesh.runs.crew.channel import HEAD, framed
from infermesh.runs.crew.links import LostError

__all__ = ["LocalLink", "LocalLinks"]

_ROOT = Path(__file__).resolve().parents[4]
_KILL_S = 10.0  # a killed process is gone by then


class LocalLink:
    """A child process. Make it with :meth:`start`.

    It is in a session of its own, so that Ctrl-C on the terminal is the hub's alone. It ends by itself once the hub's
    end of the socket is closed, which the system does even where the hub was killed.
    """

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self.name = name
        self.pid = process.pid
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, number: int) -> LocalLink:
        """Start worker ``number``; its imports go on while the first call waits. Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = cls._popen(theirs.fileno())
        link = cls(process, f"worker {number} (process {process.pid})")
        link._reader, link._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        return link

    @staticmethod
    def _popen(descriptor: int) -> subprocess.Popen[bytes]:
        # The child must import the same package as the hub.
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [sys.executable, "-m", "infermesh.runs.crew.worker", str(descriptor)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[descriptor],
            start_new_session=True,
        )

    async def call(self, message: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(framed(message))
                await self._writer.drain()
                (length,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
                return pickle.loads(await self._reader.readexactly(length))
        except TimeoutError:
            raise LostError(f"has said nothing for {timeout_s:g} s") from None
        except (OSError, EOFError):  # an IncompleteReadError is an EOFError
            raise LostError(await asyncio.to_thread(self._ended)) from None

    def _ended(self) -> str:
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "has closed its connection"
        return f"was ended by {_signal(-code)}" if code < 0 else f"has ended with exit status {code}"

    async def end(self) -> None:
        self._writer.close()
        await asyncio.to_thread(self._kill)

    def _kill(self) -> None:
        try:
            self._process.wait(0.5)  # a moment to end by itself
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_KILL_S)


class LocalLinks:
    """This machine: it has room for whatever is asked for."""

    async def open(self, workers: int) -> tuple[int, int]:
        return workers, workers

    async def start(self, number: int) -> LocalLink:
        return await LocalLink.start(number)

    async def aclose(self) -> None:
        pass


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
