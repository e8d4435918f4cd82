"""Runs in threads of their own: one for each folder, drained when the interpreter ends."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from infermesh.errors import StoreError
from infermesh.runs.control import Control
from infermesh.runs.outcome import RunOutcome

_EXIT_S = 35.0  # a drain takes at most 30 s
_running: dict[Path, RunThread] = {}
_running_lock = threading.Lock()


class RunThread:
    """The thread in which a run goes on. ``future`` settles when its database is closed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.control = Control()
        self.future: Future[RunOutcome] = Future()
        self.future.set_running_or_notify_cancel()  # nobody who awaits it may cancel it
        self._thread: threading.Thread | None = None

    @property
    def here(self) -> bool:
        """Whether the caller is on the run's own thread."""
        return threading.current_thread() is self._thread

    def start(self, launched: Callable[[], RunOutcome]) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, args=(launched,), name="infermesh-run", daemon=True)
        self._thread.start()

    def _run(self, launched: Callable[[], RunOutcome]) -> None:
        error: BaseException | None = None
        try:
            outcome = launched()
        except BaseException as failure:
            error = failure
        with _running_lock:
            del _running[self.folder]
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(outcome)
        self.control.ready.set()

    def end(self) -> None:
        """Drain, and wait for it."""
        self.control.stop()
        if self._thread is not None:
            self._thread.join(_EXIT_S)


def running_in(folder: Path) -> RunThread | None:
    """The run of this process that goes on in a folder."""
    with _running_lock:
        return _running.get(folder.resolve())


@contextmanager
def claim(work: RunThread) -> Iterator[None]:
    """Let no second run of this process into the folder: DuckDB would not mind. Given back where no thread starts."""
    with _running_lock:
        if work.folder in _running:
            raise StoreError(f"{work.folder}: a run of this process is at it; wait for it, or stop it")
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
    """Drain what still runs when the interpreter ends: while threads can still be started, so not through atexit."""
    global _registered
    register = getattr(threading, "_register_atexit", None)
    if not _registered and register is not None:
        _registered = True
        importlib.import_module("concurrent.futures.thread")  # registers too, and what comes last is called first
        with suppress(RuntimeError):  # it is ending already
            register(_drain)


def _drain() -> None:
    with _running_lock:
        works = list(_running.values())
    for work in works:
        work.control.stop()
    for work in works:
        work.end()
