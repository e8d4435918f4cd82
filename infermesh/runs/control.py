"""A run in the hands of other threads: stop it, query its database while it goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from infermesh.store import Connection


class Control:
    """What somebody outside may do with a run. Every method may be called from any thread, before and after it too.

    The holder calls :meth:`stop` and :meth:`read`; the run tells what they reach by :meth:`on_stop` and :meth:`attach`.

    Attributes
    ----------
    stopping
        Whether somebody has asked the run to stop.
    ready
        Set once the database is open and its source loaded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._cursor: Callable[[], Connection] | None = None
        self.stopping = False
        self.ready = threading.Event()

    def stop(self) -> None:
        """Drain the run: nothing more is sent, what is in flight is waited for. A second time changes nothing."""
        with self._lock:
            first, self.stopping = not self.stopping, True
            if first and self._stop is not None:
                self._stop()

    @contextlib.contextmanager
    def on_stop(self, stop: Callable[[], object]) -> Iterator[None]:
        """While inside, :meth:`stop` calls ``stop``, from whichever thread; at once where it was called before."""
        with self._lock:
            self._stop = stop
            if self.stopping:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None

    def attach(self, cursor: Callable[[], Connection] | None) -> None:
        """Let :meth:`read` use connections that ``cursor`` makes; ``None`` detaches, and waits for who is reading."""
        with self._reading:
            self._cursor = cursor
        if cursor is not None:
            self.ready.set()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection | None]:
        """A read-only connection to the live database, ``None`` where no run has it open. The run ends after it."""
        with self._reading:
            if self._cursor is None:
                yield None
                return
            connection = self._cursor()
            try:
                connection.execute("BEGIN TRANSACTION READ ONLY")
                yield connection
            finally:
                connection.close()
