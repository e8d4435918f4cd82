"""Many inputs through one client: batches and streams, in order or as they settle, for threads and for event loops.

The work is done on the client's loop. A batch of a list without callbacks runs there whole, and the caller waits for
its end. Every other batch or stream goes through a :class:`~infermesh.client.streams.ResultStream`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infermesh.client.kept import Keeper
from infermesh.client.lifetime import ClientLoop
from infermesh.client.operations import Handler, I
from infermesh.client.streams import Caller, Chunk, Inputs, Job, LoopCaller, ResultStream, ThreadCaller, drive
from infermesh.errors import ConfigError
from infermesh.results import BatchResult, StreamItem

__all__ = ["Callbacks", "Inputs", "abatch", "astream", "batch", "stream"]

R = TypeVar("R")

# A stream's requests at once where neither the client nor its deployments say how many.
STREAM_WINDOW = 64
# Inputs outstanding for each request at once, where the caller takes part: the next one is there when one is done.
LOOK_AHEAD = 2


@dataclass(slots=True)
class Callbacks(Generic[R]):
    """Who is told about each item as it settles, and whether the first failure ends the batch."""

    on_result: Callable[[int, R | None, BaseException | None], object] | None = None
    on_progress: Callable[[int, int | None], object] | None = None
    fail_fast: bool = False

    @property
    def present(self) -> bool:
        return self.on_result is not None or self.on_progress is not None

    def call(self, item: StreamItem[R], done: int, total: int | None) -> Iterator[object]:
        """Call both, one after the other; yields what each returned, to be awaited if it can be."""
        if self.on_result is not None:
            yield self.on_result(*item)
        if self.on_progress is not None:
            yield self.on_progress(done, total)


def batch(
    loop: ClientLoop, handler: Handler[I, R], inputs: Inputs[I], callbacks: Callbacks[R], size: int = 1
) -> BatchResult[R]:
    """Handle many inputs, ``size`` to a request, for a caller in a thread."""
    return drive(_batch(ThreadCaller(loop.thread), loop.window, handler, inputs, callbacks, size))


async def abatch(
    loop: ClientLoop, handler: Handler[I, R], inputs: Inputs[I], callbacks: Callbacks[R], size: int = 1
) -> BatchResult[R]:
    """Handle many inputs, ``size`` to a request, for a caller in an event loop."""
    return await _batch(LoopCaller(loop.thread), loop.window, handler, inputs, callbacks, size)


def stream(loop: ClientLoop, handler: Handler[I, R], inputs: Inputs[I], size: int = 1) -> Iterator[StreamItem[R]]:
    """Handle inputs as the caller, in a thread, asks for what has settled. The arguments are checked at once."""
    return _stream(loop, _stream_job(loop, handler, inputs, size), inputs)


def astream(loop: ClientLoop, handler: Handler[I, R], inputs: Inputs[I], size: int = 1) -> AsyncIterator[StreamItem[R]]:
    """Handle inputs as the caller, in an event loop, asks for what has settled. The arguments are checked at once."""
    return _astream(loop, _stream_job(loop, handler, inputs, size), inputs)


def _stream_job(loop: ClientLoop, handler: Handler[I, R], inputs: Inputs[I], size: int) -> Job[I, R]:
    _check_inputs(inputs)
    _check_size(size)
    return Job(handler, size, loop.window or STREAM_WINDOW)


def _stream(loop: ClientLoop, job: Job[I, R], inputs: Inputs[I]) -> Iterator[StreamItem[R]]:
    results = ThreadCaller(loop.thread).stream(job, inputs, _bound(job))
    try:
        while (item := drive(results.receive())) is not None:
            yield item
    finally:
        drive(results.close())


async def _astream(loop: ClientLoop, job: Job[I, R], inputs: Inputs[I]) -> AsyncIterator[StreamItem[R]]:
    results = LoopCaller(loop.thread).stream(job, inputs, _bound(job))
    try:
        while (item := await results.receive()) is not None:
            yield item
    finally:
        await results.close()


async def _batch(
    caller: Caller,
    window: int | None,
    handler: Handler[I, R],
    inputs: Inputs[I],
    callbacks: Callbacks[R],
    size: int,
) -> BatchResult[R]:
    _check_inputs(inputs)
    _check_size(size)
    job = Job(handler, size, window)
    listed = inputs if isinstance(inputs, list | tuple) else None
    places = len(listed or ())
    found: BatchResult[R] = BatchResult([None] * places, [None] * places)
    with _attached_to_errors(found):
        if listed is not None and not callbacks.present:
            await caller.run(_fill(job, listed, found, callbacks.fail_fast))
        else:
            total = len(inputs) if isinstance(inputs, Sized) else None
            await _collect(caller.stream(job, inputs, _bound(job)), found, callbacks, total)
    return found


async def _fill(job: Job[I, R], inputs: Sequence[I], found: BatchResult[R], fail_fast: bool) -> None:
    """Run a job over a sequence into a batch that has a place for each item; on the client's loop."""
    results, errors, size, keeper = found.results, found.errors, job.size, Keeper()
    starts = iter(range(0, len(inputs), size))

    async def pull() -> Chunk[I]:
        for start in starts:
            return start, inputs[start : start + size]
        raise StopAsyncIteration

    def settle(index: int, result: R | None, error: Exception | None) -> None:
        if error is None:
            results[index] = result
            keeper.keep(result)
            return
        errors[index] = error
        if fail_fast:
            raise error

    await job.run(pull, settle)
    keeper.close()


async def _collect(
    results: ResultStream[I, R], found: BatchResult[R], callbacks: Callbacks[R], total: int | None
) -> None:
    """Receive everything from a stream into a batch, and call the callbacks; on the caller's side.

    Whatever ends it early (an error of a callback, Ctrl-C, a cancellation), the job has ended by then.
    """
    done, keeper = 0, Keeper()
    try:
        while (item := await results.receive()) is not None:
            missing = item.index + 1 - len(found.results)
            if missing > 0:
                found.results.extend([None] * missing)
                found.errors.extend([None] * missing)
            found.results[item.index], found.errors[item.index] = item.result, item.error
            done += 1
            for returned in callbacks.call(item, done, total):
                if inspect.isawaitable(returned):
                    await returned
            if callbacks.fail_fast and item.error is not None:
                raise item.error
            keeper.keep(item.result)
        keeper.close()
    finally:
        await results.close()


def _bound(job: Job[Any, Any]) -> int | None:
    return None if job.window is None else LOOK_AHEAD * job.window * job.size


@contextmanager
def _attached_to_errors(found: BatchResult[Any]) -> Iterator[None]:
    """Leave what has settled to whoever catches what ended the batch, as the exception's attribute ``batch``."""
    try:
        yield
    except BaseException as error:
        with suppress(AttributeError, TypeError):
            error.batch = found  # type: ignore[attr-defined]
        raise


def _check_size(size: object) -> None:
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"micro_batch_size: expected a whole number of at least 1, got {size!r}")


def _check_inputs(inputs: object) -> None:
    if isinstance(inputs, str | bytes | bytearray | Mapping) or not (
        isinstance(inputs, Iterable | AsyncIterable) or hasattr(inputs, "__getitem__")
    ):
        raise TypeError(f"inputs: expected a list or another iterable of inputs, not one {type(inputs).__name__}")
