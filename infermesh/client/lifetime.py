"""The life of a client: its event loop and connections, from the first call to the last."""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from infermesh.dispatch import Deployment
from infermesh.runtime.loopthread import LoopThread
from infermesh.runtime.openfiles import allow_requests
from infermesh.types import Transport

__all__ = ["ClientLoop"]

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

# Seconds that a client which nobody closed may take to end; the interpreter waits for it when it exits.
EXIT_TIMEOUT_S = 5.0
# Requests at once to be ready for where nothing bounds them.
UNBOUNDED = 16_384

logger = logging.getLogger("infermesh")


class ClientLoop:
    """The event loop on which a client does its work. It starts with the first call, and may be closed and reopened.

    Parameters
    ----------
    deployments
        Their transports are closed with the loop.
    connect
        Makes a deployment's transport anew when the loop is opened again.
    window
        Requests at once in a batch; ``None`` starts a task for each.
    """

    _finalizer: weakref.finalize[..., ClientLoop] | None = None

    def __init__(
        self, deployments: Sequence[Deployment], connect: Callable[[str], Transport], window: int | None
    ) -> None:
        self.window = window
        self._deployments = deployments
        self._connect = connect
        self._lock = threading.Lock()
        self._closed = False
        self._thread: LoopThread | None = None

    @property
    def thread(self) -> LoopThread:
        """The loop's thread, started if need be. Raises ``RuntimeError`` once closed."""
        return self._thread or self._start()

    def run(self, function: Callable[[I], Coroutine[Any, Any, R]], input: I) -> R:
        """Run ``function(input)`` on the loop, and wait for it in this thread."""
        return self.thread.run(function(input))

    async def arun(self, function: Callable[[I], Coroutine[Any, Any, R]], input: I) -> R:
        """Run ``function(input)`` on the loop, and await it in the caller's."""
        return await self.thread.arun(function(input))

    def _start(self) -> LoopThread:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed: open it again with `with client:`, or make another")
            if self._thread is None:
                warning = allow_requests(self.window or UNBOUNDED)
                if warning is not None and self.window is not None:
                    logger.warning("%s", warning)
                self._thread = LoopThread("infermesh-client")
                self._finalizer = weakref.finalize(self, _abandon, self._thread, self._deployments)
            return self._thread

    def reopen(self) -> None:
        """Allow calls again after :meth:`close`, over new connections."""
        with self._lock:
            if self._closed:
                for deployment in self._deployments:
                    deployment.transport = self._connect(deployment.label)
                self._closed = False

    def close(self) -> None:
        """End everything that is under way, and close every connection."""
        if (thread := self._mark_closed()) is not None:
            thread.close(lambda: _disconnect(self._deployments))

    async def aclose(self) -> None:
        """Do the same, and await it."""
        if (thread := self._mark_closed()) is not None:
            await thread.aclose(lambda: _disconnect(self._deployments))

    def _mark_closed(self) -> LoopThread | None:
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            if self._finalizer is not None:
                self._finalizer.detach()
        return thread

    def __del__(self) -> None:
        if self._finalizer is not None and self._finalizer.alive:
            warnings.warn(
                "an LMClient was not closed: use `with`, or close()", ResourceWarning, stacklevel=2, source=self
            )


async def _disconnect(deployments: Iterable[Deployment]) -> None:
    for deployment in deployments:
        await deployment.transport.aclose()


def _abandon(thread: LoopThread, deployments: Sequence[Deployment]) -> None:
    """End what nobody closed, when it is collected or the interpreter exits."""
    thread.close(lambda: _disconnect(deployments), EXIT_TIMEOUT_S)
