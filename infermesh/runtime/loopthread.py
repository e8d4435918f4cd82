"""An event loop in a thread of its own, and the way to it from other threads and loops.

A client does all its work on one such loop: whoever calls, from whichever thread or loop, meets the same limits and the
same slots, and no lock stands anywhere in the code that does the work.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeAlias, TypeVar

from infermesh.runtime.loop import new_loop

__all__ = ["Call", "Hop", "LoopThread"]

T = TypeVar("T")
_Settled: TypeAlias = "tuple[asyncio.Future[Any], Future[Any]]"  # a caller's future, and what has become of its call


class Hop(Generic[T]):
    """Hands values to an event loop from other threads. A burst of them wakes the loop once.

    Parameters
    ----------
    loop
        Where ``receive`` is called, with one value at a time, in the order in which they were sent.
    receive
        Must not raise.
    """

    __slots__ = ("_on_its_way", "_receive", "_values", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[T], object]) -> None:
        self.loop = loop
        self._receive = receive
        self._values: deque[T] = deque()
        self._on_its_way = False

    def send(self, value: T) -> None:
        """Hand over a value. Raises ``RuntimeError`` once the loop is closed."""
        self._values.append(value)
        if not self._on_its_way:
            self._on_its_way = True
            try:
                self.loop.call_soon_threadsafe(self._land)
            except RuntimeError:
                self._on_its_way = False
                raise

    def _land(self) -> None:
        self._on_its_way = False  # before the values are taken: whoever adds one after the last look wakes us again
        values = self._values
        while values:
            self._receive(values.popleft())


class Call(Generic[T]):
    """One coroutine that runs, or is about to run, on a :class:`LoopThread`.

    Attributes
    ----------
    future
        Settled when the coroutine has ended, cancelled or not; nobody outside can cancel it.
    """

    __slots__ = ("_cancelled", "_context", "_coroutine", "_hop", "_task", "future")

    def __init__(self, coroutine: Coroutine[Any, Any, T], hop: Hop[Call[Any]]) -> None:
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._hop = hop
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Ask the coroutine to end; from any thread."""
        self._cancelled = True
        with suppress(RuntimeError):  # the loop is closed, so the call has ended
            self._hop.send(self)

    def step(self) -> None:
        """Start it, or carry the wish to cancel it to its task; on the loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._coroutine, context=self._context)
            self._task.add_done_callback(self._ended)
        if self._cancelled:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(RuntimeError("the client was closed, or the call cancelled, before its end"))
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class LoopThread:
    """A daemon thread that runs an event loop until :meth:`close`.

    Parameters
    ----------
    name
        The thread's name.
    """

    def __init__(self, name: str) -> None:
        self.loop = new_loop()
        self._hop: Hop[Call[Any]] = Hop(self.loop, Call.step)
        self._back: Hop[_Settled] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()
        self._last_task: asyncio.Task[None] | None = None  # a loop holds its tasks weakly
        self._thread = threading.Thread(target=_serve, args=(self.loop, self._ended), name=name, daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether the caller is on this very thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Call[T]:
        """Start a coroutine.

        Raises
        ------
        RuntimeError
            The loop was closed, or this process is a fork of the one that has the thread.
        """
        call: Call[T] = Call(coroutine, self._hop)
        # Under the lock: what is sent before close() says so is there before the loop winds up.
        with self._lock:
            if not self._closed and self._thread.is_alive():
                self._hop.send(call)
                return call
        coroutine.close()
        if self._closed:
            raise RuntimeError("the client is closed")
        raise RuntimeError("this process was forked from the one that used the client: make a client in each process")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it in this thread. Interrupted (Ctrl-C), it is cancelled and has ended."""
        if self.here:
            coroutine.close()
            raise RuntimeError(
                "a synchronous call on the client's own loop would wait for itself: use the async method"
            )
        call = self.submit(coroutine)
        try:
            return call.future.result()
        finally:
            if not call.future.done():
                self.end(call)

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and await it in the caller's loop. If the caller is cancelled, so is the coroutine."""
        back, call = self._way_back(), self.submit(coroutine)
        answer: asyncio.Future[T] = back.loop.create_future()

        def send_back(done: Future[T]) -> None:
            with suppress(RuntimeError):  # the caller's loop is closed
                back.send((answer, done))

        call.future.add_done_callback(send_back)
        try:
            return await answer
        except asyncio.CancelledError:
            await self.aend(call)
            raise

    def _way_back(self) -> Hop[_Settled]:
        """To the running loop, which is mostly the one that asked before: a burst of answers wakes it once."""
        loop = asyncio.get_running_loop()
        back = self._back
        if back is None or back.loop is not loop:
            self._back = back = Hop(loop, _hand_over)
        return back

    def end(self, call: Call[Any]) -> None:
        """Cancel a call and wait until it has ended; on the loop's own thread, only cancel it."""
        call.cancel()
        if not self.here:
            call.future.exception()

    async def aend(self, call: Call[Any]) -> None:
        """Cancel a call and await its end."""
        call.cancel()
        if not call.future.done():
            end = asyncio.wrap_future(call.future)
            end.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks for its error
            await asyncio.wait([end])

    def close(self, last: Callable[[], Awaitable[None]] | None = None, patience: float | None = None) -> None:
        """Cancel every call, await ``last`` on the loop, and end the thread; wait for that, at most so many seconds."""
        if self._begin_to_close(last) and not self.here:
            self._thread.join(patience)

    async def aclose(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Do the same, and await it."""
        if self._begin_to_close(last) and not self.here:
            await asyncio.wrap_future(self._ended)
            self._thread.join()

    def _begin_to_close(self, last: Callable[[], Awaitable[None]] | None) -> bool:
        """Whether there is a thread to wait for: after a fork it is another process's."""
        with self._lock:
            first, self._closed = not self._closed, True
            alive = self._thread.is_alive()
            if alive and first:
                self.loop.call_soon_threadsafe(self._wind_up, last)
        return alive

    def _wind_up(self, last: Callable[[], Awaitable[None]] | None) -> None:
        self._last_task = self.loop.create_task(_wind_up(last))


async def _wind_up(last: Callable[[], Awaitable[None]] | None) -> None:
    loop = asyncio.get_running_loop()
    try:
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if last is not None:
            await last()
    finally:
        loop.stop()


def _hand_over(settled: _Settled) -> None:
    """Settle the future of a caller who still waits."""
    answer, done = settled
    if answer.done():
        return
    if (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


def _serve(loop: asyncio.AbstractEventLoop, ended: Future[None]) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        ended.set_result(None)
