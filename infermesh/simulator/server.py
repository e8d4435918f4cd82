"""Serve a simulator: in this thread until a signal comes, or in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from infermesh.simulator.app import SimulatorApp
from infermesh.simulator.remote import fetch_stats, reset_stats
from infermesh.simulator.settings import SimulatorSettings

__all__ = ["Simulator", "serve"]

# Large enough that the kernel refuses none of many new connections: that would be a fault that nobody asked for.
_BACKLOG = 4096
_READ_SIZE = 4096


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _run(
    sock: socket.socket, settings: SimulatorSettings, on_ready: Callable[[], None], stop: asyncio.Event
) -> None:
    # Handlers are cancelled, or a hanging request would stay after its client has left.
    runner = web.AppRunner(
        SimulatorApp(settings).build(), access_log=None, handler_cancellation=True, shutdown_timeout=0.05
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=_BACKLOG).start()
        on_ready()
        await stop.wait()
    finally:
        await runner.cleanup()


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    name = f"[{host}]" if ":" in host else host
    return sock, f"http://{name}:{sock.getsockname()[1]}/v1"


def serve(
    settings: SimulatorSettings,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[str], None] | None = None,
    *,
    exit_with_stdin: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM. Call it in the main thread.

    Parameters
    ----------
    settings
        What the service does.
    host, port
        Where to listen. Port 0: a free one.
    on_ready
        Called once with the base URL, `http://HOST:PORT/v1`, when requests are accepted.
    exit_with_stdin
        Stop at the end of standard input, and not on signals: for a child process whose parent decides.

    Raises
    ------
    OSError
        If the address cannot be used.
    """
    sock, url = _listen(host, port)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        signals = [] if exit_with_stdin else [signal.SIGTERM, signal.SIGINT]
        for number in signals:
            # On Windows the loop has no signal handlers: Ctrl-C raises KeyboardInterrupt.
            with suppress(NotImplementedError):
                loop.add_signal_handler(number, stop.set)
        if exit_with_stdin:
            watcher = threading.Thread(target=_watch_stdin, args=(loop, stop), name="simulator-stdin", daemon=True)
            watcher.start()
        await _run(sock, settings, lambda: on_ready(url) if on_ready else None, stop)

    with sock, asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(main())


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # Not sys.stdin.read(): a daemon thread that holds its lock aborts the interpreter's shutdown.
    with suppress(OSError):
        while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, _READ_SIZE):
            pass
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


class Simulator:
    """A simulator in a thread of this process, on a free port of 127.0.0.1.

    Parameters
    ----------
    settings
        What the service does.

    Attributes
    ----------
    url
        The base URL, `http://127.0.0.1:PORT/v1`.

    Examples
    --------
    >>> with Simulator(SimulatorSettings(latency_s=0.1)) as simulator:
    ...     client = OpenAI(base_url=simulator.url, api_key="any")
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self._settings = settings or SimulatorSettings()
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None
        self._error: BaseException | None = None
        self.url = ""

    def start(self) -> Self:
        """Start it and return when it accepts requests.

        Raises
        ------
        RuntimeError
            If it is running already.
        """
        if self._thread is not None:
            raise RuntimeError("this simulator is running already")
        sock, url = _listen("127.0.0.1", 0)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(sock, ready), name="simulator", daemon=True)
        self._thread.start()
        ready.wait()
        if self._error is not None:
            self.close()
            raise self._error
        self.url = url
        return self

    def _work(self, sock: socket.socket, ready: threading.Event) -> None:
        async def main() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            self._stop = lambda: loop.call_soon_threadsafe(stop.set)
            await _run(sock, self._settings, ready.set, stop)

        try:
            with sock, asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(main())
        except BaseException as error:
            self._error = error
        finally:
            ready.set()

    def stats(self, hashes: bool = False, lines: bool = False) -> dict[str, Any]:
        """Return what `GET /stats` says."""
        return fetch_stats(self.url, hashes, lines)

    def reset(self) -> None:
        """Set all counts to zero."""
        reset_stats(self.url)

    def close(self) -> None:
        """Stop the server and wait for its thread; open connections are closed."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(RuntimeError):
                self._stop()
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
