"""The life of a client: its loop and connections from the first call to the last, and how calls reach them."""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from infermesh.client.batches import FromLoop, FromThread, Inputs, Job, Side, Watch, collect, drive, fill
from infermesh.client.operations import Operations, Work
from infermesh.dispatch import Deployment
from infermesh.errors import ConfigError
from infermesh.results import BatchResult, StreamItem
from infermesh.runtime.loopthread import LoopThread
from infermesh.runtime.openfiles import allow_requests
from infermesh.types import Transport

__all__ = ["Session"]

R = TypeVar("R")

# A stream's requests at once where neither the client nor its deployments say how many.
STREAM_WINDOW = 64
# Inputs on their way for each request in hand, where the caller takes part: the next one is there when one is done.
LOOK_AHEAD = 2
# Seconds that a client which nobody closed may take to end; the interpreter waits for it when it exits.
PATIENCE_S = 5.0
# Requests at once to be ready for where nothing bounds them.
UNBOUNDED = 16_384

logger = logging.getLogger("infermesh")


class Session:
    """Opens with the first call, closes once, and may be opened again.

    Parameters
    ----------
    deployments
        Their transports are closed with the session.
    connect
        Makes a deployment's transport anew, for a session that is opened again.
    operations
        Makes the operations, whose slots belong to one loop.
    window
        Requests at once in a batch; ``None`` starts a task for each.
    """

    _finalizer: weakref.finalize[..., Session] | None = None

    def __init__(
        self,
        deployments: Sequence[Deployment],
        connect: Callable[[str], Transport],
        operations: Callable[[], Operations],
        window: int | None,
    ) -> None:
        self._deployments = deployments
        self._connect = connect
        self._make_operations = operations
        self._window = window
        self._lock = threading.Lock()
        self._closed = False
        self._open: tuple[LoopThread, Operations] | None = None

    @property
    def thread(self) -> LoopThread:
        """The client's loop. Raises ``RuntimeError`` once closed."""
        return (self._open or self._start())[0]

    @property
    def operations(self) -> Operations:
        """The client's operations. Raises ``RuntimeError`` once closed."""
        return (self._open or self._start())[1]

    def _start(self) -> tuple[LoopThread, Operations]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed: open it again with `with client:`, or make another")
            if self._open is None:
                told = allow_requests(self._window or UNBOUNDED)
                if told is not None and self._window is not None:
                    logger.warning("%s", told)
                thread = LoopThread("infermesh-client")
                self._open = thread, self._make_operations()
                self._finalizer = weakref.finalize(self, _abandon, thread, self._deployments)
            return self._open

    def reopen(self) -> None:
        """Open a closed session again, with new connections."""
        with self._lock:
            if self._closed:
                for deployment in self._deployments:
                    deployment.transport = self._connect(deployment.label)
                self._closed = False

    def close(self) -> None:
        """End everything that is under way, and close every connection."""
        if (thread := self._shut()) is not None:
            thread.close(lambda: _disconnect(self._deployments))

    async def aclose(self) -> None:
        """Do the same, and await it."""
        if (thread := self._shut()) is not None:
            await thread.aclose(lambda: _disconnect(self._deployments))

    def _shut(self) -> LoopThread | None:
        with self._lock:
            self._closed = True
            opened, self._open = self._open, None
            if self._finalizer is not None:
                self._finalizer.detach()
        return None if opened is None else opened[0]

    def __del__(self) -> None:
        if self._finalizer is not None and self._finalizer.alive:
            warnings.warn(
                "an LMClient was not closed: use `with`, or close()", ResourceWarning, stacklevel=2, source=self
            )

    def call(self, work: Work[Any, R], input: Any) -> R:
        """Work on one input, from a thread."""
        return self.thread.run(work.one(input))

    async def acall(self, work: Work[Any, R], input: Any) -> R:
        """Work on one input, from an event loop."""
        return await self.thread.arun(work.one(input))

    def batch(self, work: Work[Any, R], inputs: Inputs[Any], watch: Watch[R], size: int = 1) -> BatchResult[R]:
        """Work on many inputs, from a thread."""
        return drive(self._batch(FromThread(self.thread), work, inputs, watch, size))

    async def abatch(self, work: Work[Any, R], inputs: Inputs[Any], watch: Watch[R], size: int = 1) -> BatchResult[R]:
        """Work on many inputs, from an event loop."""
        return await self._batch(FromLoop(self.thread), work, inputs, watch, size)

    async def _batch(
        self, side: Side, work: Work[Any, R], inputs: Inputs[Any], watch: Watch[R], size: int
    ) -> BatchResult[R]:
        _check_inputs(inputs)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"micro_batch_size: expected a whole number of at least 1, got {size!r}")
        job = Job(work, size, self._window)
        listed = inputs if isinstance(inputs, list | tuple) else None
        total = len(inputs) if isinstance(inputs, Sized) else None
        places = len(listed or ())
        batch: BatchResult[R] = BatchResult([None] * places, [None] * places)
        with _kept(batch):
            if listed is not None and not watch.sees:
                await side.run(fill(job, listed, batch, watch.fail_fast))
            else:
                await collect(side.link(job, inputs, self._bound(job)), batch, watch, total)
        return batch

    def stream(self, work: Work[Any, R], inputs: Inputs[Any]) -> Iterator[StreamItem[R]]:
        """Work on inputs as the caller, a thread, asks for what has settled."""
        _check_inputs(inputs)
        return self._stream(Job(work, 1, self._window or STREAM_WINDOW), inputs)

    def _stream(self, job: Job[Any, R], inputs: Inputs[Any]) -> Iterator[StreamItem[R]]:
        link = FromThread(self.thread).link(job, inputs, self._bound(job))
        try:
            while (item := drive(link.take())) is not None:
                yield item
        finally:
            drive(link.close())

    def astream(self, work: Work[Any, R], inputs: Inputs[Any]) -> AsyncIterator[StreamItem[R]]:
        """Work on inputs as the caller, on an event loop, asks for what has settled."""
        _check_inputs(inputs)
        return self._astream(Job(work, 1, self._window or STREAM_WINDOW), inputs)

    async def _astream(self, job: Job[Any, R], inputs: Inputs[Any]) -> AsyncIterator[StreamItem[R]]:
        link = FromLoop(self.thread).link(job, inputs, self._bound(job))
        try:
            while (item := await link.take()) is not None:
                yield item
        finally:
            await link.close()

    def _bound(self, job: Job[Any, Any]) -> int | None:
        return None if job.window is None else LOOK_AHEAD * job.window * job.size


async def _disconnect(deployments: Iterable[Deployment]) -> None:
    for deployment in deployments:
        await deployment.transport.aclose()


def _abandon(thread: LoopThread, deployments: Sequence[Deployment]) -> None:
    """End what nobody closed, when it is collected or the interpreter exits."""
    thread.close(lambda: _disconnect(deployments), PATIENCE_S)


@contextmanager
def _kept(batch: BatchResult[Any]) -> Iterator[None]:
    """Leave what has settled to whoever catches what ended the batch, as its ``batch``."""
    try:
        yield
    except BaseException as error:
        with suppress(AttributeError, TypeError):
            error.batch = batch  # type: ignore[attr-defined]
        raise


def _check_inputs(inputs: Any) -> None:
    if isinstance(inputs, str | bytes | bytearray | Mapping) or not (
        hasattr(inputs, "__iter__") or hasattr(inputs, "__aiter__") or hasattr(inputs, "__getitem__")
    ):
        raise TypeError(f"inputs: expected a list or another iterable of inputs, not one {type(inputs).__name__}")
