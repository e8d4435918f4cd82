"""Control a run from other threads: stop it, query its database while it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from infermesh.store import Connection


class Control:
    """A handle on a run. Every method may be called from any thread, before, during and after the run.

    The caller uses :meth:`stop` and :meth:`read`. The run supplies their targets with :meth:`on_stop` and
    :meth:`attach`.

    Attributes
    ----------
    stopping
        Whether :meth:`stop` has been called.
    ready
        Set once the database is open and the source loaded. A :class:`~infermesh.runs.threads.RunThread` also sets it
        when the run ends before that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._cursor: Callable[[], Connection] | None = None
        self.stopping = False
        self.ready = threading.Event()

    def stop(self) -> None:
        """Drain the run: send no new request, wait for those in flight. A second call does nothing."""
        with self._lock:
            first, self.stopping = not self.stopping, True
            if first and self._stop is not None:
                self._stop()

    @contextlib.contextmanager
    def on_stop(self, stop: Callable[[], object]) -> Iterator[None]:
        """Within the block, :meth:`stop` calls ``stop``, in its caller's thread; an earlier call counts at once."""
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
        """Let :meth:`read` use connections that ``cursor`` makes. ``None`` detaches, once the current reader ends."""
        with self._reading:
            self._cursor = cursor
        if cursor is not None:
            self.ready.set()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection | None]:
        """Open a read-only connection to the run's database; ``None`` if the run does not have it open.

        The run cannot close its database within the block. One caller reads at a time.
        """
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
