"""One request, from the caller to an answer: retry → route → limit → send."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from infermesh.dispatch import Lease, Router
from infermesh.dispatch.batched import Batching, deliver
from infermesh.dispatch.request_state import RequestState, Terms
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import RequestError, StoppedError
from infermesh.limits import Grant, HeldError, Patience
from infermesh.results import RequestMetrics, TokenUsage
from infermesh.types import Reply, Request

__all__ = ["Dispatcher"]

T = TypeVar("T")

# A request that something other than a steady rate holds back for longer looks for another deployment; where there is
# none, it looks again after so long.
_HELD_S = 1.0
_LOOK_AROUND_S = 60.0


class Dispatcher:
    """Sends the requests of one model; any number at once.

    An attempt leases a slot, asks the limiter for permission, and sends. Slot and permission are given back before a
    failed request backs off: it holds nothing that another could use.

    A request that failed goes at once to another deployment that is healthy and not paused, and backs off where there
    is none. What becomes of it depends on what its failure speaks of (:mod:`infermesh.dispatch.blame`):

    - A deployment that refuses everybody, or whose window is too small, is not asked again for this request. The others
      are, at no cost of its retries; only when all have refused is it an error, with each one's word.
    - A 429 pauses its deployment for everybody, for as long as the server asked, and costs the request no retry, within
      ``RetryPolicy.max_pause_s``. Afterwards requests pass one by one first. One that is turned away again and again
      while others are answered pauses nobody but itself, and loses its retries.
    - While no deployment of the model can be reached, and they have patience, nothing is sent but a probe, and no
      request loses a retry. A connection that was made and then broke costs one.

    Parameters
    ----------
    router
        The model's deployments.
    retry
        How often, and how long to wait between.
    rng
        Source of the jitter.
    clock
        Seconds for durations; ``time.perf_counter``, since an event loop may tell the time in whole milliseconds.
    wall
        Seconds since the epoch, for ``started_at``.
    tells
        Whether failed attempts are told as they are made: see :data:`~infermesh.dispatch.failures.ON_FAILURE`.
    """

    def __init__(
        self,
        router: Router,
        retry: RetryPolicy | None = None,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
        tells: bool = True,
    ) -> None:
        self.retry = retry or RetryPolicy()
        self.router = router
        self._patience = Patience(asked_s=self.retry.max_pause_s)
        self._terms = Terms(self.retry, rng or random.Random(), clock, wall, tells)
        self._waiting: set[asyncio.Task[Any] | None] = set()
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._stopping = self._dropping = False
        self._paused, self._going = False, asyncio.Event()
        self.batching: Batching | None = None  # where requests are looked up first

    def stop(self, *, drop: bool = False) -> None:
        """Send nothing more: requests that wait for a slot, a limit or a retry end with ``StoppedError``.

        Each stage of a model calls it; only the first call does anything: a task that were cancelled twice would end as
        one that its own caller has cancelled.

        Parameters
        ----------
        drop
            Requests in flight end so too, with their attempt in ``metrics``. Else they are awaited as before.
        """
        if not self._stopping:
            self._stopping = True
            _cancel(self._waiting)
        if drop and not self._dropping:
            self._dropping = True
            _cancel(self._sending)

    def pause(self, on: bool) -> None:
        """Send nothing while ``on``: requests wait, retries too. Those in flight go on; :meth:`stop` ends the wait."""
        self._paused = on
        if on:
            self._going.clear()
        else:
            self._going.set()

    async def send(
        self,
        request: Request,
        parse: Callable[[Reply], tuple[T, TokenUsage | None]],
        timeout: float | None = None,
    ) -> tuple[T, RequestMetrics]:
        """Send until an answer comes or the policy gives up.

        Parameters
        ----------
        request
            What to send.
        parse
            Turns a reply into a result and its usage. A ``RequestError`` from it counts as a failure of the attempt;
            its ``usage`` is charged to the quotas.
        timeout
            Seconds for each attempt; ``None`` waits for ever.

        Returns
        -------
        tuple
            The result, and where the time went.

        Raises
        ------
        RequestError
            The last failure, with ``deployment`` and ``metrics`` set.
        NoDeploymentError
            Several deployments were tried, and the last failure is not a verdict on the request itself.
        StoppedError
            :meth:`stop` was called before it could be sent, or dropped it.
        ParkedError
            It is in a batch, which is not back.
        """
        if self._stopping:
            raise StoppedError("stopped before the request was sent")
        state = RequestState(self._terms, request)
        if self._paused:
            await self._stoppable(self._pause_over(), state)
        if self.batching is not None and (found := self.batching.take(request)) is not None:
            return deliver(found, request, parse)
        task = asyncio.current_task()
        router = self.router
        while True:
            if self._paused:
                await self._stoppable(self._pause_over(), state)
            # A free slot and a grant that is there are taken without a turn of the event loop.
            lease = router.try_lease(state.avoid)
            if lease is None:
                lease = await self._stoppable(router.lease(state.avoid, self.retry.cap_s), state)
            try:
                try:
                    limiter = lease.deployment.limiter
                    state.grant = state.reply = None
                    state.grant = limiter.try_acquire(request.prompt_tokens, request.output_tokens)
                    if state.grant is None:
                        state.grant = await self._stoppable(self._permission(lease, request, router, state), state)
                    if self._paused or not lease.deployment.weight:  # since it began to wait
                        state.grant.refund()
                        continue
                    state.begin()
                    self._sending.add(task)
                    try:
                        reply = await lease.deployment.transport.send(request, timeout)
                    except asyncio.CancelledError:
                        if self._dropping and _undo_cancel(task):
                            raise state.dropped(lease.deployment) from None
                        raise
                    finally:
                        self._sending.discard(task)
                        if self._dropping:  # its end came in the turn in which it was dropped
                            _undo_cancel(task)
                    return state.answered(lease, reply, parse)
                except StoppedError:
                    raise
                except RequestError as error:
                    router, delay = state.fail(lease, error, router)
                except HeldError as held:
                    router, delay = state.send_back(lease, held, router)
            finally:
                # The attempt, or its failure, has ended the lease, and this does nothing. A cancellation, or an error
                # that is no RequestError, has not. What the limiter granted then stays charged: nobody knows whether
                # the server has counted the request.
                lease.cancel()
            # From here on the request holds neither a slot nor a grant.
            if self._stopping:
                raise state.stopped()
            if delay > 0:
                await self._stoppable(asyncio.sleep(delay), state)

    async def _permission(self, lease: Lease, request: Request, router: Router, state: RequestState) -> Grant:
        """Wait for the limiter.

        A request that is held back there, as by a day's quota that has ended, goes to another deployment where there is
        one. Where there is none it waits, and looks around now and then.
        """
        acquire = functools.partial(lease.deployment.limiter.acquire, request.prompt_tokens, request.output_tokens)
        if len(router.deployments) == 1:
            return await acquire(self._patience)
        try:
            return await acquire(self._patience._replace(held_s=_HELD_S))
        except HeldError as held:
            if held.asked or router.alternative((*state.avoid, lease.deployment.label)):
                raise
        try:
            async with asyncio.timeout(_LOOK_AROUND_S):
                return await acquire(self._patience)
        except TimeoutError:
            state.avoid = ()
            raise HeldError(0.0, asked=False) from None

    async def _pause_over(self) -> None:
        while self._paused:
            await self._going.wait()

    async def _stoppable(self, waiting: Coroutine[Any, Any, T], state: RequestState) -> T:
        """Wait for a slot, a limit or a retry. :meth:`stop` ends the wait, by cancelling the task."""
        task = asyncio.current_task()
        self._waiting.add(task)
        try:
            return await waiting
        except asyncio.CancelledError:
            # The cancellation is stop()'s, and is undone, unless somebody else has cancelled the task as well.
            if self._stopping and _undo_cancel(task):
                raise state.stopped() from None
            raise
        finally:
            self._waiting.discard(task)


def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()


def _undo_cancel(task: asyncio.Task[Any] | None) -> bool:
    """Undo a cancellation of ours. Whether nobody else has cancelled the task as well."""
    return task is not None and task.uncancel() == 0
