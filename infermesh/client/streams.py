"""The caller's side of a batch: its inputs go to the client's loop, and settled items come back.

Where inputs come from an iterator, or somebody wants to see each item as it settles, a :class:`ResultStream` stands
between the caller and the client's loop. It pulls inputs and hands out settled items in the caller's own thread or
loop, and never has more items outstanding than its bound: a slow consumer slows the requests down, and does not fill
the memory.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from infermesh.client.operations import Handler, I
from infermesh.results import StreamItem
from infermesh.runtime.garbage import rare_collections
from infermesh.runtime.loopthread import LoopThread, Mailbox, RemoteTask
from infermesh.runtime.workers import Channel, run_window

__all__ = ["Caller", "Inputs", "Job", "LoopCaller", "ResultStream", "ThreadCaller", "drive"]

R = TypeVar("R")
T = TypeVar("T")

Inputs = Iterable[I] | AsyncIterable[I]
# Inputs that travel in one request, and the index of the first.
Chunk = tuple[int, Sequence[I]]
# Takes an item's index, and its result or its error.
Settle = Callable[[int, R | None, Exception | None], None]

# Inputs that are pulled on an event loop before others get a turn.
YIELD_EVERY = 64


@dataclass(slots=True)
class Job(Generic[I, R]):
    """What is done with the inputs of a batch.

    Attributes
    ----------
    handler
        What is done with an input, or with a chunk of them.
    size
        Inputs that travel in one request.
    window
        Requests at once; ``None`` for one task a request, all started at once.
    """

    handler: Handler[I, R]
    size: int = 1
    window: int | None = None

    async def run(self, pull: Callable[[], Awaitable[Chunk[I]]], settle: Settle[R]) -> None:
        """Handle every chunk that ``pull`` gives; on the client's loop. An error of ``settle`` ends it."""
        one, group = self.handler.one, self.handler.group

        async def handle(chunk: Chunk[I]) -> None:
            index, (item,) = chunk
            try:
                result = await one(item)
            except Exception as error:
                settle(index, None, error)
            else:
                settle(index, result, None)

        async def handle_group(chunk: Chunk[I]) -> None:
            assert group is not None
            for index, outcome in enumerate(await group(chunk[1]), chunk[0]):
                if isinstance(outcome, Exception):
                    settle(index, None, outcome)
                else:
                    settle(index, outcome, None)

        with rare_collections():
            await run_window(pull, handle if group is None else handle_group, self.window)


class _InputReader(Generic[I]):
    """Inputs, cut into chunks."""

    def __init__(self, inputs: Inputs[I], size: int) -> None:
        self._size = size
        self._pull = _puller(inputs)
        self._count = 0
        self.exhausted = False

    async def chunk(self) -> Chunk[I]:
        """The next inputs, an empty chunk after the last. It suspends only where an asynchronous iterator does."""
        inputs: list[I] = []
        try:
            while len(inputs) < self._size:
                inputs.append(await self._pull())
        except StopAsyncIteration:
            self.exhausted = True
        first = self._count
        self._count += len(inputs)
        return first, inputs


def _puller(inputs: Inputs[I]) -> Callable[[], Awaitable[I]]:
    if isinstance(inputs, AsyncIterable):
        return aiter(inputs).__anext__
    iterator = iter(inputs)

    async def pull() -> I:
        for item in iterator:
            return item
        raise StopAsyncIteration

    return pull


class ResultStream(ABC, Generic[I, R]):
    """A running job, as its caller sees it.

    Parameters
    ----------
    thread
        The client's loop.
    job, inputs
        What to do with what.
    bound
        Inputs pulled and not yet received as settled items, at most; ``None`` pulls them all at once.
    """

    def __init__(self, thread: LoopThread, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> None:
        self._thread = thread
        self._size = job.size
        self._reader: _InputReader[I] = _InputReader(inputs, job.size)
        self._bound = bound
        self._outstanding = 0
        self._over = False
        self._chunks: Channel[Chunk[I]] = Channel()  # on the client's loop
        self._to_job: Mailbox[Chunk[I] | None] = Mailbox(thread.loop, self._chunk_arrived)
        self._prepare()
        self._task: RemoteTask[None] = thread.submit(job.run(self._chunks.get, self._settle))
        self._task.future.add_done_callback(lambda _: self._deliver(None))

    @abstractmethod
    def _prepare(self) -> None:
        """Make what :meth:`_deliver` delivers to."""

    @abstractmethod
    def _deliver(self, item: StreamItem[R] | None) -> None:
        """Hand a settled item to the caller, ``None`` at the end of the job; on the client's loop."""

    @abstractmethod
    async def receive(self) -> StreamItem[R] | None:
        """The next settled item, ``None`` after the last. Raises what the inputs' iterator or the job raised."""

    @abstractmethod
    async def close(self) -> None:
        """End the job; it has ended when this returns."""

    def _settle(self, index: int, result: R | None, error: Exception | None) -> None:
        self._deliver(StreamItem(index, result, error))

    def _chunk_arrived(self, chunk: Chunk[I] | None) -> None:
        if chunk is None:
            self._chunks.close()
        else:
            self._chunks.put_nowait(chunk)

    @property
    def _has_room(self) -> bool:
        if self._reader.exhausted:
            return False
        return self._bound is None or not self._outstanding or self._outstanding + self._size <= self._bound

    async def _send_chunk(self) -> None:
        chunk = await self._reader.chunk()
        if chunk[1]:
            self._outstanding += len(chunk[1])
            self._to_job.send(chunk)
        if self._reader.exhausted:
            self._to_job.send(None)

    def _received(self, item: StreamItem[R] | None) -> StreamItem[R] | None:
        if item is None:
            self._over = True
            self._task.future.result()  # raises what ended the job
        else:
            self._outstanding -= 1
        return item


class ThreadResultStream(ResultStream[I, R]):
    """For a caller in a thread. Its coroutines block and never suspend; see :func:`drive`.

    The thread pulls inputs itself, between two settled items: the iterator of the inputs and the consumer of the items
    never run at the same time, and may share what is not safe for threads.
    """

    def _prepare(self) -> None:
        self._settled: list[StreamItem[R] | None] = []  # in this turn of the client's loop
        self._deliveries: SimpleQueue[list[StreamItem[R] | None]] = SimpleQueue()
        self._at_hand: deque[StreamItem[R] | None] = deque()

    def _deliver(self, item: StreamItem[R] | None) -> None:
        # What settles in one turn of the loop is delivered at its end. To wake the caller for each item would have the
        # two threads take the interpreter from each other all the time.
        if not self._settled and item is not None:
            self._thread.loop.call_soon(self._deliver_settled)
        self._settled.append(item)
        if item is None:
            self._deliver_settled()

    def _deliver_settled(self) -> None:
        if self._settled:
            settled, self._settled = self._settled, []
            self._deliveries.put(settled)

    async def receive(self) -> StreamItem[R] | None:
        if self._over:
            return None
        while not self._at_hand:
            while self._has_room and self._deliveries.empty():
                await self._send_chunk()
            self._at_hand.extend(self._deliveries.get())
        return self._received(self._at_hand.popleft())

    async def close(self) -> None:
        self._thread.cancel(self._task)


class LoopResultStream(ResultStream[I, R]):
    """For a caller in an event loop. A task there pulls the inputs, while settled items are received."""

    def __init__(self, thread: LoopThread, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> None:
        super().__init__(thread, job, inputs, bound)
        self._feeder = asyncio.create_task(self._send_all())

    def _prepare(self) -> None:
        self._deliveries: Channel[StreamItem[R] | BaseException | None] = Channel()
        self._to_caller = Mailbox(asyncio.get_running_loop(), self._deliveries.put_nowait)
        self._room_made = asyncio.Event()

    def _deliver(self, item: StreamItem[R] | None) -> None:
        if item is not None:
            self._to_caller.send(item)
            return
        with suppress(RuntimeError):  # the caller's loop is closed: nobody waits for the end
            self._to_caller.send(None)

    async def _send_all(self) -> None:
        chunks = 0
        try:
            while not self._reader.exhausted:
                while not self._has_room:
                    self._room_made.clear()
                    await self._room_made.wait()
                await self._send_chunk()
                chunks += 1
                if not chunks % YIELD_EVERY:
                    await asyncio.sleep(0)
        except Exception as error:
            self._deliveries.put_nowait(error)

    async def receive(self) -> StreamItem[R] | None:
        if self._over:
            return None
        item = await self._deliveries.get()
        if isinstance(item, BaseException):
            raise item
        self._room_made.set()
        return self._received(item)

    async def close(self) -> None:
        # The feeder first: it would go on pulling inputs while the job ends. It is awaited last, and also if the caller
        # is cancelled meanwhile, so that the inputs' iterator is at rest when the caller gets its turn.
        self._feeder.cancel()
        try:
            await self._thread.acancel(self._task)
        finally:
            await asyncio.gather(self._feeder, return_exceptions=True)


class Caller(ABC):
    """Where a call comes from: a thread that may block, or an event loop that may not.

    What is written once for both is a coroutine over a caller. A loop awaits it, a thread runs it with :func:`drive`.
    """

    def __init__(self, thread: LoopThread) -> None:
        self.thread = thread

    @abstractmethod
    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop."""

    @abstractmethod
    def stream(self, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> ResultStream[I, R]:
        """Start a job whose inputs and settled items pass through the caller."""


class ThreadCaller(Caller):
    """A caller in a thread."""

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.thread.run(coroutine)

    def stream(self, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> ResultStream[I, R]:
        if self.thread.here:
            raise RuntimeError("a synchronous call on the client's own loop would wait for itself")
        if isinstance(inputs, AsyncIterable):
            inputs = self._pulled(inputs)
        return ThreadResultStream(self.thread, job, inputs, bound)

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


class LoopCaller(Caller):
    """A caller in an event loop, which need not be the client's."""

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await self.thread.arun(coroutine)

    def stream(self, job: Job[I, R], inputs: Inputs[I], bound: int | None) -> ResultStream[I, R]:
        return LoopResultStream(self.thread, job, inputs, bound)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, as those over a :class:`ThreadCaller`."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise TypeError("an asynchronous callback needs the client's asynchronous method")
