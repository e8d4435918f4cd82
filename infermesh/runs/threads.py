"""The threads of runs started from Python: at most one per folder, drained at interpreter exit."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from infermesh.errors import StoreError
from infermesh.runs.control import Control
from infermesh.runs.outcome import RunOutcome
from infermesh.runtime.guarded import start_thread

_EXIT_S = 35.0  # a drain takes at most 30 s
_running: dict[Path, RunThread] = {}
_running_lock = threading.Lock()


class RunThread:
    """A run's thread.

    Attributes
    ----------
    control
        Stops the run, queries its database.
    future
        The outcome or the exception, set once the run's database is closed. It cannot be cancelled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.control = Control()
        self.future: Future[RunOutcome] = Future()
        self.future.set_running_or_notify_cancel()  # a cancelled await of the run must not cancel the run
        self._thread: threading.Thread | None = None

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread, as an observer does."""
        return threading.current_thread() is self._thread

    def start(self, target: Callable[[], RunOutcome]) -> None:
        self._thread = start_thread("infermesh-run", functools.partial(self._run, target), died=self._died)

    def _run(self, target: Callable[[], RunOutcome]) -> None:
        error: BaseException | None = None
        try:
            outcome = target()
        except BaseException as failure:
            error = failure
        # The folder is free before the future is set: who awaits the end may start the next run in it at once.
        with _running_lock:
            del _running[self.folder]
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(outcome)
        self.control.ready.set()

    def _died(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.control.ready.set()

    def drain(self) -> None:
        """Stop the run and wait for its end, at most 35 seconds."""
        self.control.stop()
        if self._thread is not None:
            self._thread.join(_EXIT_S)


def running_in(folder: Path) -> RunThread | None:
    """This process's running run in a folder; ``None`` if there is none."""
    with _running_lock:
        return _running.get(folder.resolve())


@contextmanager
def claim(work: RunThread) -> Iterator[None]:
    """Reserve a run's folder until the run ends. If the block raises before the thread starts, it is released.

    DuckDB's lock keeps other processes out, but not a second run of the same process.

    Raises
    ------
    StoreError
        Another run of this process uses the folder.
    """
    with _running_lock:
        if work.folder in _running:
            raise StoreError(f"{work.folder}: another run of this process uses this folder; wait for it, or stop it")
        _running[work.folder] = work
        _drain_at_exit()
    try:
        yield
    except BaseException:
        with _running_lock:
            _running.pop(work.folder, None)
        raise


_registered = False


def _drain_at_exit() -> None:
    """Register :func:`_drain_all` for interpreter exit.

    A drain may need new threads. When ``atexit`` handlers run, none can be started any more; threading's own handlers
    run before that. They run in reverse order of registration, and the thread pools' handler, which ends the pools,
    must run after ours: hence the import first.
    """
    global _registered
    register = getattr(threading, "_register_atexit", None)
    if not _registered and register is not None:
        _registered = True
        importlib.import_module("concurrent.futures.thread")
        with suppress(RuntimeError):  # the interpreter is already exiting
            register(_drain_all)


def _drain_all() -> None:
    with _running_lock:
        works = list(_running.values())
    for work in works:
        work.control.stop()  # all at once, so that the drains overlap
    for work in works:
        work.drain()
