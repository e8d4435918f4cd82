"""The limiter of an account that other runs and clients of this machine use too.

It spends credit that the account's keeper deals (:mod:`infermesh.limits.keeper`), as a worker spends its hub's. A
thread does the asking; what waits here is counted, and credit is spent, on the limiter's event loop alone.

Where the keeper ends, another process takes over within a tenth of a second. Where it is frozen, nobody can: from two
seconds on each sends by its part of the quota, one of as many as there were, until the keeper answers again.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Callable
from pathlib import Path

from infermesh.hints import one_line
from infermesh.limits.base import ENDLESS, Patience
from infermesh.limits.dealing import Ask, Credit, Dealer, ask_of, grant
from infermesh.limits.granted import GrantedBucket, GrantedDay
from infermesh.limits.keeper import Asked, Hello, KeeperLink, quota_path, reach
from infermesh.limits.local import LocalGrant, LocalRateLimiter
from infermesh.runtime.guarded import start_thread
from infermesh.types import Limits

__all__ = ["SharedRateLimiter"]

_TURN_S = 0.05
_SILENT_S = 2.0
_LOOK_S, _GLANCE_S = 0.5, 0.1  # meanwhile it is looked for so often, and so long
_IDLE_S = 5.0  # after so long without a request the keeper is left, and others' parts are larger
logger = logging.getLogger("infermesh")


class SharedRateLimiter(LocalRateLimiter):
    """Keeps an account under its limits together with all other processes of this user that share it.

    Parameters
    ----------
    limits
        The account's. Where those of two differ, the lower hold.
    name
        The account's name in the declaration.
    identity
        What tells it from another account of that name: a hash of its keys, or its servers.

    Raises
    ------
    ConfigError
        The folder for the socket cannot be made, or is not this user's alone.
    """

    def __init__(self, limits: Limits, name: str, identity: str) -> None:
        super().__init__(limits, bucket=GrantedBucket, day=GrantedDay)
        self.before: Callable[[], int] = lambda: 0
        self.notes: list[str] = []
        self._name = name
        self._path: Path = quota_path(name, identity)
        self._demand: Callable[[], Ask] | None = None
        self._asks_on: asyncio.AbstractEventLoop | None = None
        self._busy_at = 0.0
        self._fair: Dealer | None = None
        self._members = 0
        self._told: set[str] = set()
        self._why = ""

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> LocalGrant | None:
        self.begin()
        return super().try_acquire(prompt_tokens, output_tokens)

    async def acquire(
        self, prompt_tokens: int = 0, output_tokens: int | None = None, patience: Patience = ENDLESS
    ) -> LocalGrant:
        self.begin()
        return await super().acquire(prompt_tokens, output_tokens, patience)

    def asks_for(self, demand: Callable[[], Ask]) -> None:
        """Ask for what others want of it, to whom it is dealt on: the workers of a run."""
        self._demand = demand

    def begin(self) -> None:
        """Ask for credit from now on, on the running event loop, until nobody wants any."""
        loop = asyncio.get_running_loop()
        self._busy_at = loop.time()
        if self._asks_on is loop:
            return
        self._asks_on, self._fair = loop, None
        start_thread("infermesh-quota", lambda: self._ask_on(loop))

    def _ask_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: ask, and hand over what is dealt, until the limiter is idle or its loop is gone."""
        link: KeeperLink | None = None
        answered, look_at = time.monotonic(), 0.0
        try:
            while True:
                began = time.monotonic()
                alone = began - answered > _SILENT_S
                if (ask := self._turn(loop, alone)) is None:
                    return
                try:
                    if link is None and not (alone and began < look_at):
                        look_at = began + _LOOK_S
                        patience_s = _GLANCE_S if alone else _SILENT_S / 2
                        hello = Hello(self.limits, self.used_today, deals_on=self._demand is not None)
                        link = reach(self._path, self._name, hello, patience_s)
                        self._tell(link.told)
                    if link is not None:
                        answer = link.ask(ask)
                        answered = time.monotonic()
                        loop.call_soon_threadsafe(self._take, loop, answer)
                except (OSError, ValueError, KeyError) as error:
                    self._why = one_line(error)
                    logger.info("limits.%s: the keeper of the shared quota: %s", self._name, self._why)
                    if link is not None:
                        link.close()
                    link = None
                time.sleep(max(_TURN_S - (time.monotonic() - began), 0.01))
        except RuntimeError:  # the loop is closed
            return
        finally:
            if link is not None:
                link.close()

    def _take(self, loop: asyncio.AbstractEventLoop, answer: Asked) -> None:
        if self._asks_on is loop:
            self._members, self._fair = answer.members, None
            grant(self, answer.credit)
            if answer.used is not None:
                self.used_today = answer.used

    def _turn(self, loop: asyncio.AbstractEventLoop, alone: bool) -> Ask | None:
        """Count what is wanted, on the loop; ``None``: nobody wants any. Raises ``RuntimeError``: it is closed."""
        asks: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        loop.call_soon_threadsafe(lambda: asks.put(self._step(loop, alone)))
        while True:
            try:
                return asks.get(timeout=_SILENT_S)
            except queue.Empty:  # a function may hold the loop; one that is closed calls nothing any more
                if loop.is_closed() or self._asks_on is not loop:
                    return None

    def _step(self, loop: asyncio.AbstractEventLoop, alone: bool) -> Ask | None:
        if self._asks_on is not loop:
            return None
        now = loop.time()
        ask = self._wanted(now)
        if alone:
            self._take_part(ask)
        if self._line or ask.requests or ask.tokens or self._demand is not None:
            self._busy_at = now
        if now - self._busy_at > _IDLE_S:
            self._asks_on = None
            return None
        return ask

    def _wanted(self, now: float) -> Ask:
        if self._demand is None:
            return ask_of(self, now, self.before())
        wanted = self._demand()
        requests, tokens, _ = self.parts
        for bucket in (requests, tokens):
            if isinstance(bucket, GrantedBucket):
                bucket.lapse(now, 0.0)
        wanted.requests = max(wanted.requests - (requests.credit if requests is not None else 0.0), 0.0)
        wanted.tokens = max(wanted.tokens - (tokens.credit if tokens is not None else 0.0), 0.0)
        return wanted

    def _take_part(self, ask: Ask) -> None:
        """Deal to oneself a part of the quotas a minute: the keeper does not answer, and still has the lock."""
        if not self._members:
            self._tell(
                f"limits.{self._name}: who keeps the shared quota does not answer ({self._why}), and is waited for"
            )
            return
        if self._fair is None:
            rpm, tpm = (
                quota if quota is None else quota / self._members for quota in (self.limits.rpm, self.limits.tpm)
            )
            self._fair = Dealer(Limits(rpm=rpm, tpm=tpm), None)
            self._tell(
                f"limits.{self._name}: the process that keeps the shared quota does not answer; until it does, "
                f"{1 / self._members:.0%} of it are used here"
            )
        self._fair.take(0, ask)
        credit = self._fair.credit(0)
        grant(self, Credit(credit.requests, credit.tokens))

    def _tell(self, line: str) -> None:
        if line and line not in self._told:
            self._told.add(line)
            self.notes.append(line)
            logger.warning("%s", line)
