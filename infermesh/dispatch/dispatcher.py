"""One request, from the caller to an answer: retry → route → limit → send."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from infermesh.dispatch import Deployment, Lease, Router
from infermesh.dispatch.blame import blame, is_unconnected
from infermesh.dispatch.pricing import reported_cost
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import (
    APIConnectionError,
    BadRequestError,
    ContextLengthError,
    InputError,
    NoDeploymentError,
    RateLimitError,
    RequestError,
    StoppedError,
)
from infermesh.limits import Grant, HeldError, Patience
from infermesh.results import Attempt, RequestMetrics, TokenUsage
from infermesh.types import Reply, Request

__all__ = ["Dispatcher"]

T = TypeVar("T")

# A request that is turned away so often with a smaller probability than this is not turned away by chance.
_BY_CHANCE = 1e-4

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
    """

    def __init__(
        self,
        router: Router,
        retry: RetryPolicy | None = None,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.retry = retry or RetryPolicy()
        self.router = router
        self._patience = Patience(asked_s=self.retry.max_pause_s)
        self._rng = rng or random.Random()
        self._clock = clock
        self._wall = wall
        self._waiting: set[asyncio.Task[Any] | None] = set()
        self._stopping = False

    def stop(self) -> None:
        """Send nothing more: requests that wait for a slot, a limit or a retry end with ``StoppedError``.

        Requests in flight are awaited as before. Each stage of a model calls it; only the first call does anything: a
        task that were cancelled twice would end as one that its own caller has cancelled.
        """
        if self._stopping:
            return
        self._stopping = True
        for task in self._waiting:
            if task is not None:
                task.cancel()

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
            :meth:`stop` was called before it could be sent.
        """
        if self._stopping:
            raise StoppedError("stopped before the request was sent")
        state = _RequestState(self, timeout)
        router = self.router
        while True:
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
                    return await state.attempt(lease, request, parse)
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

    async def _permission(self, lease: Lease, request: Request, router: Router, state: _RequestState) -> Grant:
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

    async def _stoppable(self, waiting: Coroutine[Any, Any, T], state: _RequestState) -> T:
        """Wait for a slot, a limit or a retry. :meth:`stop` ends the wait, by cancelling the task."""
        task = asyncio.current_task()
        self._waiting.add(task)
        try:
            return await waiting
        except asyncio.CancelledError:
            # The cancellation is stop()'s, and is undone, unless somebody else has cancelled the task as well.
            if self._stopping and task is not None and task.uncancel() == 0:
                raise state.stopped() from None
            raise
        finally:
            self._waiting.discard(task)


class _Trouble:
    """What is known of a request that has failed before. Most never do, and need none of it."""

    __slots__ = ("away", "away_at", "counted", "failures", "refusals", "suspect", "turned_away", "turned_away_at")

    def __init__(self) -> None:
        self.failures: dict[str, RequestError] = {}  # label → the last one there
        self.counted = 0  # failures that cost a retry
        self.away = 0  # failures that do not, since the server is away
        self.away_at = 0.0  # the last time that a server answered as if it were, by the dispatcher's clock
        self.suspect = False  # whether it seems to be the request that such a server cannot take
        self.turned_away = 0
        self.turned_away_at = 0.0  # the first time
        self.refusals: dict[str, tuple[int, int, int]] = {}  # label → how often, and its counts before the first time


class _RequestState:
    """What is known of a request that is being sent, over all its attempts."""

    __slots__ = (
        "_attempts",
        "_dispatcher",
        "_ended",
        "_sent",
        "_started",
        "_timeout",
        "_trouble",
        "_wall",
        "avoid",
        "grant",
        "reply",
    )

    def __init__(self, dispatcher: Dispatcher, timeout: float | None) -> None:
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._started = self._ended = dispatcher._clock()
        self._sent = 0.0
        self._wall = 0.0
        self.grant: Grant | None = None
        self.reply: Reply | None = None
        self._attempts: list[Attempt] = []
        self._trouble: _Trouble | None = None
        self.avoid: tuple[str, ...] = ()

    @property
    def trouble(self) -> _Trouble:
        """What is known of earlier failures."""
        if self._trouble is None:
            self._trouble = _Trouble()
        return self._trouble

    async def attempt(
        self, lease: Lease, request: Request, parse: Callable[[Reply], tuple[T, TokenUsage | None]]
    ) -> tuple[T, RequestMetrics]:
        """Send once, with the slot and the grant that were given."""
        dispatcher, deployment = self._dispatcher, lease.deployment
        self._wall = dispatcher._wall()
        self._sent = dispatcher._clock()
        self.reply = reply = await deployment.transport.send(request, self._timeout)
        now = dispatcher._clock()
        deployment.limiter.observe(reply.header)
        value, usage = parse(reply)
        if usage is not None and self.grant is not None:
            self.grant.settle(usage.prompt_tokens, usage.completion_tokens)
        deployment.answered_at = now
        deployment.answers += 1
        lease.succeeded(now - self._sent)
        self._record(deployment, now, reply.status_code, None, usage)
        attempts = self._attempts
        if len(attempts) > 1:
            return value, self._metrics(deployment.label, now)
        only = attempts[0]
        return value, RequestMetrics(only.deployment, only.queue_s, only.service_s, now - self._started, 0, attempts)

    def fail(self, lease: Lease, error: RequestError, router: Router) -> tuple[Router, float]:
        """Record a failed attempt and end its lease.

        Returns
        -------
        tuple
            Who may be asked next: the router that was given, or one without the deployments that refused. And the
            seconds to wait before the next attempt; 0 where another deployment takes it, or where the limiter waits.

        Raises
        ------
        RequestError
            There is no next attempt.
        """
        dispatcher, deployment = self._dispatcher, lease.deployment
        now = dispatcher._clock()
        error.deployment = deployment.label
        if self.reply is not None and self.reply.secrets:  # it quotes an answer, in which the server may echo its key
            error.redact(self.reply.secrets)
        policy = dispatcher.retry
        fault = blame(error, policy.max_pause_s)
        _tell_long_wait(error, policy.max_pause_s)
        # Before anything is given back: the next in line is to find the deployment paused.
        singled_out = fault == "quota" and self._is_singled_out(deployment)
        if fault == "quota" and not singled_out:
            deployment.limiter.pause(policy.pause(self.trouble.turned_away, error.retry_after, dispatcher._rng))
            deployment.start_slowly()
        if self.grant is not None and not isinstance(error, InputError):
            status = error.status_code
            if status is None and self.reply is not None:
                status = self.reply.status_code
            self._record(deployment, now, status, error, error.usage)
        self._return_grant(error)
        if error.header is not None and error.retry_after is None:
            # A wait that is asked for says more than a quota's reset, which is the time until it is full again.
            deployment.limiter.observe(error.header)
        error.header = None  # a failed item of a batch need not hold its answer
        lease.failed(error, fault, now - self._sent)
        self.trouble.failures[deployment.label] = error
        if error.rewritten:
            return router, 0.0
        if fault == "quota":
            return router, self._turned_away_by(deployment, error, router, now, singled_out)
        if fault in ("refusal", "window"):
            others = router.without(deployment.label)
            if others is not None:
                return others, 0.0
            self._give_up(error, now)
        if fault == "away" and router.awaited(deployment) and not self._counts(deployment, error, now):
            self.avoid = ()
            self.trouble.away += 1
            # An open circuit makes the request wait in line. Before it opens, the request waits by itself.
            wait = policy.delay(self.trouble.away - 1, error.retry_after, dispatcher._rng)
            return router, 0.0 if deployment.awaited else wait
        delay = policy.decide(error, self.trouble.counted, dispatcher._rng)
        self.trouble.counted += 1
        if delay is None:
            if fault == "away":
                deployment.away_at = now  # the next request that fails so is not to blame: the server is away
            self._give_up(error, now)
        return router, self._next(deployment, router, delay)

    def _counts(self, deployment: Deployment, error: RequestError, now: float) -> bool:
        """Whether a failure that looks as if the server were away costs a retry: the request may be the reason.

        A request that breaks the connection, each time that one is made, is. One that gets a 503 is, once others were
        answered between two of its own. It may be, where nobody else waits and the server's last word was an answer.
        """
        if is_unconnected(error):
            deployment.away_at = now
            return False
        if isinstance(error, APIConnectionError):
            return True
        before, self.trouble.away_at = self.trouble.away_at, now
        self.trouble.suspect = self.trouble.suspect or 0 < before < deployment.answered_at
        return self.trouble.suspect or (deployment.answered_at > deployment.away_at and not deployment.waited_for)

    def send_back(self, lease: Lease, held: HeldError, router: Router) -> tuple[Router, float]:
        """End the lease of a request that its limiter holds back for too long; returns as :meth:`fail` does.

        Raises
        ------
        RequestError
            The server's headers ask for a longer wait than ``max_pause``, and nobody else is left.
        """
        deployment = lease.deployment
        if held.asked:
            error = RateLimitError(
                f"{deployment.label}: the rate-limit headers of its last answers leave nothing for this request",
                retry_after=held.seconds,
            )
            return self.fail(lease, error, router)
        if held.seconds and not deployment.limiter.paused_for:  # others it would take, but not this one
            self.avoid = (*self.avoid, deployment.label)
        return router, 0.0

    def _turned_away_by(
        self, deployment: Deployment, error: RequestError, router: Router, now: float, singled_out: bool
    ) -> float:
        """Seconds to wait after a 429: for its deployment's pause, with all others, or where it is the only one alone.

        Raises
        ------
        RequestError
            It was turned away for too long, or too often while others were answered.
        """
        policy, rng, asked = self._dispatcher.retry, self._dispatcher._rng, error.retry_after
        self.trouble.turned_away += 1
        self.trouble.turned_away_at = self.trouble.turned_away_at or now
        since = self.trouble.turned_away_at if singled_out else max(self.trouble.turned_away_at, deployment.answered_at)
        if now - since + (asked or 0.0) > policy.max_pause_s:
            self._give_up(error, now)
        delay = policy.decide(error, self.trouble.counted, rng)
        if singled_out or not (asked or policy.waits_unasked):
            self.trouble.counted += 1
            if delay is None:
                self._give_up(error, now)
        # In a pause the limiter makes the request wait until it is over; a back-off would come on top of that.
        return self._next(deployment, router, delay or 0.0 if singled_out else 0.0)

    def _is_singled_out(self, deployment: Deployment) -> bool:
        """Whether a deployment turns this very request away while it answers the others.

        Of all that was answered or turned away since this request's first refusal, some share was turned away. The
        request is singled out once it is unlikely that so many refusals have met it by chance.
        """
        deployment.refusals += 1
        times, answers, refusals = self.trouble.refusals.get(
            deployment.label, (0, deployment.answers, deployment.refusals - 1)
        )
        self.trouble.refusals[deployment.label] = times + 1, answers, refusals
        refused = deployment.refusals - refusals
        share = refused / (refused + deployment.answers - answers)
        return bool(share ** (times + 1) < _BY_CHANCE)

    def _next(self, failed: Deployment, router: Router, delay: float) -> float:
        """Choose whom the next attempt avoids; returns the seconds to wait before it."""
        self.avoid = (*self.avoid, failed.label)
        if router.alternative(self.avoid):
            return 0.0
        self.avoid = (failed.label,)  # all were tried: another round, and this one last
        return delay

    def _return_grant(self, error: RequestError) -> None:
        """Give back to the quotas what a failed request did not use.

        All of it where the request was turned away, or never arrived. Its tokens where the server refused it. Anything
        else the server may have worked on, and it stays charged.
        """
        if self.grant is None:
            return
        if isinstance(error, (RateLimitError, APIConnectionError, InputError)):
            self.grant.refund()
        elif error.usage is not None:
            self.grant.settle(error.usage.prompt_tokens, error.usage.completion_tokens)
        elif error.status_code is not None and 400 <= error.status_code < 500:
            self.grant.settle(0, 0)

    def _record(
        self,
        deployment: Deployment,
        now: float,
        status: int | None,
        error: RequestError | None,
        usage: TokenUsage | None,
    ) -> None:
        prompt = completion = cost = None
        if usage is not None:
            prompt, completion = usage.prompt_tokens, usage.completion_tokens
            if deployment.price is not None:
                cost = deployment.price(usage)
            elif usage.details is not None:
                cost = reported_cost(usage)
        self._attempts.append(
            Attempt(
                len(self._attempts) + 1,
                deployment.label,
                self._wall,
                self._sent - self._ended,
                now - self._sent,
                status,
                None if error is None else error.kind,
                prompt,
                completion,
                cost,
            )
        )
        self._ended = now

    def _metrics(self, label: str, now: float) -> RequestMetrics:
        attempts = self._attempts
        if len(attempts) == 1:
            queued, retries = attempts[0].queue_s, 0
        else:
            queued, retries = sum([a.queue_s for a in attempts]), max(len(attempts) - 1, 0)
        service = attempts[-1].service_s if attempts else 0.0
        return RequestMetrics(label, queued, service, now - self._started, retries, attempts)

    def stopped(self) -> StoppedError:
        """The error of a request that waits when nothing more is to be sent."""
        label = self._attempts[-1].deployment if self._attempts else ""
        error = StoppedError("stopped while the request was waiting for its turn", deployment=label or None)
        error.metrics = self._metrics(label, self._dispatcher._clock())
        return error

    def _give_up(self, error: RequestError, now: float) -> NoReturn:
        """Raise the failure that the caller sees."""
        label = error.deployment or ""
        metrics = self._metrics(label, now)
        error.metrics = metrics
        failures = {name: f"{failure.kind}: {failure.message}" for name, failure in self.trouble.failures.items()}
        too_long = isinstance(error, ContextLengthError)
        if len(failures) < 2 or (isinstance(error, BadRequestError | InputError) and not too_long):
            raise error
        each = "; ".join(f"{name}: {failure}" for name, failure in failures.items())
        kinds = {type(failure) for failure in self.trouble.failures.values()}
        if kinds == {ContextLengthError}:  # all say the same of the request
            error.message = f"every deployment said so: {each}"
            error.args = (error.message,)
            raise error
        final = NoDeploymentError(
            f"every deployment that was tried failed: {each}",
            failures=failures,
            status_code=error.status_code,
            retry_after=error.retry_after,
            deployment=label,
            request_id=error.request_id,
            retryable=error.retryable,
        )
        final.metrics, final.usage = metrics, error.usage
        raise final from error


def _tell_long_wait(error: RequestError, max_pause_s: float) -> None:
    """Say in the message how long the server asks to wait, where that is why nobody waits for it."""
    asked = error.retry_after
    if asked is not None and asked > max_pause_s:
        error.message += f". It asks to wait {asked:,.0f} s, longer than max_pause ({max_pause_s:g} s)"
        error.args = (error.message,)
