"""A deployment and its slots, which the routers of several models may share.

A request that finds no slot waits in the line of every deployment that could serve it, with one waiter that is in all
those lines. The first deployment with a free slot serves it; in the other lines it remains, done, until it comes to the
front and is dropped. To take it out of each line at once would cost a search through all of them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from infermesh.dispatch.blame import Blame
from infermesh.dispatch.health import Cause, Health
from infermesh.errors import ConfigError, RequestError, RequestTimeoutError
from infermesh.limits import OpenLimiter, RateLimiter
from infermesh.results import TokenUsage
from infermesh.types import Transport

__all__ = ["Deployment", "Lease", "Waiter"]

# Weight of the newest service time in the mean, and the age in seconds at which a mean says nothing about the load now.
LATENCY_ALPHA = 0.2
LATENCY_LIFE_S = 60.0

# A server that nobody has asked for so many seconds is not started slowly any more: what it told is no longer true.
FORGET_S = 60.0

# Slots that count as no bound any more while they grow.
_MANY_SLOTS = 16_384.0


class Waiter:
    """A request that waits for a lease, in the lines of one or more deployments.

    Parameters
    ----------
    gives_up
        Whether none of the model's deployments is healthy, nor worth waiting for.
    ignores_health
        Whether a deployment is tried even if it is not healthy: there is no better one to wait for.
    cooldown_timeout
        Seconds after which, with all deployments cooling down, ``future`` becomes ``None``: the router is to choose one
        in spite of that. ``None`` waits on.
    patience_s
        Seconds for which its model waits for deployments that cannot be reached.

    Attributes
    ----------
    moved
        Whether ``future`` is ``None`` since the deployments have changed: the router is to choose anew.
    """

    __slots__ = ("_cooldown_timeout", "_gives_up", "future", "ignores_health", "moved", "patience_s", "timer")

    def __init__(
        self,
        gives_up: Callable[[], bool],
        ignores_health: Callable[[], bool],
        cooldown_timeout: float | None,
        patience_s: float,
    ) -> None:
        self.future: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
        self.ignores_health = ignores_health
        self.patience_s = patience_s
        self.timer: asyncio.TimerHandle | None = None
        self.moved = False
        self._gives_up = gives_up
        self._cooldown_timeout = cooldown_timeout

    @property
    def waiting(self) -> bool:
        """Whether it still waits, on a loop that still runs."""
        return not self.future.done() and not self.future.get_loop().is_closed()

    def start_timeout(self) -> None:
        """Start the cooldown timeout, when a deployment begins to cool down."""
        if self.timer is None and self._cooldown_timeout is not None and not self.ignores_health():
            self.timer = self.future.get_loop().call_later(self._cooldown_timeout, self._time_out)

    def _time_out(self) -> None:
        self.timer = None
        if self.waiting:
            if self._gives_up():
                self.future.set_result(None)
            else:
                self.start_timeout()


class Deployment:
    """One replica or account: its transport, limiter, slots, health and measured latency. Shared by models.

    Parameters
    ----------
    label
        Its name in results and messages.
    transport
        Sends requests there.
    limiter
        Its quotas; none by default.
    max_parallel_requests
        Slots: requests in flight at once, over all models and stages; ``None`` for no bound.
    weight
        Share of the load; 0: none.
    price
        US dollars of an answer's usage, ``None`` where no price is known.
    patience_s
        Seconds for which requests wait for a server that cannot be reached, if their model has as much patience; 0 lets
        them fail as others do.

    Raises
    ------
    ConfigError
        No slot, or a weight below 0.
    """

    def __init__(
        self,
        label: str,
        transport: Transport,
        limiter: RateLimiter | None = None,
        *,
        max_parallel_requests: int | None = None,
        weight: float = 1.0,
        price: Callable[[TokenUsage], float | None] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        if max_parallel_requests is not None and max_parallel_requests < 1:
            raise ConfigError(f"{label}.max_parallel_requests: expected at least 1, got {max_parallel_requests}")
        if not weight >= 0:
            raise ConfigError(f"{label}.weight: expected a number, 0 or more, got {weight}")
        self.label = label
        self.transport = transport
        self.limiter: RateLimiter = OpenLimiter() if limiter is None else limiter
        self.max_parallel_requests = max_parallel_requests
        self.weight = weight
        self.price = price
        self.patience_s = patience_s
        self.health = Health()
        self.in_flight = 0
        self.answered_at = 0.0  # by the dispatcher's clock, as the next
        self.answers = 0
        self.refusals = 0  # requests that were turned away (429)
        self.away_at = 0.0  # when it was last certain that the server, and no request, was the reason of a failure
        self.latency_s: float | None = None
        self._measured_at = 0.0
        self._most_slots = math.inf if max_parallel_requests is None else float(max_parallel_requests)
        self.slots = self._most_slots  # fewer after a pause, until the server shows that it takes more
        self.slow_starts = 0
        self._eager_slots = math.inf  # up to here the slots double, above they grow by one
        self._slow_at = 0.0  # of a slow start: its beginning, or its last answer
        self._waiters: deque[Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def awaited(self) -> bool:
        """Whether requests wait until the server can be reached again."""
        health = self.health
        return bool(health.cool_until and health.cause == "away" and self.patience_s)

    @property
    def refuses(self) -> bool:
        """Whether it refuses everybody, as far as is known."""
        return bool(self.health.cool_until and self.health.cause == "refusal")

    def start_slowly(self) -> None:
        """Let one request through, then twice as many with each round of answers: after a pause, and after an outage.

        All that waited would otherwise arrive at once, and most of them be turned away again. From half of what was in
        flight on, it is one more a round (slow start and congestion avoidance of TCP, RFC 5681). What was sent alone
        tells nothing of how many the server takes: it bounds nothing.
        """
        # It begins when the pause or the outage is over, as far as is known.
        self._slow_at = max(asyncio.get_running_loop().time(), self.limiter.ready_at, self.health.cool_until)
        if self.slots > 1:
            self.slow_starts += 1
            if self.in_flight > 1:
                self._eager_slots = max(2.0, min(self.slots, self.in_flight) / 2)
            self.slots = 1.0

    def _grow(self) -> None:
        """Count an answer in favor of more slots."""
        self._slow_at = asyncio.get_running_loop().time()
        self.slots += 1.0 if self.slots < self._eager_slots else 1.0 / self.slots
        if self.slots >= min(self._most_slots, _MANY_SLOTS):
            self._start_fully()

    def _start_fully(self) -> None:
        self.slots, self._eager_slots = self._most_slots, math.inf

    def _is_forgotten(self, now: float) -> bool:
        """Whether a slow start is over since nobody has asked for the deployment for a while, nor waits for it."""
        return now - self._slow_at > FORGET_S and not (self.in_flight or self._waiters)

    def has_free_slot(self) -> bool:
        """Whether a slot is free for which no request waits."""
        self._drop_served()
        return self.in_flight < self.slots and not self._waiters

    @property
    def wanted(self) -> int:
        """Slots in use, and waited for."""
        return self.in_flight + len(self._waiters)

    def resize(self, slots: int | None) -> None:
        """Set how many slots there are, 0 included; ``None``: no bound. Requests in flight beyond that go on."""
        full = self.slots >= self._most_slots
        self._most_slots = math.inf if slots is None else float(slots)
        self.slots = self._most_slots if full else min(self.slots, self._most_slots)
        if self._waiters:
            self._serve_waiters()

    def look_again(self) -> None:
        """Make all who wait here choose anew: the deployments of their models have changed."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if waiter.waiting:
                waiter.moved = True
                waiter.future.set_result(None)

    def _drop_served(self) -> None:
        """Drop waiters from the front of the line that were served elsewhere, or gave up."""
        while self._waiters and not self._waiters[0].waiting:
            self._waiters.popleft()

    @property
    def waited_for(self) -> bool:
        """Whether requests wait for a slot or for the limiter."""
        return bool(self.limiter.waiting or any(waiter.waiting for waiter in self._waiters))

    def waited_for_with(self, patience_s: float) -> bool:
        """Whether requests with that patience, of one model or of several, wait for a slot."""
        return any(waiter.waiting and waiter.patience_s == patience_s for waiter in self._waiters)

    def can_send(self, now: float) -> bool:
        """Whether a request would be sent at once, as far as can be told."""
        limiter = self.limiter
        return (
            self.in_flight < self.slots
            and not (self._waiters and not self.has_free_slot())
            and (not self.health.cool_until or self.health.accepts(now))
            and limiter.ready_at <= now
            and not limiter.waiting
        )

    def lease(self, now: float) -> Lease:
        """Take a slot."""
        if self.slots < self._most_slots and self._is_forgotten(now):
            self._start_fully()
        self.in_flight += 1
        return Lease(self, self.health.begin(now) if self.health.cool_until else False)

    def release(self) -> None:
        """Give a slot back; for leases."""
        self.in_flight -= 1
        if self._waiters:
            self._serve_waiters()

    def add_waiter(self, waiter: Waiter, now: float) -> None:
        """Put a waiter at the end of the line."""
        self._drop_served()
        self._waiters.append(waiter)
        if self.health.cool_until:
            waiter.start_timeout()
        self._serve_waiters()

    def _serve_waiters(self) -> None:
        """Lease free slots to waiters, as far as health and pauses allow."""
        now = asyncio.get_running_loop().time()
        while self._waiters and self.in_flight < self.slots:
            waiter = self._next_waiter(now)
            if waiter is None:
                break
            waiter.future.set_result(self.lease(now))
        self._schedule_serving(now)

    def _next_waiter(self, now: float) -> Waiter | None:
        """Take the first waiter out of the line that may be served now.

        While the deployment cools down or is paused, that is one that ignores health: it has nowhere better to go. The
        others may be served by another deployment before.
        """
        self._drop_served()
        if self.health.accepts(now) and self.limiter.ready_at <= now:
            return self._waiters.popleft() if self._waiters else None
        found = next((waiter for waiter in self._waiters if waiter.waiting and waiter.ignores_health()), None)
        if found is not None:
            self._waiters.remove(found)
        return found

    def _schedule_serving(self, now: float) -> None:
        """Serve the line again when the cooldown or the pause ends.

        No timer is needed for a deployment without a free slot, or with a probe in flight: the end of that request
        releases a slot, and with it serves the line.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        until = max(self.health.cool_until, self.limiter.ready_at)
        if self._waiters and self.in_flight < self.slots and until > now:
            self._timer = asyncio.get_running_loop().call_at(until, self._serve_waiters)

    def record_latency(self, service_s: float, now: float) -> None:
        """Count one service time, in seconds, into the mean."""
        known = self.latency_s
        self.latency_s = service_s if known is None else known + LATENCY_ALPHA * (service_s - known)
        self._measured_at = now

    def known_latency(self, now: float) -> float | None:
        """Mean service time in seconds; ``None`` where it was not measured of late."""
        return self.latency_s if now - self._measured_at < LATENCY_LIFE_S else None

    def learn(self, now: float, cool_s: float, cause: Cause, why: str) -> None:
        """Ask nobody here for so many seconds: another process of the run has found the server so."""
        self.health.learn(now, cool_s, cause, why)
        if cause == "away" and self.patience_s:
            self.start_slowly()
        for waiter in self._waiters:
            waiter.start_timeout()

    def record_failure(self, now: float, fault: Blame, error: RequestError, *, probe: bool) -> None:
        """Count a failure, or a refusal, against the server's health."""
        cause = fault if fault in ("away", "refusal") else "failure"
        # Who refuses for longer than anybody waits is probed all the same: its quota may be raised.
        asked_s = 0.0 if cause == "refusal" else error.retry_after or 0.0
        if self.health.failed(now, probe=probe, cause=cause, why=error.message, asked_s=asked_s):
            if cause == "away" and self.patience_s:
                self.start_slowly()
            for waiter in self._waiters:
                waiter.start_timeout()


class Lease:
    """A slot of a deployment, held for one attempt.

    It ends in one of three ways: ``succeeded``, ``failed`` or ``cancel``. The first call releases the slot, later ones
    do nothing, so that whoever holds a lease can cancel it in a ``finally`` whatever happened before.
    """

    __slots__ = ("_held", "_probe", "_slow_starts", "deployment")

    def __init__(self, deployment: Deployment, probe: bool) -> None:
        self.deployment = deployment
        self._probe = probe
        self._held = True
        self._slow_starts = deployment.slow_starts

    def succeeded(self, service_s: float) -> None:
        """End it with an answer that took ``service_s`` seconds."""
        if self._held:
            self._held = False
            deployment = self.deployment
            health = deployment.health
            if health.since:
                health.succeeded()
            if deployment.slots < deployment._most_slots and self._slow_starts == deployment.slow_starts:
                deployment._grow()  # an answer to what was sent before the pause says nothing of the time after it
            deployment.record_latency(service_s, asyncio.get_running_loop().time())
            deployment.release()

    def failed(self, error: RequestError, fault: Blame, service_s: float) -> None:
        """End it with a failure. An answer in which the server refused the request (4xx) shows a healthy server."""
        if self._held:
            self._held = False
            deployment, now = self.deployment, asyncio.get_running_loop().time()
            if fault in ("failure", "away", "refusal"):
                deployment.record_failure(now, fault, error, probe=self._probe)
                if isinstance(error, RequestTimeoutError):  # other failures may be quick, which must not attract load
                    deployment.record_latency(service_s, now)
            elif error.status_code is not None:
                deployment.health.succeeded()
            else:
                deployment.health.abandoned(probe=self._probe)
            deployment.release()

    def cancel(self) -> None:
        """End it without news of the server."""
        if self._held:
            self._held = False
            self.deployment.health.abandoned(probe=self._probe)
            self.deployment.release()
