"""What is known of one request over its attempts, and what becomes of it after each failure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from infermesh.dispatch import Deployment, Lease, Router
from infermesh.dispatch.blame import blame, is_unconnected
from infermesh.dispatch.failures import ON_FAILURE
from infermesh.dispatch.pricing import reported_cost, served_by
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
from infermesh.limits import Grant, HeldError
from infermesh.results import Attempt, RequestMetrics, TokenUsage
from infermesh.types import Reply, Request

T = TypeVar("T")

# A request that is turned away so often with a smaller probability than this is not turned away by chance.
_BY_CHANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Terms:
    """What all requests of a dispatcher have in common; its fields as in ``Dispatcher``."""

    retry: RetryPolicy
    rng: random.Random
    clock: Callable[[], float]
    wall: Callable[[], float]
    tells: bool


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


class RequestState:
    """What is known of a request that is being sent, over all its attempts."""

    __slots__ = (
        "_attempts",
        "_ended",
        "_request",
        "_sent",
        "_started",
        "_terms",
        "_trouble",
        "_wall",
        "avoid",
        "grant",
        "reply",
    )

    def __init__(self, terms: Terms, request: Request) -> None:
        self._terms = terms
        self._request = request
        self._started = self._ended = terms.clock()
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

    def begin(self) -> None:
        """Begin an attempt, with the slot and the grant that were given."""
        self._wall = self._terms.wall()
        self._sent = self._terms.clock()

    def answered(
        self, lease: Lease, reply: Reply, parse: Callable[[Reply], tuple[T, TokenUsage | None]]
    ) -> tuple[T, RequestMetrics]:
        """Parse the reply of an attempt, and end its lease. Raises ``RequestError``."""
        deployment = lease.deployment
        self.reply = reply
        now = self._terms.clock()
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
        terms, deployment = self._terms, lease.deployment
        now = terms.clock()
        error.deployment = deployment.label
        if self.reply is not None and self.reply.secrets:  # it quotes an answer, in which the server may echo its key
            error.redact(self.reply.secrets)
        policy = terms.retry
        fault = blame(error, policy.max_pause_s)
        _tell_long_wait(error, policy.max_pause_s)
        # Before anything is given back: the next in line is to find the deployment paused.
        singled_out = fault == "quota" and self._is_singled_out(deployment)
        if fault == "quota" and not singled_out:
            deployment.limiter.pause(policy.pause(self.trouble.turned_away, error.retry_after, terms.rng))
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
            wait = policy.delay(self.trouble.away - 1, error.retry_after, terms.rng)
            return router, 0.0 if deployment.awaited else wait
        delay = policy.decide(error, self.trouble.counted, terms.rng)
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
        policy, rng, asked = self._terms.retry, self._terms.rng, error.retry_after
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
        prompt = completion = cost = tier = None
        if usage is not None:
            prompt, completion, tier = usage.prompt_tokens, usage.completion_tokens, served_by(usage)
            if deployment.price is not None:
                cost = deployment.price(usage)
            elif usage.details is not None:
                cost = reported_cost(usage)
        request = self._request
        attempt = Attempt(
            request.earlier + len(self._attempts) + 1,
            deployment.label,
            self._wall,
            self._sent - self._ended,
            now - self._sent,
            status,
            None if error is None else error.kind,
            prompt,
            completion,
            cost,
            request.rows,
            tier,
        )
        self._attempts.append(attempt)
        self._ended = now
        if error is not None and self._terms.tells and (told := ON_FAILURE.get()) is not None:
            told(attempt, error)

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
        error.metrics = self._metrics(label, self._terms.clock())
        return error

    def dropped(self, deployment: Deployment) -> StoppedError:
        """The error of a request in flight whose answer nobody waits for any more. It counts as an attempt."""
        now = self._terms.clock()
        error = StoppedError("stopped before its answer came", deployment=deployment.label)
        self._record(deployment, now, None, error, None)
        error.metrics = self._metrics(deployment.label, now)
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
