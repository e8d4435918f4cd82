"""Other people's functions in threads: whatever a call ends in, or if it never ends, it costs that call alone."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import math
import queue
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from infermesh.runtime.guarded import start_thread
from infermesh.runtime.loopthread import LoopThread

logger = logging.getLogger("infermesh")

_WORDS = 4000  # characters of an error that is not ours
_ANSWERS_S = 1.0  # a loop that does not turn for so long is blocked by a function on it
_Work = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Foreign(Exception):
    """What a call of somebody else's function ended in; its text is the error's name and message.

    The error itself must not travel further: a ``StopIteration`` cannot be an awaited future's exception, a
    ``SystemExit``, ``KeyboardInterrupt`` or ``CancelledError`` would end more than the call, and the methods of any
    other are the user's too. So its text is read where the call ran, since even that may never end.

    Attributes
    ----------
    ended_in
        That exception.
    """

    def __init__(self, ended_in: BaseException) -> None:
        super().__init__(words_of(ended_in))
        self.ended_in = ended_in


def words_of(error: BaseException) -> str:
    """The name and the message of an error that is not ours: its ``__str__`` may fail, and its text be of any length.

    Examples
    --------
    >>> words_of(ValueError("no"))
    'ValueError: no'
    """
    if isinstance(error, Foreign):
        return str(error)
    try:
        text = f"{type(error).__name__}: {error}"
        return text if len(text) <= _WORDS else f"{text[:_WORDS]}…"
    except BaseException:
        return type(error).__name__


class NoAnswer(Exception):
    """A call took longer than it may."""


class ForeignFunction:
    """A function of somebody else's, called away from the caller's event loop, so that it can block neither.

    A plain function runs in a thread of a pool; an async one on an event loop in a thread of its own. Where one async
    call blocks that loop, later calls get a new loop.

    Parameters
    ----------
    name
        For the threads and for messages, such as ``module:function``.
    function
        The function, or any other callable. It gets one argument.
    threads
        The most threads of a plain function.
    taken
        Called with what the function returns, where it ran; what it returns is the result of :meth:`call`. The value is
        looked at here, because its methods are the user's as well: they may end in anything, and take long. ``None``
        takes it as it is.

    Raises
    ------
    TypeError
        It is not callable.
    """

    def __init__(self, name: str, function: Any, threads: int, taken: Callable[[Any], Any] | None = None) -> None:
        if not callable(function):
            raise TypeError(f"'{name}' is a {type(function).__name__}, not a function")
        self.name = name
        self.function = function
        self._taken = taken or (lambda value: value)
        call = function if inspect.isroutine(function) or isinstance(function, functools.partial) else function.__call__
        self._is_async = inspect.iscoroutinefunction(call)
        self._pool = DaemonThreads(threads, f"infermesh-{name}")
        self._loop: LoopThread | None = None

    async def call(self, argument: Any, timeout: float | None) -> Any:
        """Call the function once and return what it returns.

        Raises
        ------
        NoAnswer
            It took longer than ``timeout`` seconds. The call goes on unawaited: a thread cannot be cancelled.
        Foreign
            The function ended in an exception, or ``taken`` did.
        """
        if not self._is_async:
            return await _within(timeout, self._pool.call(lambda: self._taken(self.function(argument))))
        while True:
            loop = self._loop = self._loop or LoopThread(f"infermesh-{self.name}")
            begun = asyncio.Event()
            try:
                return await _within(timeout, _on(loop, _guarded(self._awaited, argument, begun)))
            except NoAnswer:
                # A call that has not even begun waited behind one that blocks the loop, which is not its own fault.
                if not await self._replaced(loop) or begun.is_set():
                    raise

    async def _awaited(self, argument: Any) -> Any:
        return self._taken(await self.function(argument))

    async def _replaced(self, loop: LoopThread) -> bool:
        """Whether a call blocks this loop, so that the next ones get another."""
        try:
            await asyncio.wait_for(_on(loop, asyncio.sleep(0)), _ANSWERS_S)
        except TimeoutError:
            if self._loop is loop:
                self._loop = None
                logger.warning("%s blocks its event loop: further calls get another one", self.name)
            return True
        return False

    def close(self) -> None:
        """End the threads. Async calls get a second to end; a call in a thread is left behind."""
        self._pool.close()
        if self._loop is not None:
            self._loop.close(timeout=_ANSWERS_S)


async def _within(timeout: float | None, call: Coroutine[Any, Any, Any]) -> Any:
    wait = None if timeout == math.inf else timeout  # no timer can be set to infinity
    try:
        async with asyncio.timeout(wait):
            return await call
    except TimeoutError:  # the function's own is a Foreign
        raise NoAnswer(f"no answer within {timeout:g} s") from None


async def _on(loop: LoopThread, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine that runs on another loop. Who is cancelled cancels it, and does not wait for its end."""
    # In a context of its own: what this loop's context says of a row is not for the requests that a function sends.
    task = contextvars.Context().run(loop.submit, coroutine)
    try:
        return await asyncio.wrap_future(task.future)
    except asyncio.CancelledError:
        task.cancel()
        raise


async def _guarded(function: Callable[[Any], Awaitable[Any]], argument: Any, begun: asyncio.Event) -> Any:
    """Await a function. Raises :class:`Foreign` for whatever it ends in."""
    begun.set()
    try:
        return await function(argument)
    except BaseException as error:
        raise Foreign(error) from None


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
        weakref.finalize(self, self._work.put, None).atexit = False

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function in a thread and return what it returns.

        Raises :class:`Foreign` for whatever the function ends in. If the caller is cancelled, the call goes on
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
        """End the threads, without waiting for calls that are running. Nobody has to call it: its end does."""
        self._work.put(None)

    def _start_threads(self) -> None:
        while self._threads < min(self._busy, self._count):
            self._threads += 1
            start_thread(self._name, functools.partial(_serve, self._work))


def _serve(waiting: queue.SimpleQueue[_Work | None]) -> None:
    while (work := waiting.get()) is not None:
        loop, future, function, arguments = work
        if future.cancelled():  # before it began: this thread is not lost, but was counted so
            return
        value: Any = None
        error: Foreign | None = None
        try:
            value = function(*arguments)
        except BaseException as raised:
            error = Foreign(raised)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(_settle, future, value, error)
        del work, function, arguments, value, error
        if future.cancelled():
            return
    waiting.put(None)  # for the next thread


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
