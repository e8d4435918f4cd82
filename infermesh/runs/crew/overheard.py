"""What a worker hears of servers, for the other workers: pauses, rate-limit headers, and who is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import cast

from infermesh.dispatch import Deployment
from infermesh.dispatch.health import Cause
from infermesh.limits import Grant, Patience, RateLimiter
from infermesh.limits.base import ENDLESS, Header
from infermesh.limits.headers import FAMILIES
from infermesh.runs.crew.messages import News

__all__ = ["Grapevine"]

_NAMES = [name for family in FAMILIES for name in (family.remaining, family.reset, family.limit)]
_REMAINING = [family.remaining for family in FAMILIES]
_FRESH_S = 0.05  # headers are passed on so often; those that say that nothing is left, at once
# Most self-hosted servers send no such headers. After so many answers without, one in so many is looked at.
_PATIENCE, _LOOK_EVERY = 32, 256


class _Overheard:
    """A deployment's limiter, and what was said to it since the last exchange."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.try_acquire = limiter.try_acquire
        self.headers: dict[str, str] = {}
        self.paused_until = 0.0
        self._seen_at = 0.0
        self._silent = self._skip = 0

    async def acquire(
        self, prompt_tokens: int = 0, output_tokens: int | None = None, patience: Patience = ENDLESS
    ) -> Grant:
        return await self.limiter.acquire(prompt_tokens, output_tokens, patience)

    def observe(self, header: Header) -> None:
        self.limiter.observe(header)
        if self._skip:
            self._skip -= 1
            return
        now = asyncio.get_running_loop().time()
        if now - self._seen_at < _FRESH_S and "0" not in [header(name) for name in _REMAINING]:
            return
        found = {name: value for name in _NAMES if (value := header(name)) is not None}
        if found:
            self.headers, self._seen_at, self._silent = found, now, 0
            return
        self._silent += 1
        if self._silent >= _PATIENCE:
            self._skip = _LOOK_EVERY

    def pause(self, seconds: float) -> None:
        self.limiter.pause(seconds)
        self.paused_until = max(self.paused_until, asyncio.get_running_loop().time() + seconds)

    @property
    def counts_tokens(self) -> bool:
        return self.limiter.counts_tokens

    @property
    def paused_for(self) -> float:
        return self.limiter.paused_for

    @property
    def ready_at(self) -> float:
        return self.limiter.ready_at

    @property
    def waiting(self) -> int:
        return self.limiter.waiting

    @property
    def binding(self) -> str | None:
        return self.limiter.binding


class Grapevine:
    """Listens at all deployments of a worker, which go through it from then on."""

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        self._deployments = deployments
        self._heard: dict[str, _Overheard] = {}
        self._told_pause = dict.fromkeys(deployments, 0.0)
        self._told_cool = dict.fromkeys(deployments, 0.0)
        for label, deployment in deployments.items():
            self._heard[label] = deployment.limiter = _Overheard(deployment.limiter)

    def news(self) -> list[News]:
        """What is new since the last call."""
        now = asyncio.get_running_loop().time()
        found = []
        for label, heard in self._heard.items():
            health = self._deployments[label].health
            news = News(label, headers=heard.headers)
            heard.headers = {}
            if heard.paused_until > max(now, self._told_pause[label]):
                self._told_pause[label] = heard.paused_until
                news.pause_s = heard.paused_until - now
            if health.cool_until > max(now, self._told_cool[label]):
                self._told_cool[label] = health.cool_until
                news.cool_s, news.cause, news.why = health.cool_until - now, health.cause, health.why
            if news.headers or news.pause_s or news.cool_s:
                found.append(news)
        return found

    def learn(self, news: Iterable[News]) -> None:
        """Take what others have heard."""
        now = asyncio.get_running_loop().time()
        for each in news:
            deployment, heard = self._deployments[each.label], self._heard[each.label]
            if each.headers:
                heard.limiter.observe(each.headers.get)
            if each.pause_s:
                self._told_pause[each.label] = max(self._told_pause[each.label], now + each.pause_s)
                heard.limiter.pause(each.pause_s)
                deployment.start_slowly()
            if each.cool_s:
                deployment.learn(now, each.cool_s, cast("Cause", each.cause), each.why)
                self._told_cool[each.label] = max(self._told_cool[each.label], deployment.health.cool_until)
