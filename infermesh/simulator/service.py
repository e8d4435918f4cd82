"""How long the service takes, how much it does at once, and when it fails."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import accumulate
from random import Random

from infermesh.simulator.settings import Endpoint, Faults, SimulatorSettings

__all__ = ["FaultPlan", "Service"]


class FaultPlan:
    """Which fault each request meets. Each endpoint has a random stream, from which each request draws once."""

    def __init__(self, faults: Faults, seed: int) -> None:
        chances = [(name, chance) for name, chance in faults.chances() if chance]
        self._names: list[str | None] = [*(name for name, _ in chances), None]
        self._thresholds = list(accumulate(chance for _, chance in chances))
        if self._thresholds and self._thresholds[-1] > 1 - 1e-9:
            # Ten times 0.1 is a little less than 1, and faults that add up to 1 must meet every request.
            self._thresholds[-1] = 1.0
        self._endpoints = faults.endpoints
        self._seed = seed
        self._streams: dict[Endpoint, Random] = {}

    def draw(self, endpoint: Endpoint) -> str | None:
        """Return the name of the next request's fault. None: it has none."""
        if not self._thresholds or (self._endpoints is not None and endpoint not in self._endpoints):
            return None
        if endpoint not in self._streams:
            self._streams[endpoint] = Random(f"{self._seed}:faults:{endpoint}")
        return self._names[bisect_right(self._thresholds, self._streams[endpoint].random())]


class Service:
    """Latency, decode speed and capacity.

    Parameters
    ----------
    settings
        `latency_s` and its spread and factors, `tokens_per_second`, `capacity`, `seed`.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self._factors = {
            "transcriptions": settings.audio_latency_factor,
            "embeddings": settings.embedding_latency_factor,
        }
        self._latency_s = settings.latency_s
        self._spread = settings.latency_spread
        self._speed = settings.tokens_per_second
        self._random = Random(f"{settings.seed}:latency")
        # asyncio's semaphore serves its waiters first in, first out.
        self._places = asyncio.Semaphore(settings.capacity) if settings.capacity is not None else None

    def place(self) -> AbstractAsyncContextManager[None]:
        """Wait for one of the places, and hold it inside the context."""
        return self._places if self._places is not None else nullcontext()

    async def think(self, endpoint: Endpoint) -> None:
        """Wait as long as the first token takes."""
        latency = self._latency_s * self._factors.get(endpoint, 1.0)
        if latency:
            if self._spread:
                latency *= self._random.lognormvariate(0.0, self._spread)
            await asyncio.sleep(latency)

    async def decode(self, tokens: int) -> None:
        """Wait as long as these tokens take."""
        if self._speed is not None and tokens:
            await asyncio.sleep(tokens / self._speed)
