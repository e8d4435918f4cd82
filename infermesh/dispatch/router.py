"""One model's view of its deployments, and the strategies that choose among them."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection, Sequence

from infermesh.dispatch.deployment import Deployment, Lease, Waiter
from infermesh.errors import ConfigError
from infermesh.types import RoutingStrategy

__all__ = ["Router"]


class Router:
    """Chooses among the deployments of one model.

    - ``simple-shuffle``: at random, by weight.
    - ``least-busy``: the fewest requests in flight, this one included, for its share: slots × weight where all
      have slots, else the weight.
    - ``latency-based-routing``: the lowest mean service time × requests in flight / weight, so that a fast deployment
      fills until a slower one would answer sooner. One without a recent measurement gets one request to measure.

    One with weight 0 is never chosen.

    Whatever the strategy, deployments come first that have a free slot, are healthy, are not paused and have nobody
    waiting at their limiter. An only deployment is tried whether it is healthy or not: there is no other, and the retry
    policy sets the pace. The exception is one that cannot be reached and has patience: it is waited for. Where all
    deployments refuse, none is waited for: each request hears it from them at once.

    Parameters
    ----------
    deployments
        At least one, with distinct labels.
    strategy
        One of the three above.
    rng
        Source of the random choices.
    patience_s
        Seconds for which this model's requests wait for deployments that cannot be reached; 0: they do not wait.

    Raises
    ------
    ConfigError
        No deployment, a label twice, all with weight 0, or an unknown strategy.

    Attributes
    ----------
    deployments
        Those with a weight above 0.
    """

    def __init__(
        self,
        deployments: Sequence[Deployment],
        strategy: RoutingStrategy = "simple-shuffle",
        *,
        rng: random.Random | None = None,
        patience_s: float = math.inf,
        _whole: Router | None = None,
    ) -> None:
        pickers: dict[str, Callable[[list[Deployment], float], Deployment]] = {
            "simple-shuffle": self._shuffle,
            "least-busy": self._least_busy,
            "latency-based-routing": self._fastest,
        }
        labels = [deployment.label for deployment in deployments]
        if not labels or len(set(labels)) < len(labels):
            raise ConfigError(f"deployments: expected at least one, with distinct labels, got {labels}")
        if strategy not in pickers:
            raise ConfigError(f"routing_strategy: expected one of {', '.join(pickers)}, got {strategy!r}")
        self._all = tuple(deployments)
        self._whole = _whole  # the one that this leaves some out of
        self.patience_s = patience_s
        self._strategy = strategy
        self._pick = pickers[strategy]
        self._reduced: dict[str, Router] = {}
        self._rng = rng or random.Random()
        self._turn = 0
        self.refresh()
        if not self.deployments:
            raise ConfigError(f"weight: expected one above 0 among {', '.join(labels)}")

    def refresh(self) -> None:
        """Take note of weights and slots, after they were changed.

        Where one of these routers has nobody left, its requests go to those that it was to leave out: they hear there
        once more why, and end.
        """
        serving = tuple(d for d in self._all if d.weight > 0)
        self.deployments: tuple[Deployment, ...] = serving or (self._whole.deployments if self._whole else ())
        self._only = self.deployments[0] if len(self.deployments) == 1 else None
        slots = [d.max_parallel_requests for d in self.deployments]
        self._share = {
            d.label: d.weight * (1 if None in slots or n is None else n)
            for d, n in zip(self.deployments, slots, strict=True)
        }
        for reduced in self._reduced.values():
            reduced.refresh()

    def try_lease(self, avoid: Collection[str] = ()) -> Lease | None:
        """Lease a slot if one is free now."""
        now = asyncio.get_running_loop().time()
        chosen = self._choose(avoid, now)
        return None if chosen is None else chosen.lease(now)

    async def lease(self, avoid: Collection[str] = (), cooldown_timeout: float | None = None) -> Lease:
        """Wait for a slot, first come first served.

        Parameters
        ----------
        avoid
            Labels to pass over, as long as another deployment is healthy and not paused.
        cooldown_timeout
            Seconds to wait when all deployments cool down; then the one whose cooldown ends first is tried in spite of
            it. ``None`` waits for a cooldown to end.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        chosen = self._choose(avoid, now)
        while chosen is None:
            lease, moved = await self._wait(avoid, cooldown_timeout, now)
            if lease is not None:
                return lease
            now = loop.time()
            if moved:
                chosen = self._choose(avoid, now)
                continue
            # The cooldown timeout is over, and no deployment is healthy.
            with_slot = [d for d in self.deployments if d.in_flight < d.slots]
            chosen = min(with_slot, key=lambda d: d.health.cool_until) if with_slot else self._choose(avoid, now)
        return chosen.lease(now)

    def alternative(self, avoid: Collection[str]) -> bool:
        """Whether a deployment outside ``avoid`` is healthy and not paused."""
        if self._only is not None:
            return False
        now = asyncio.get_running_loop().time()
        return any(
            d.label not in avoid and d.health.accepts(now) and d.limiter.ready_at <= now for d in self.deployments
        )

    def without(self, label: str) -> Router | None:
        """A router over the other deployments, ``None`` where there is none. The slots and limits are the same."""
        if all(deployment.label == label for deployment in self.deployments):
            return None
        reduced = self._reduced.get(label)
        if reduced is None:
            others = [deployment for deployment in self._all if deployment.label != label]
            reduced = self._reduced[label] = Router(
                others, self._strategy, rng=self._rng, patience_s=self.patience_s, _whole=self
            )
        return reduced

    def awaited(self, failed: Deployment | None = None) -> bool:
        """Whether requests wait, since no deployment can be reached: some are awaited, and the others refuse.

        ``failed`` could not be reached just now: it is awaited, if it has patience, though its circuit may be closed.
        """
        if not self.patience_s:
            return False
        awaited = [d.awaited or (d is failed and d.patience_s > 0) for d in self.deployments]
        return any(awaited) and all(waits or d.refuses for waits, d in zip(awaited, self.deployments, strict=True))

    def _ignores_health(self) -> bool:
        """Whether nothing is gained by waiting for a healthy deployment: an only one, or all of them refuse."""
        if self._only is not None:
            return not (self._only.awaited and self.patience_s)
        return all(deployment.refuses for deployment in self.deployments)

    def _gives_up_waiting(self) -> bool:
        """Whether no deployment is healthy, and none is worth waiting for: it is away, or has said how long."""
        healths, now = [deployment.health for deployment in self.deployments], asyncio.get_running_loop().time()
        return all(each.cool_until and each.asked_until <= now for each in healths) and not self.awaited()

    def _choose(self, avoid: Collection[str], now: float) -> Deployment | None:
        """The deployment to lease from now; ``None`` where the request is to wait in line for a slot.

        In this order: one that would send at once; one with a free slot, whose limiter will make the request wait; and
        where every healthy one is paused, the one whose pause ends first, so that the request waits at its limiter.
        """
        if self._only is not None and not (self._only.awaited and self.patience_s):
            return self._only if self._only.has_free_slot() else None
        ready = [d for d in self.deployments if d.label not in avoid and d.can_send(now)]
        if ready:
            return self._pick(ready, now)
        healthy = [d for d in self._preferred(avoid) if d.health.accepts(now)]
        if not healthy and self._ignores_health():
            with_slot = [d for d in self.deployments if d.has_free_slot()]
            return min(with_slot, key=lambda d: d.health.cool_until, default=None)
        free = [d for d in healthy if d.has_free_slot() and d.limiter.ready_at <= now]
        if free:
            return self._pick(free, now)
        if any(d.limiter.ready_at <= now for d in healthy):
            return None  # it is full, but a slot will be free sooner than a pause is over
        return min((d for d in healthy if d.has_free_slot()), key=lambda d: d.limiter.ready_at, default=None)

    def _preferred(self, avoid: Collection[str]) -> Sequence[Deployment]:
        if not avoid or not self.alternative(avoid):
            return self.deployments
        return [d for d in self.deployments if d.label not in avoid]

    async def _wait(
        self, avoid: Collection[str], cooldown_timeout: float | None, now: float
    ) -> tuple[Lease | None, bool]:
        """Wait in the line of every deployment that may serve the request.

        ``None`` after the cooldown timeout, or with ``True`` where the deployments have changed.
        """
        waiter = Waiter(self._gives_up_waiting, self._ignores_health, cooldown_timeout, self.patience_s)
        for deployment in self._preferred(avoid):
            if waiter.waiting:  # the deployment before may have served it at once
                deployment.add_waiter(waiter, now)
        try:
            return await waiter.future, waiter.moved
        except asyncio.CancelledError:
            # Cancelled in the turn of the loop in which it was given a lease: nobody else would release that.
            if not waiter.future.cancelled() and (lease := waiter.future.result()) is not None:
                lease.cancel()
            raise
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()

    def _shuffle(self, candidates: list[Deployment], now: float) -> Deployment:
        if len(candidates) == 1:
            return candidates[0]
        point = self._rng.random() * sum([d.weight for d in candidates])
        for deployment in candidates:
            point -= deployment.weight
            if point < 0:
                return deployment
        return candidates[-1]

    def _least_busy(self, candidates: list[Deployment], now: float) -> Deployment:
        share = self._share
        return self._lowest(candidates, [(d.in_flight + 1) / share[d.label] for d in candidates])

    def _fastest(self, candidates: list[Deployment], now: float) -> Deployment:
        known = [d.known_latency(now) for d in candidates]
        # A deployment without a measurement gets one request, and no second until that has come back.
        unmeasured = [d for d, latency in zip(candidates, known, strict=True) if latency is None and not d.in_flight]
        if unmeasured:
            return self._least_busy(unmeasured, now)
        measured = [latency for latency in known if latency is not None]
        guess = sum(measured) / len(measured) if measured else 1.0
        scores = [
            (guess if latency is None else latency) * (d.in_flight + 1) / d.weight
            for d, latency in zip(candidates, known, strict=True)
        ]
        return self._lowest(candidates, scores)

    def _lowest(self, candidates: list[Deployment], scores: list[float]) -> Deployment:
        """The candidate with the lowest score; equals take turns."""
        least = min(scores)
        if scores.count(least) == 1:
            return candidates[scores.index(least)]
        equals = [d for d, score in zip(candidates, scores, strict=True) if score == least]
        self._turn += 1
        return equals[self._turn % len(equals)]
