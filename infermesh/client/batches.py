"""Many inputs through one client: batches and streams, in order or as they settle, for threads and for event loops.

The work runs on the client's loop. A batch of a list that nobody watches runs there whole: one hop there, one back.
Where inputs come from an iterator, or somebody wants to see each item as it settles, a :class:`Link` goes between: it
pulls inputs and hands out settled items on the caller's side, in the caller's own thread or loop, and never lets more
inputs be on their way than its bound, so that a slow consumer holds the work up instead of filling the memory.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from infermesh.client.operations import I, Work
from infermesh.results import BatchResult, StreamItem
from infermesh.runtime.garbage import rare_collections
from infermesh.runtime.loopthread import Call, Hop, LoopThread
from infermesh.runtime.workers import Channel, run_window

__all__ = ["FromLoop", "FromThread", "Job", "Link", "Side", "Watch", "Work", "collect", "drive", "fill"]

R = TypeVar("R")
T = TypeVar("T")

Inputs = Iterable[I] | AsyncIterable[I]
Unit = tuple[int, Sequence[I]]
# Takes an item's index, and its result or its error.
Settle = Callable[[int, R | None, Exception | None], None]

# Inputs that a feeder on an event loop takes before it lets others run.
YIELD_EVERY = 64


@dataclass(slots=True)
class Job(Generic[I, R]):
    """What is done with the inputs of a batch.

    Attributes
    ----------
    work
        What becomes of an input.
    size
        Inputs that travel in one request.
    window
        Requests at once; ``None`` for one task a request, all started at once.
    """

    work: Work[I, R]
    size: int = 1
    window: int | None = None

    async def run(self, pull: Callable[[], Awaitable[Unit[I]]], settle: Settle[R]) -> None:
        """Work on everything that ``pull`` gives; on the client's loop. An error of ``settle`` ends it."""
        one, group = self.work.one, self.work.group

        async def handle(unit: Unit[I]) -> None:
            index, (item,) = unit
            try:
                result = await one(item)
            except Exception as error:
                settle(index, None, error)
            else:
                settle(index, result, None)

        async def handle_group(unit: Unit[I]) -> None:
            assert group is not None
            for index, outcome in enumerate(await group(unit[1]), unit[0]):
                if isinstance(outcome, Exception):
                    settle(index, None, outcome)
                else:
                    settle(index, outcome, None)

        with rare_collections():
            await run_window(pull, handle if group is None else handle_group, self.window)


@dataclass(slots=True)
class Watch(Generic[R]):
    """Who is told about each item as it settles, and whether the first failure ends the batch."""

    on_result: Callable[[int, R | None, BaseException | None], Any] | None = None
    on_progress: Callable[[int, int | None], Any] | None = None
    fail_fast: bool = False

    @property
    def sees(self) -> bool:
        """Whether anybody is told anything."""
        return self.on_result is not None or self.on_progress is not None


async def fill(job: Job[I, R], inputs: Sequence[I], batch: BatchResult[R], fail_fast: bool) -> None:
    """Run a job over a sequence into a batch that has a place for each item; on the client's loop."""
    results, errors, size = batch.results, batch.errors, job.size
    starts = iter(range(0, len(inputs), size))

    async def pull() -> Unit[I]:
        for start in starts:
            return start, inputs[start : start + size]
        raise StopAsyncIteration

    def settle(index: int, result: R | None, error: Exception | None) -> None:
        if error is None:
            results[index] = result
            return
        errors[index] = error
        if fail_fast:
            raise error

    await job.run(pull, settle)


async def collect(link: Link[I, R], batch: BatchResult[R], watch: Watch[R], total: int | None) -> None:
    """Take everything from a link into a batch, and tell the watchers; on the caller's side.

    Whatever ends it early (a watcher's error, Ctrl-C, a cancellation), the job has ended by then.
    """
    done = 0
    try:
        while (item := await link.take()) is not None:
            missing = item.index + 1 - len(batch.results)
            if missing > 0:
                batch.results.extend([None] * missing)
                batch.errors.extend([None] * missing)
            batch.results[item.index], batch.errors[item.index] = item.result, item.error
            done += 1
            for called in _tell(watch, item, done, total):
                if inspect.isawaitable(called):
                    await called
            if watch.fail_fast and item.error is not None:
                raise item.error
    finally:
        await link.close()


def _tell(watch: Watch[R], item: StreamItem[R], done: int, total: int | None) -> Iterator[Any]:
    if watch.on_result is not None:
        yield watch.on_result(*item)
    if watch.on_progress is not None:
        yield watch.on_progress(done, total)


class _Feed(Generic[I]):
    """Inputs, cut into the units of a job."""

    def __init__(self, inputs: Inputs[I], size: int) -> None:
        self._size = size
        self._pull = _puller(inputs)
        self.count = 0
        self.exhausted = False

    async def unit(self) -> Unit[I]:
        """The next inputs; none once exhausted. From an iterator that is not asynchronous it never suspends."""
        chunk: list[I] = []
        try:
            while len(chunk) < self._size:
                chunk.append(await self._pull())
        except StopAsyncIteration:
            self.exhausted = True
        first = self.count
        self.count += len(chunk)
        return first, chunk


def _puller(inputs: Inputs[I]) -> Callable[[], Awaitable[I]]:
    if isinstance(inputs, AsyncIterable):
        return aiter(inputs).__anext__
    iterator = iter(inputs)

    async def pull() -> I:
        for item in iterator:
            return item
        raise StopAsyncIteration

    return pull


class Link(ABC, Generic[I, R]):
    """The caller's side of a running job.

    Parameters
    ----------
    thread
        The client's loop.
    job, inputs
        What to do with what.
    bound
        Inputs pulled and not yet taken back as settled items, at most; ``None`` pulls them all at once.
    """

    def __init__(self, thread: LoopThread, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> None:
        self._thread = thread
        self._size = job.size
        self._feed: _Feed[I] = _Feed(inputs, job.size)
        self._bound = bound
        self._on_their_way = 0
        self._over = False
        self._inbox: Channel[Unit[I]] = Channel()
        self._sender: Hop[Unit[I] | None] = Hop(thread.loop, self._receive)
        self._open()
        self._call: Call[None] = thread.submit(job.run(self._inbox.get, self._settle))
        self._call.future.add_done_callback(lambda _: self._deliver(None))

    @abstractmethod
    def _open(self) -> None:
        """Make ready for what is delivered."""

    @abstractmethod
    def _deliver(self, item: StreamItem[R] | None) -> None:
        """Hand a settled item over, ``None`` at the end of the job; on the client's loop."""

    @abstractmethod
    async def take(self) -> StreamItem[R] | None:
        """The next settled item, ``None`` after the last. Raises what the inputs' iterator or the job raised."""

    @abstractmethod
    async def close(self) -> None:
        """End the job; it has ended by then."""

    def _settle(self, index: int, result: R | None, error: Exception | None) -> None:
        self._deliver(StreamItem(index, result, error))

    def _receive(self, unit: Unit[I] | None) -> None:
        if unit is None:
            self._inbox.close()
        else:
            self._inbox.put_nowait(unit)

    @property
    def _room(self) -> bool:
        if self._feed.exhausted:
            return False
        return self._bound is None or not self._on_their_way or self._on_their_way + self._size <= self._bound

    async def _feed_one(self) -> None:
        unit = await self._feed.unit()
        if unit[1]:
            self._on_their_way += len(unit[1])
            self._sender.send(unit)
        if self._feed.exhausted:
            self._sender.send(None)

    def _taken(self, item: StreamItem[R] | None) -> StreamItem[R] | None:
        if item is None:
            self._over = True
            self._call.future.result()
        else:
            self._on_their_way -= 1
        return item


class ThreadLink(Link[I, R]):
    """For a caller in a thread: its methods are coroutines that block and never suspend; see :func:`drive`.

    Between two settled items the thread itself pulls inputs, so that the iterator of the inputs and the consumer of
    the items are never at work at the same time.
    """

    def _open(self) -> None:
        self._settled: list[StreamItem[R] | None] = []  # in this turn of the client's loop
        self._mail: SimpleQueue[list[StreamItem[R] | None]] = SimpleQueue()
        self._hand: deque[StreamItem[R] | None] = deque()

    def _deliver(self, item: StreamItem[R] | None) -> None:
        # What settles in one turn of the loop is handed over at its end: to wake the caller for each would have the
        # two threads fight for the interpreter.
        if not self._settled and item is not None:
            self._thread.loop.call_soon(self._hand_over)
        self._settled.append(item)
        if item is None:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._settled:
            settled, self._settled = self._settled, []
            self._mail.put(settled)

    async def take(self) -> StreamItem[R] | None:
        if self._over:
            return None
        while not self._hand:
            while self._room and self._mail.empty():
                await self._feed_one()
            self._hand.extend(self._mail.get())
        return self._taken(self._hand.popleft())

    async def close(self) -> None:
        self._thread.end(self._call)


class LoopLink(Link[I, R]):
    """For a caller in an event loop: a task there pulls the inputs, while settled items are taken."""

    def __init__(self, thread: LoopThread, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> None:
        super().__init__(thread, job, inputs, bound)
        self._feeder = asyncio.create_task(self._feed_all())

    def _open(self) -> None:
        self._mail: Channel[StreamItem[R] | BaseException | None] = Channel()
        self._hop = Hop(asyncio.get_running_loop(), self._mail.put_nowait)
        self._taking = asyncio.Event()

    def _deliver(self, item: StreamItem[R] | None) -> None:
        if item is not None:
            self._hop.send(item)
            return
        with suppress(RuntimeError):  # the caller's loop is closed: nobody waits for the end
            self._hop.send(None)

    async def _feed_all(self) -> None:
        units = 0
        try:
            while not self._feed.exhausted:
                while not self._room:
                    self._taking.clear()
                    await self._taking.wait()
                await self._feed_one()
                units += 1
                if not units % YIELD_EVERY:
                    await asyncio.sleep(0)
        except Exception as error:
            self._mail.put_nowait(error)

    async def take(self) -> StreamItem[R] | None:
        if self._over:
            return None
        item = await self._mail.get()
        if isinstance(item, BaseException):
            raise item
        self._taking.set()
        return self._taken(item)

    async def close(self) -> None:
        self._feeder.cancel()
        try:
            await self._thread.aend(self._call)
        finally:
            await asyncio.gather(self._feeder, return_exceptions=True)


class Side(ABC):
    """Where a call comes from: a thread that may block, or an event loop that may not.

    What is written once over a side is a coroutine: awaited from a loop, and from a thread run by :func:`drive`.
    """

    def __init__(self, thread: LoopThread) -> None:
        self.thread = thread

    @abstractmethod
    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop."""

    @abstractmethod
    def link(self, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> Link[I, R]:
        """Start a job whose inputs and settled items pass through the caller."""


class FromThread(Side):
    """A caller in a thread."""

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.thread.run(coroutine)

    def link(self, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> Link[I, R]:
        if self.thread.here:
            raise RuntimeError("a synchronous call on the client's own loop would wait for itself")
        if isinstance(inputs, AsyncIterable):
            inputs = self._pulled(inputs)
        return ThreadLink(self.thread, job, inputs, bound)

    def _pulled(self, inputs: AsyncIterable[I]) -> Iterator[I]:
        """An asynchronous iterable, which runs on the client's loop, as an iterator."""
        iterator = aiter(inputs)

        async def pull() -> I:
            return await anext(iterator)

        while True:
            try:
                item = self.thread.run(pull())
            except StopAsyncIteration:
                return
            yield item


class FromLoop(Side):
    """A caller in an event loop, which need not be the client's."""

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await self.thread.arun(coroutine)

    def link(self, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> Link[I, R]:
        return LoopLink(self.thread, job, inputs, bound)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, as those over a thread's side."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise TypeError("an asynchronous callback needs the client's asynchronous method")
