"""Other people's functions in threads: whatever a call ends in, or if it never ends, it costs that call alone."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

_Work = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Foreign(Exception):
    """A call ended in an exception that must not travel further as it is: exit, interrupt, cancellation, StopIteration.

    Attributes
    ----------
    ended_in
        That exception.
    """

    def __init__(self, ended_in: BaseException) -> None:
        super().__init__(type(ended_in).__name__)
        self.ended_in = ended_in


def words_of(error: BaseException) -> str:
    """The name and the message of an error that is not ours: its ``__str__`` may fail as well.

    Examples
    --------
    >>> words_of(ValueError("no"))
    'ValueError: no'
    """
    if isinstance(error, Foreign):
        error = error.ended_in
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__


def harmless(error: BaseException) -> Exception:
    """The error itself if it may be raised on an event loop; else a :class:`Foreign` that holds it.

    A ``StopIteration`` cannot be an awaited future's exception, and ``SystemExit``, ``KeyboardInterrupt`` or
    ``CancelledError`` would end more than the call.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    return Foreign(error)


class DaemonThreads:
    """Threads for calls that may hang.

    Python waits for the threads of a ``ThreadPoolExecutor`` before it exits, so that one call that never returns keeps
    the process for ever. These are daemons. A call that nobody waits for any more has its thread replaced, so that
    calls that hang do not use up the others' threads.

    Parameters
    ----------
    count
        Threads at most, but for those whose call was given up.
    name
        The threads' name.

    Examples
    --------
    >>> threads = DaemonThreads(4, "functions")
    >>> await threads.call(len, "four")
    4
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0  # calls that somebody waits for

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function in a thread and return what it returns.

        Raises what the function raises, as :func:`harmless` makes it. If the caller is cancelled, the call goes on
        unawaited: a thread cannot be cancelled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._busy += 1
        self._start_threads()
        self._work.put((loop, future, function, arguments))
        try:
            return await future
        finally:
            self._busy -= 1
            if future.cancelled():
                self._threads -= 1  # its thread may hang; it ends after this call
                self._start_threads()  # for the calls behind it

    def close(self) -> None:
        """End the threads, without waiting for calls that are running."""
        self._work.put(None)

    def _start_threads(self) -> None:
        while self._threads < min(self._busy, self._count):
            self._threads += 1
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            loop, future, function, arguments = work
            if future.cancelled():  # before it began: this thread is not lost, but was counted so
                return
            value: Any = None
            error: Exception | None = None
            try:
                value = function(*arguments)
            except BaseException as raised:
                error = harmless(raised)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(_settle, future, value, error)
            del work, function, arguments, value, error
            if future.cancelled():
                return
        self._work.put(None)  # for the next thread


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
