"""The scheduling loop: a bounded number of workers over a stream of items; and the queue that feeds it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Channel", "run_window"]

T = TypeVar("T")

# A worker whose items never wait (rows that are skipped, answers from a cache) lets others run after so many of them.
YIELD_EVERY = 256


async def run_window(
    pull: Callable[[], Awaitable[T]], handle: Callable[[T], Awaitable[None]], window: int | None
) -> None:
    """Handle every item that ``pull`` gives, at most ``window`` at once.

    Workers are started as items come, and each takes one item after the other: there is no task per item.

    Parameters
    ----------
    pull
        Gives the next item and raises ``StopAsyncIteration`` after the last. Never called while another call of it
        runs, so that an asynchronous generator's ``__anext__`` will do.
    handle
        Deals with one item.
    window
        Items in hand at once; ``None`` starts a task for every item as soon as it comes.

    Raises
    ------
    BaseException
        The first error of ``pull`` or ``handle``; the other workers have been cancelled and have ended by then. The
        same holds when the caller is cancelled.
    ValueError
        A window below 1.
    """
    if window is not None and window < 1:
        raise ValueError(f"window: expected at least 1, got {window}")
    crew: _Crew[T] = _Crew(pull, handle, window)
    await crew.run()


class _Crew(Generic[T]):
    """Workers that share one source. Whoever holds the baton pulls, and lets go of it with an item in hand."""

    def __init__(
        self, pull: Callable[[], Awaitable[T]], handle: Callable[[T], Awaitable[None]], window: int | None
    ) -> None:
        self._pull = pull
        self._handle = handle
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._baton_free = True
        self._scouting = False
        self._exhausted = False
        self._failure: BaseException | None = None

    async def run(self) -> None:
        self._start(self._work() if self._window is not None else self._fan_out())
        try:
            await self._over
        finally:
            await self._disband()
        if self._failure is not None:
            raise self._failure

    async def _disband(self) -> None:
        """End what still runs. The wait goes on if the caller is cancelled again, so that no worker outlives it."""
        cancelled: asyncio.CancelledError | None = None
        for worker in self._workers:
            worker.cancel()
        while self._workers:
            try:
                await asyncio.wait(self._workers)
            except asyncio.CancelledError as again:
                cancelled = again
        if cancelled is not None:
            raise cancelled

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        worker = self._loop.create_task(coroutine)
        self._workers.add(worker)
        worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        error = asyncio.CancelledError() if worker.cancelled() else worker.exception()
        if error is not None and self._failure is None:
            self._failure = error
        if (error is not None or not self._workers) and not self._over.done():
            self._over.set_result(None)

    async def _work(self) -> None:
        pull, handle, me = self._pull, self._handle, asyncio.current_task()
        count = 0
        while await self._take_baton():
            try:
                item = await pull()
            except StopAsyncIteration:
                self._exhausted = True
                for sleeper in self._idle:
                    sleeper.set_result(None)
                return
            self._pass_baton()
            await handle(item)
            del item
            # A cancellation that comes in the very turn in which an answer does is lost in the HTTP client.
            if me is not None and me.cancelling():
                raise asyncio.CancelledError
            count += 1
            if not count % YIELD_EVERY:
                await asyncio.sleep(0)

    def _pass_baton(self) -> None:
        """Let go of the baton. Somebody else is sent for it only after this turn of the loop, if it still lies there.

        A worker whose item never waits takes it up again at once, and spares the switch to another task.
        """
        self._baton_free = True
        if not self._scouting and self._more_hands:
            self._scouting = True
            self._loop.call_soon(self._scout)

    @property
    def _more_hands(self) -> bool:
        return bool(self._idle) or self._window is None or len(self._workers) < self._window

    def _scout(self) -> None:
        self._scouting = False
        if not self._baton_free or self._over.done() or not self._more_hands:
            return
        if self._idle:
            self._idle.pop().set_result(None)
        else:
            self._start(self._work())

    async def _take_baton(self) -> bool:
        """Wait to be the one who pulls; false once there is nothing left to pull."""
        while not self._exhausted:
            if self._baton_free:
                self._baton_free = False
                return True
            sleeper = self._loop.create_future()
            self._idle.append(sleeper)
            await sleeper  # and look again: a worker that was done sooner may have it
        return False

    async def _fan_out(self) -> None:
        count = 0
        while True:
            try:
                item = await self._pull()
            except StopAsyncIteration:
                return
            self._start(self._one(item))
            count += 1
            if not count % YIELD_EVERY:
                await asyncio.sleep(0)

    async def _one(self, item: T) -> None:
        await self._handle(item)


class Channel(Generic[T]):
    """An unbounded queue within one event loop, with an end.

    Items leave in the order in which they came. A cancelled ``get`` or ``get_batch`` loses none.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called; items may still be there."""
        return self._closed

    def put_nowait(self, item: T) -> None:
        """Add an item. Raises ``RuntimeError`` once closed."""
        if self._closed:
            raise RuntimeError("put on a closed channel")
        self._items.append(item)
        if self._getters:
            self._wake_one()

    def close(self) -> None:
        """Say that nothing more comes. What is there can still be taken."""
        self._closed = True
        while self._getters:
            self._wake_one()

    def drop(self) -> None:
        """Forget what is there, and close."""
        self._items.clear()
        self.close()

    async def get(self) -> T:
        """Take the next item, waiting for one; ``StopAsyncIteration`` once closed and empty."""
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            await self._wait(None)
        return self._items.popleft()

    async def get_batch(self, n: int, linger_s: float = 0.0) -> list[T]:
        """Take up to ``n`` items.

        Waits for the first, takes what is there, and waits up to ``linger_s`` seconds more for the rest, unless closed.

        Raises
        ------
        StopAsyncIteration
            Closed and empty.
        ValueError
            ``n`` is below 1.
        """
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        batch = [await self.get()]
        try:
            loop = asyncio.get_running_loop()
            until = loop.time() + linger_s
            while True:
                while self._items and len(batch) < n:
                    batch.append(self._items.popleft())
                if len(batch) == n or self._closed or loop.time() >= until:
                    return batch
                await self._wait(until)
        except BaseException:
            self._items.extendleft(reversed(batch))
            for _ in batch:
                self._wake_one()
            raise

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    async def _wait(self, until: float | None) -> None:
        """Wait for an item, the end, or the loop time ``until``."""
        loop = asyncio.get_running_loop()
        getter: asyncio.Future[None] = loop.create_future()
        self._getters.append(getter)
        timer = None if until is None else loop.call_at(until, _wake, getter)
        try:
            await getter
        except asyncio.CancelledError:
            # Woken and cancelled in the same turn: the item that it was woken for is somebody else's now.
            if getter.cancelled():
                if getter in self._getters:
                    self._getters.remove(getter)
            elif self._items:
                self._wake_one()
            raise
        finally:
            if timer is not None:
                timer.cancel()


def _wake(getter: asyncio.Future[None]) -> None:
    if not getter.done():
        getter.set_result(None)
