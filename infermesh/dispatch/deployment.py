"""A deployment and its slots, which the routers of several models may share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from infermesh.dispatch.health import Health
from infermesh.errors import (
    APIConnectionError,
    ConfigError,
    MalformedResponseError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)
from infermesh.limits import NullLimiter, RateLimiter
from infermesh.results import TokenUsage
from infermesh.types import Transport

__all__ = ["Deployment", "Lease", "Waiter"]

# Weight of the newest service time, and the age at which a measurement says nothing about the present load any more.
LATENCY_ALPHA = 0.2
LATENCY_LIFE_S = 60.0

UNHEALTHY = (APIConnectionError, RequestTimeoutError, ServerError, MalformedResponseError)


class Waiter:
    """Waits for a lease at several deployments. ``None`` as its result: patience is over, look again."""

    __slots__ = ("_all_cooling", "_patience", "future", "insistent", "timer")

    def __init__(self, all_cooling: Callable[[], bool], insistent: bool, patience: float | None) -> None:
        self.future: asyncio.Future[Lease | None] = asyncio.get_running_loop().create_future()
        self.insistent = insistent
        self.timer: asyncio.TimerHandle | None = None
        self._all_cooling = all_cooling
        self._patience = patience

    @property
    def live(self) -> bool:
        """Whether it still waits, on a loop that still runs."""
        return not self.future.done() and not self.future.get_loop().is_closed()

    def arm(self) -> None:
        """Start to lose patience, now that a deployment is out."""
        if self.timer is None and self._patience is not None and not self.insistent:
            self.timer = self.future.get_loop().call_later(self._patience, self._expire)

    def _expire(self) -> None:
        self.timer = None
        if self.live:
            if self._all_cooling():
                self.future.set_result(None)
            else:
                self.arm()


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
        Share of the load, above 0.
    price
        US dollars of an answer's usage, ``None`` where no price is known.

    Raises
    ------
    ConfigError
        No slot, or a weight that is not above 0.
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
    ) -> None:
        if max_parallel_requests is not None and max_parallel_requests < 1:
            raise ConfigError(f"{label}.max_parallel_requests: expected at least 1, got {max_parallel_requests}")
        if not weight > 0:
            raise ConfigError(f"{label}.weight: expected a number above 0, got {weight}")
        self.label = label
        self.transport = transport
        self.limiter: RateLimiter = NullLimiter() if limiter is None else limiter
        self.max_parallel_requests = max_parallel_requests
        self.weight = weight
        self.price = price
        self.health = Health()
        self.in_flight = 0
        self.latency_s: float | None = None
        self._measured_at = 0.0
        self.slots = float("inf") if max_parallel_requests is None else max_parallel_requests
        self._waiters: deque[Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def free(self) -> bool:
        """Whether a slot is free that nobody waits for."""
        waiters = self._waiters
        while waiters and not waiters[0].live:
            waiters.popleft()
        return self.in_flight < self.slots and not waiters

    @property
    def waited_for(self) -> bool:
        """Whether requests stand in line for a slot or for the limiter."""
        return bool(self.limiter.waiting or any(waiter.live for waiter in self._waiters))

    def flows(self, now: float) -> bool:
        """Whether a request sent there now would go out at once, as far as can be told."""
        limiter = self.limiter
        return (
            self.in_flight < self.slots
            and not (self._waiters and not self.free)
            and (not self.health.cool_until or self.health.accepts(now))
            and limiter.ready_at <= now
            and not limiter.waiting
        )

    def occupy(self, now: float) -> Lease:
        """Take a slot."""
        self.in_flight += 1
        return Lease(self, self.health.begin(now) if self.health.cool_until else False)

    def vacate(self) -> None:
        """Give a slot back; for leases."""
        self.in_flight -= 1
        if self._waiters:
            self._offer()

    def enqueue(self, waiter: Waiter, now: float) -> None:
        """Let a router's waiter have a slot in its turn."""
        _ = self.free  # drops those from the front that were served elsewhere
        self._waiters.append(waiter)
        if self.health.cool_until:
            waiter.arm()
        self._offer()

    def _offer(self) -> None:
        """Hand free slots to waiters, as far as health and pauses allow; come back when they allow more."""
        now = asyncio.get_running_loop().time()
        while self._waiters and self.in_flight < self.slots:
            waiter = self._next(now)
            if waiter is None:
                break
            waiter.future.set_result(self.occupy(now))
        self._come_back(now)

    def _next(self, now: float) -> Waiter | None:
        _ = self.free
        if self.health.accepts(now) and self.limiter.ready_at <= now:
            return self._waiters.popleft() if self._waiters else None
        insistent = next((w for w in self._waiters if w.insistent and w.live), None)
        if insistent is not None:
            self._waiters.remove(insistent)
        return insistent

    def _come_back(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        until = max(self.health.cool_until, self.limiter.ready_at)
        # A full deployment is looked at when a slot returns, one with a probe out when that ends.
        if self._waiters and self.in_flight < self.slots and until > now:
            self._timer = asyncio.get_running_loop().call_at(until, self._offer)

    def measure(self, service_s: float, now: float) -> None:
        """Take in one service time, in seconds."""
        known = self.latency_s
        self.latency_s = service_s if known is None else known + LATENCY_ALPHA * (service_s - known)
        self._measured_at = now

    def known_latency(self, now: float) -> float | None:
        """Mean service time in seconds, ``None`` if never or long not measured."""
        return self.latency_s if now - self._measured_at < LATENCY_LIFE_S else None

    def fail(self, now: float, *, probe: bool) -> None:
        """Count a failure against the server's health."""
        if self.health.failed(now, probe=probe):
            for waiter in self._waiters:
                waiter.arm()


class Lease:
    """A slot of a deployment, held for one attempt.

    The first of its three endings returns the slot; later ones do nothing.
    """

    __slots__ = ("_held", "_probe", "deployment")

    def __init__(self, deployment: Deployment, probe: bool) -> None:
        self.deployment = deployment
        self._probe = probe
        self._held = True

    def succeeded(self, service_s: float) -> None:
        """End it with an answer that took ``service_s`` seconds."""
        if self._held:
            self._held = False
            deployment = self.deployment
            health = deployment.health
            if health.failures or health.cool_until:
                health.succeeded()
            deployment.measure(service_s, asyncio.get_running_loop().time())
            deployment.vacate()

    def failed(self, error: RequestError, service_s: float) -> None:
        """End it with a failure. One that the server decided on (4xx) shows a server in good health."""
        if self._held:
            self._held = False
            deployment, now = self.deployment, asyncio.get_running_loop().time()
            if isinstance(error, UNHEALTHY):
                deployment.fail(now, probe=self._probe)
                if isinstance(error, RequestTimeoutError):  # other failures may be quick, which is no merit
                    deployment.measure(service_s, now)
            elif error.status_code is not None:
                deployment.health.succeeded()
            else:
                deployment.health.abandoned(probe=self._probe)
            deployment.vacate()

    def cancel(self) -> None:
        """End it without news of the server."""
        if self._held:
            self._held = False
            self.deployment.health.abandoned(probe=self._probe)
            self.deployment.vacate()
