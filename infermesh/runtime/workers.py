"""The scheduling loop: a bounded number of workers over a stream of items; and the queue that feeds it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Channel", "Window", "run_window"]

T = TypeVar("T")

# A worker whose items never wait (rows that are skipped, answers from a cache) gives others a turn after so many.
YIELD_EVERY = 256


async def run_window(
    pull: Callable[[], Awaitable[T]], handle: Callable[[T], Awaitable[None]], window: int | Window | None
) -> None:
    """Handle every item that ``pull`` gives, at most ``window`` at once.

    Workers are started as items come, and each handles one item after another: there is no task per item, which would
    cost three times as much CPU (1.5 against 4.4 µs).

    Parameters
    ----------
    pull
        Gives the next item and raises ``StopAsyncIteration`` after the last. Never called while another call of it
        runs, so that an asynchronous generator's ``__anext__`` will do.
    handle
        Handles one item.
    window
        Items at once, which a :class:`Window` may change meanwhile; ``None`` starts a task for every item as soon as it
        comes.

    Raises
    ------
    BaseException
        The first error of ``pull`` or ``handle``; the other workers have been cancelled and have ended by then. The
        same holds when the caller is cancelled.
    ValueError
        A window below 1.
    """
    workers: float | None
    if isinstance(window, Window):
        (pull, handle), workers = window.around(pull, handle), math.inf  # one waits in `pull` for room, and no other
    elif window is not None and window < 1:
        raise ValueError(f"window: expected at least 1, got {window}")
    else:
        workers = window
    pool: _WorkerPool[T] = _WorkerPool(pull, handle, workers)
    await pool.run()


class _WorkerPool(Generic[T]):
    """Workers over one source.

    One worker pulls at a time, the one with the pull lock, and releases it with an item in hand: an asynchronous
    generator allows no more, and a puller that gathers a micro-batch must not race with others for its items. The pool
    begins with a single worker. Another is started or woken only when an item waits to be pulled while all that run are
    busy, so that ten items under a window of a thousand cost ten tasks, and items that never wait cost one.
    """

    def __init__(
        self, pull: Callable[[], Awaitable[T]], handle: Callable[[T], Awaitable[None]], window: float | None
    ) -> None:
        self._pull = pull
        self._handle = handle
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._pull_locked = False
        self._check_scheduled = False
        self._exhausted = False
        self._failure: BaseException | None = None

    async def run(self) -> None:
        self._start(self._work() if self._window is not None else self._start_task_per_item())
        try:
            await self._over
        finally:
            await self._cancel_workers()
        if self._failure is not None:
            raise self._failure

    async def _cancel_workers(self) -> None:
        """End what still runs. A caller who is cancelled again still waits, so that no worker outlives the pool."""
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
        while not self._exhausted:
            if self._pull_locked:
                sleeper = self._loop.create_future()
                self._idle.append(sleeper)
                await sleeper
                continue  # and look again: a worker that was done sooner may have the lock
            self._pull_locked = True
            try:
                item = await pull()
            except StopAsyncIteration:
                # The lock is kept: nobody is to pull again. Idle workers wake up and see that there is nothing left.
                self._exhausted = True
                for sleeper in self._idle:
                    sleeper.set_result(None)
                return
            self._unlock_pull()
            await handle(item)
            del item
            # A cancellation that comes in the very turn in which an answer does is lost in the HTTP client.
            if me is not None and me.cancelling():
                raise asyncio.CancelledError
            count += 1
            if not count % YIELD_EVERY:
                await asyncio.sleep(0)

    def _unlock_pull(self) -> None:
        """Release the pull lock. Whether another worker is needed is looked at after this turn of the loop.

        By then, a worker whose item never had to wait has taken the lock again, without a switch to another task. If
        the lock is still free, this worker waits for its item, and another one should pull the next.
        """
        self._pull_locked = False
        if not self._check_scheduled and self._may_grow:
            self._check_scheduled = True
            self._loop.call_soon(self._wake_or_start_worker)

    @property
    def _may_grow(self) -> bool:
        return bool(self._idle) or self._window is None or len(self._workers) < self._window

    def _wake_or_start_worker(self) -> None:
        self._check_scheduled = False
        if self._pull_locked or self._over.done() or not self._may_grow:
            return
        if self._idle:
            self._idle.pop().set_result(None)
        else:
            self._start(self._work())

    async def _start_task_per_item(self) -> None:
        count = 0
        while True:
            try:
                item = await self._pull()
            except StopAsyncIteration:
                return
            self._start(self._handle_one(item))
            count += 1
            if not count % YIELD_EVERY:
                await asyncio.sleep(0)

    async def _handle_one(self, item: T) -> None:
        await self._handle(item)


class Window:
    """A window that may change while it is used, by several pools together: how many items at once, 0 included.

    Attributes
    ----------
    used
        Items that are handled now.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rooms: deque[asyncio.Future[None]] = deque()  # of those who wait for room: one for each pool
        self.used = 0

    def resize(self, size: int) -> None:
        """Set the size. Items beyond it are handled to their end."""
        self._size = size
        self._tell()

    def around(
        self, pull: Callable[[], Awaitable[T]], handle: Callable[[T], Awaitable[None]]
    ) -> tuple[Callable[[], Awaitable[T]], Callable[[T], Awaitable[None]]]:
        """The two functions of a worker pool, kept within this window."""

        async def pulled() -> T:
            if self.used >= self._size:
                await self._wait()
            item = await pull()
            if self.used >= self._size:  # another pool has used the room meanwhile, or there is less
                await self._wait()
            self.used += 1
            return item

        async def handled(item: T) -> None:
            try:
                await handle(item)
            finally:
                self.used -= 1
                self._tell()

        return pulled, handled

    async def _wait(self) -> None:
        while self.used >= self._size:
            room = asyncio.get_running_loop().create_future()
            self._rooms.append(room)
            await room

    def _tell(self) -> None:
        while self._rooms and self.used < self._size:
            room = self._rooms.popleft()
            if not room.done():
                room.set_result(None)  # whoever comes too late waits again


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

    def put_nowait(self, item: T) -> None:
        """Add an item. Raises ``RuntimeError`` once closed."""
        if self._closed:
            raise RuntimeError("put on a closed channel")
        self._items.append(item)
        if self._getters:
            self._wake_one()

    def close(self) -> None:
        """Allow no more items. Those that are there can still be taken."""
        self._closed = True
        while self._getters:
            self._wake_one()

    def drop(self) -> None:
        """Close, and drop the items that are there."""
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
            # Woken and cancelled in the same turn of the loop: the item is left for the next getter, so wake that.
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
