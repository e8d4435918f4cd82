"""The limiter of one process: four quotas, the server's headers and pauses, first come, first served."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from infermesh.limits.base import ENDLESS, DayUsage, Header, HeldError, Patience
from infermesh.limits.bucket import PIECE_S, Bucket
from infermesh.limits.day import DayCount
from infermesh.limits.estimate import TokenEstimate
from infermesh.limits.server_gates import Gates, Size
from infermesh.types import Limits

__all__ = ["LocalGrant", "LocalRateLimiter"]

# Midnight is a time of the wall clock, timers run on the event loop's clock. Long waits go in steps, so that a wall
# clock that is set in between is noticed.
LONGEST_STEP_S = 60.0
SHORTEST_STEP_S = 0.001
SHORTEST_HOLD_S = 0.5  # two holds that end within less are one

_ONE_REQUEST = Size(1, 0, 0, 0)
_SMALLEST = Size(1, 1, 1, 1)


class LocalGrant:
    """What one request has reserved: a :class:`~infermesh.limits.Grant`."""

    __slots__ = ("_limiter", "day", "estimated", "open_ended", "patience", "size", "turn")

    # Only of a request that waits in the line: done when it may go out, or with the reason why it leaves the line.
    turn: asyncio.Future[HeldError | None]
    patience: Patience

    def __init__(self, limiter: LocalRateLimiter, size: Size, estimated: int, open_ended: bool) -> None:
        self._limiter: LocalRateLimiter | None = limiter
        self.size = size
        self.estimated = estimated
        self.open_ended = open_ended
        self.day = 0

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._settle(self, prompt_tokens, completion_tokens)

    def refund(self) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._refund(self)


class LocalRateLimiter:
    """Keeps one deployment or account under its :class:`~infermesh.types.Limits`, inside one event loop.

    Requests wait in one line and pass in the order in which they came, whatever their size: small ones would otherwise
    starve a large one.

    The whole line has one timer, set for when its head may fit. Nobody behind the head can pass before it, so no other
    time matters. When the timer rings, all that fit by then pass. At 500 requests/s a timer or a task for each waiting
    request would wake the process 500 times a second; this one wakes it twenty times (``PIECE_S``).

    A request larger than a bucket's capacity is gathered in pieces. One larger than a whole minute's or day's quota
    waits for that quota and is not refused: the server decides about the rest, and the next requests pay for overuse.

    Parameters
    ----------
    limits
        The quotas.
    wall
        Seconds since the epoch: tells which UTC day it is.
    bucket, day
        What keep the quotas a minute and a day: of their own, or with credit that somebody grants.
    share
        The part of what the server's headers leave that is this process's.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        wall: Callable[[], float] = time.time,
        bucket: Callable[[float, float | None], Bucket] = Bucket,
        day: Callable[[float | None, float | None, Callable[[], float]], DayCount] = DayCount,
        share: float = 1.0,
    ) -> None:
        self.limits = limits
        self._bucket = bucket
        self._requests = None if limits.rpm is None else bucket(limits.rpm, limits.max_request_burst)
        self._tokens = None if limits.tpm is None else bucket(limits.tpm, limits.max_token_burst)
        daily = limits.rpd is not None or limits.tpd is not None
        self._day = day(limits.rpd, limits.tpd, wall) if daily else None
        self._gates = Gates(limits, self._day, wall, share)
        self._estimate = TokenEstimate(limits.default_output_tokens)
        self.counts_tokens = limits.counts_tokens
        self._line: deque[LocalGrant] = deque()
        self._paused_until = 0.0
        self._looked_until = 0.0  # the end of the last hold for which the line was looked through
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0  # when the timer rings; stale while there is no timer

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> LocalGrant | None:
        if self._line:
            return None
        grant = self._sized(prompt_tokens, output_tokens)
        return grant if self._admit(grant) else None

    async def acquire(
        self, prompt_tokens: int = 0, output_tokens: int | None = None, patience: Patience = ENDLESS
    ) -> LocalGrant:
        """Wait until a request of this size fits every quota. If the wait is cancelled, nothing stays reserved."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        grant, line = self._sized(prompt_tokens, output_tokens), self._line
        if line or not self._admit(grant):
            grant.patience = patience
            if held := self._held_too_long(grant):
                raise held
            grant.turn = turn = loop.create_future()
            line.append(grant)
            if self._timer is None:
                self._set_timer()
            try:
                held = await turn
            except asyncio.CancelledError:
                self._leave(grant)
                raise
            if held is not None:
                raise held
        return grant

    def _sized(self, prompt_tokens: int, output_tokens: int | None) -> LocalGrant:
        open_ended = output_tokens is None
        size = _ONE_REQUEST
        if self.counts_tokens or self._gates.active:
            prompt = prompt_tokens * self._estimate.ratio
            output = self._estimate.output if output_tokens is None else output_tokens
            size = Size(1, prompt + output, prompt, output)
        return LocalGrant(self, size, prompt_tokens, open_ended)

    def _admit(self, grant: LocalGrant) -> bool:
        """Reserve the request in every quota, if it fits all of them now."""
        requests, tokens, need = self._requests, self._tokens, 0.0
        fits = requests is None or requests.covers(1)
        if tokens is not None:
            need = min(grant.size.tokens, tokens.quota)
            fits = tokens.covers(need) and fits  # always asked: tokens are gathered while requests are still short
        if not fits:
            return False
        if (self._paused_until or self._gates.active or self._day is not None) and self._held_for(grant.size) > 0:
            return False
        if requests is not None:
            requests.credit -= 1
        if tokens is not None:
            tokens.credit -= need
        if self._day is not None:
            grant.day = self._day.take(grant.size.tokens)
        if self._gates.active:
            self._gates.take(grant.size)
        return True

    def _held_for(self, size: Size) -> float:
        """Seconds until neither a pause nor the server nor a day's quota holds the request back."""
        now = asyncio.get_running_loop().time()
        if self._paused_until and self._paused_until <= now:
            self._paused_until = 0.0
        until = self._paused_until
        if self._gates.active:
            until = max(until, self._gates.held_until(size, now))
        today = 0.0 if self._day is None else self._day.held_for(size.tokens)
        return max(until - now, today)

    def _held_too_long(self, grant: LocalGrant) -> HeldError | None:
        """Why a request leaves the line: something other than the steady rate holds it, or the head before it."""
        if grant.patience == ENDLESS or not (self._paused_until or self._gates.active or self._day is not None):
            return None
        now, patience = _now(), grant.patience
        asked_s = self._gates.held_until(grant.size, now, asked=True) - now
        if asked_s > patience.asked_s:
            return HeldError(asked_s, asked=True)
        held_s = self._held_for(grant.size)
        if self._line and self._line[0] is not grant:
            held_s = max(held_s, self._held_for(self._line[0].size))
        return HeldError(held_s, asked=False) if held_s > patience.held_s else None

    def _send_back(self) -> bool:
        """Send away who is held for too long; returns whether the head of the line is among them.

        The line may be long. It is looked through once for each hold, and not for the steady rate: who comes later is
        looked at when it comes.
        """
        head, kept = self._line[0], list[LocalGrant]()
        held_s = self._held_for(head.size)
        until = _now() + held_s
        if held_s <= 0 or until < self._looked_until + SHORTEST_HOLD_S:
            return False
        self._looked_until = until
        for grant in self._line:
            if grant.turn.done() or (held := self._held_too_long(grant)) is None:
                kept.append(grant)
            else:
                grant.turn.set_result(held)
        if len(kept) < len(self._line):
            self._line = deque(kept)
        return not kept or kept[0] is not head

    def _serve(self) -> None:
        """Let requests pass from the front of the line while they fit, then set the timer for the next one."""
        while self._line:
            grant = self._line[0]
            if not grant.turn.done():  # done: it was cancelled in this turn of the loop, and `_leave` will follow
                if not self._admit(grant):
                    if self._send_back():
                        continue
                    break
                grant.turn.set_result(None)
                self._looked_until = 0.0
            self._line.popleft()
        self._set_timer()

    def _tick(self) -> None:
        self._timer = None
        self._serve()

    def _set_timer(self) -> None:
        """Set the timer for when the head of the line may fit.

        A timer that rings sooner is left: it serves the line and sets the next one. Moving it at each request would
        cost more than ringing once too often.
        """
        timer, at = self._timer, self._head_fits_at() if self._line else math.inf
        if timer is not None:
            if self._wake_at <= at < math.inf:
                return
            timer.cancel()
            self._timer = None
        if self._line:
            self._wake_at = at
            self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _head_fits_at(self) -> float:
        """The event loop's time at which to look at the head of the line again.

        That is when a bucket that lacks something can draw its next piece. Where both buckets have enough, a pause, the
        server or a day's quota holds the head.
        """
        grant, now, at = self._line[0], _now(), math.inf
        if self._requests is not None and self._requests.credit < 1:
            at = self._requests.ready_at
        if self._tokens is not None and self._tokens.credit < min(grant.size.tokens, self._tokens.quota):
            at = min(at, self._tokens.ready_at)
        if at == math.inf:
            at = now + min(self._held_for(grant.size), LONGEST_STEP_S)
        # uvloop's timers have whole milliseconds. One that rings just too soon would have to ring twice.
        return math.ceil(1000 * max(at, now + SHORTEST_STEP_S)) / 1000

    def _leave(self, grant: LocalGrant) -> None:
        """Remove a cancelled request from the line. If it was admitted in the same turn of the loop, refund it."""
        line = self._line
        if not grant.turn.cancelled():
            if grant.turn.result() is None:
                self._refund(grant)
        elif line and line[0] is not grant:  # the head stays, and so does its timer
            with suppress(ValueError):  # `_serve` may have removed it
                line.remove(grant)
            return
        self._serve()

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve another event loop. Requests that waited on the old one have ended with it."""
        self._loop, self._timer = loop, None
        self._line.clear()

    def _settle(self, grant: LocalGrant, prompt_tokens: int, completion_tokens: int) -> None:
        if not self.counts_tokens:
            return
        used = prompt_tokens + completion_tokens
        if used:
            self._estimate.learn(grant.estimated, prompt_tokens, completion_tokens, open_ended=grant.open_ended)
        self._give(grant, 0, used)

    def _refund(self, grant: LocalGrant) -> None:
        if self._requests is not None:
            self._requests.give(1)
        if self._gates.active:
            self._gates.take(grant.size, -1)
        self._give(grant, 1, 0)

    def _give(self, grant: LocalGrant, requests: int, used_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.give(min(grant.size.tokens, self._tokens.quota) - used_tokens)
        if self._day is not None:
            self._day.give(grant.day, requests, grant.size.tokens - used_tokens)
        self._returned()

    def _returned(self) -> None:
        """Serve the line now if its timer is far: capacity has come back that the timer does not know of."""
        if self._line and self._wake_at - _now() > PIECE_S:
            self._serve()

    def change(self, limits: Limits) -> None:
        """Go by other limits from now on; who waits, waits no longer than they ask. Needs a running event loop.

        A quota a day that there was not has no count of today, so it cannot be added.

        Raises
        ------
        ValueError
            Such a quota.
        """
        if (self.limits.rpd is None and limits.rpd is not None) or (self.limits.tpd is None and limits.tpd is not None):
            raise ValueError("a quota a day that was not there has no count of today")
        self.limits = limits
        self._requests = self._changed(self._requests, limits.rpm, limits.max_request_burst)
        self._tokens = self._changed(self._tokens, limits.tpm, limits.max_token_burst)
        if self._day is not None:
            self._day.change(limits.rpd, limits.tpd)
        self._gates.change(limits)
        self.counts_tokens = limits.counts_tokens
        self.serve()

    def _changed(self, bucket: Bucket | None, quota: float | None, burst: float | None) -> Bucket | None:
        if quota is None:
            return None
        if bucket is None:
            return self._bucket(quota, burst)
        if bucket.quota != quota:
            bucket.change(quota, burst)
        return bucket

    def serve(self) -> None:
        """Let requests pass that fit now, where somebody has granted credit."""
        if self._line:
            self._serve()

    def needs(self, most: int) -> tuple[int, float, float]:
        """What waits in the line: how many requests, what the first ``most`` of them need in tokens, and its head."""
        sizes = [grant.size.tokens for grant in islice(self._line, most)]
        return len(self._line), sum(sizes), sizes[0] if sizes else 0.0

    @property
    def parts(self) -> tuple[Bucket | None, Bucket | None, DayCount | None]:
        """What keep rpm, tpm, and the quotas a day; ``None`` where there is no such quota."""
        return self._requests, self._tokens, self._day

    def observe(self, header: Header) -> None:
        if self._gates.observe(header, _now):
            self._returned()

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, _now() + seconds)

    @property
    def knows_quota(self) -> bool:
        """Whether the server has told what is left of a quota, so that requests can keep to it."""
        return self._gates.active

    @property
    def paused_for(self) -> float:
        if not (self._paused_until or self._gates.active or self._day is not None):
            return 0.0
        return max(self._held_for(_SMALLEST), 0.0)

    @property
    def ready_at(self) -> float:
        seconds = self.paused_for
        return _now() + seconds if seconds else 0.0

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def binding(self) -> str | None:
        if not self._line or self.paused_for:
            return None
        if self._requests is not None and self._requests.credit < 1:
            return "rpm"
        return None if self._tokens is None else "tpm"

    @property
    def used_today(self) -> DayUsage | None:
        """This UTC day's count, ``None`` without a quota a day. Set it to restore a count after a restart.

        A count of another day is ignored.
        """
        return None if self._day is None else self._day.used

    @used_today.setter
    def used_today(self, usage: DayUsage) -> None:
        if self._day is not None:
            self._day.used = usage

    @property
    def used_up(self) -> str | None:
        """Which quota, ``rpd`` or ``tpd``, has no room today for the head of the line; else ``None``."""
        if self._day is None:
            return None
        return self._day.lacks(self._line[0].size.tokens if self._line else 1.0)


def _now() -> float:
    return asyncio.get_running_loop().time()
