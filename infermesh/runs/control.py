"""A run in the hands of another thread: stop it, ask its database while it goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Control:
    """What somebody outside may do with a run; every method may be called from any thread, before and after it too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._cursor: Callable[[], Any] | None = None
        self.stopping = False
        self.ready = threading.Event()  # the database has been opened and its source is loaded

    def stop(self) -> None:
        """Drain the run: nothing more is sent, what is in flight is waited for. A second time changes nothing."""
        with self._lock:
            first, self.stopping = not self.stopping, True
            if first and self._stop is not None:
                self._stop()

    @contextlib.contextmanager
    def stops(self, stop: Callable[[], object]) -> Iterator[None]:
        """While inside, :meth:`stop` calls ``stop``, from whichever thread; at once where it was asked for before."""
        with self._lock:
            self._stop = stop
            if self.stopping:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None

    def opened(self, cursor: Callable[[], Any] | None) -> None:
        """The run has opened its database, and ``cursor`` makes a connection to it; ``None`` before it is closed.

        Waits for queries that are going on.
        """
        with self._reading:
            self._cursor = cursor
        if cursor is not None:
            self.ready.set()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
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
