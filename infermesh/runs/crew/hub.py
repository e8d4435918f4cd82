"""The hub: leases rows to workers, takes settled rows for the database, deals what belongs to the whole run.

Each worker has a task, which calls it, again and again, with one call outstanding. All of it runs in the run's event
loop, so that the lease book, the quotas and the counts need no locks.

A row is finished once a worker says so, and what it said before is queued for the database: a worker that is lost loses
the requests that it had in flight, and what it had not said. Rows count as safe once they are committed; a worker keeps
count of those that are not, and takes no more rows while there are many.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from infermesh.errors import ConfigError
from infermesh.hints import counted
from infermesh.runs.crew.counts import add, forget_in_flight
from infermesh.runs.crew.leases import LeaseBook
from infermesh.runs.crew.links import Link, Links, LostError
from infermesh.runs.crew.messages import PROTOCOL, Down, News, Question, SentRow, Start, Up, WaveStart
from infermesh.runs.crew.quotas import Quotas, Shares
from infermesh.runs.gate import Known
from infermesh.runs.hands import Adjustment
from infermesh.runs.stats import RunStats
from infermesh.store import GroupWriter
from infermesh.store.reuse import KnownAnswer

__all__ = ["Hub", "Member"]

_WAIT_S = 0.05  # how long a worker gathers what it says; longer, where there are very many
_CALLS = 1000.0  # calls a second, over all workers
_START_S = 120.0  # to import the package and the user's modules
_END_S = 5.0  # for the last call
_AGAIN_S = 60.0  # the same line of several workers is told once in so long
_MAX_BACKLOG, _MAX_BACKLOG_BYTES = 20_000, 48_000_000  # what is not committed: above it no row is leased
_LONGEST_BACKOFF_S = 2.0
logger = logging.getLogger("infermesh")


@dataclass(slots=True)
class Member:
    """A worker, as the hub knows it.

    Attributes
    ----------
    acks
        (serial, rows put by then) of answers whose rows are not all committed.
    told
        The number of the wave that it runs; ``None``: none.
    between
        Rows that it finished of late while it was waiting to be called: more than that have to be in its hand then.
    """

    number: int
    link: Link
    stats: RunStats | None = None
    half_done: dict[int, Mapping[str, str]] = field(default_factory=dict)
    acks: deque[tuple[int, int]] = field(default_factory=deque)
    ack: int = 0
    told: int | None = None
    closed: bool = False
    between: float = 0.0
    news: list[News] = field(default_factory=list)
    answers: dict[int, Sequence[KnownAnswer | None]] = field(default_factory=dict)
    made: list[Adjustment] = field(default_factory=list)
    waits: Sequence[str] = ()


class Wave(Protocol):
    """The wave that workers run, as the hub sees it: see :class:`~infermesh.runs.crew.wave.CrewWave`."""

    book: LeaseBook
    number: int
    start: WaveStart
    closing: bool

    def lease(self, member: Member) -> tuple[list[SentRow], int]: ...

    async def recover(self, member: Member) -> None: ...

    def resized(self) -> None: ...


class Hub:
    """The workers of a session, and the wave that they run.

    Parameters
    ----------
    start
        The first message of a worker, by its number and how many there are.
    silence_s, max_lost
        As in :class:`~infermesh.config.schema.EngineConfig`.
    links
        What starts workers.
    known
        Where known answers are looked up.
    note, check, stop
        Tell the user a line; look at the guards; stop the run, for a reason.
    """

    def __init__(
        self,
        start: Callable[[int, int], Start],
        workers: int,
        *,
        silence_s: float,
        max_lost: int,
        links: Links,
        quotas: Quotas,
        shares: Shares,
        writer: GroupWriter,
        stats: RunStats,
        known: Known | None,
        note: Callable[[str], None],
        check: Callable[[], None],
        stop: Callable[[str], None],
    ) -> None:
        self._start, self.workers = start, workers
        self._silence_s, self._max_lost = silence_s, max_lost
        self._links = links
        self._quotas, self._shares = quotas, shares
        self.writer, self.stats, self._known = writer, stats, known
        self.note, self._check, self._stop_run = note, check, stop
        self.members: dict[int, Member] = {}
        self._numbers = 0
        self._coming: dict[int, asyncio.Task[Any] | None] = {}  # workers that are not ready yet
        self._dealing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.put = self.committed_rows = 0  # rows given to the writer, and those that it has committed
        self._lost = 0  # workers since the last row was finished
        self._told: dict[str, float] = {}
        self.away: set[str] = set()
        self._lasting: dict[str, tuple[float, News]] = {}  # label → when it was told, and the last pause or outage
        self.wave: Wave | None = None
        self.changed = asyncio.Event()
        self._made: dict[tuple[str, str], Adjustment] = {}
        self._paused = False
        self.stopping = self._dropping = self._ending = False
        self.failure: BaseException | None = None

    # The workers

    def begin(self) -> None:
        """Start the workers, if they have not been."""
        if self._dealing is None:
            self._dealing = asyncio.create_task(self._quotas.deal_on(), name="quotas")
            self._spawn(self._open())

    async def _open(self) -> None:
        self._coming[0] = asyncio.current_task()
        wanted, self.workers = await self._links.open(self.workers)
        del self._coming[0]
        for _ in range(wanted):
            self._spawn(self._live())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)
        self.changed.set()

    def fail(self, error: BaseException) -> None:
        """End the wave with an error."""
        self.failure = self.failure or error
        self.changed.set()

    async def _live(self, delay_s: float = 0.0) -> None:
        """Start a worker and call it until its end; where it is lost, another takes its place."""
        if delay_s:
            await asyncio.sleep(delay_s)
        if self._ending or self.stopping:
            return
        self._numbers += 1
        number = self._numbers
        link = await self._links.start(number)
        member = Member(number, link)
        try:
            self._coming[number] = asyncio.current_task()
            await self._greet(member)
            del self._coming[number]
            self._shares.join(number)
            member.news, member.made = self._standing(), [*self._made.values()]
            self.members[number] = member
            self.workers = max(self.workers, len(self.members))
            while not self._ending:
                self._take(member, await link.call(self._call_of(member), self._silence_s))
            await link.call(Down(0.0, end=True), _END_S)
        except LostError as error:
            if not self._ending:
                await self._lose(member, str(error))
        finally:
            self._forget(number)
            await link.end()

    def _forget(self, number: int) -> None:
        self._coming.pop(number, None)
        self.members.pop(number, None)
        self._quotas.leave(number)
        self._shares.leave(number)

    async def _greet(self, member: Member) -> None:
        """See that the worker is of this version, and make it one. Raises ``ConfigError``."""
        theirs = await member.link.call(PROTOCOL, _START_S)
        if theirs != PROTOCOL:
            raise ConfigError(
                f"{member.link.name} is of another infermesh ({theirs}; this is {PROTOCOL}). Workers have to run the "
                "same: stop the run, and resume it with one version everywhere"
            )
        first: Up = await member.link.call(self._start(member.number, self.workers), _START_S)
        if first.error is not None:
            raise first.error

    async def _lose(self, member: Member, why: str) -> None:
        """Take over from a worker that is gone: its rows go to others, and another worker takes its place."""
        number = member.number
        self._forget(number)
        await member.link.end()  # before anybody else has its rows: it may only be frozen
        forget_in_flight(self.stats, member.stats)
        self._lost += 1
        held = self.wave.book.held(number) if self.wave is not None else 0
        again = f"; its {counted(held, 'row')} in hand will be sent by others" if held else ""
        self.say(logging.WARNING, f"{member.link.name} {why}{again}", self._lost == 1 or bool(held))
        if not self.stopping and self._lost >= self._max_lost:
            lost = counted(self._lost, "worker")
            self._stop_run(
                f"engine.max_lost is {self._max_lost}: {lost} lost with no row finished in between; the last one {why}"
            )
        if self.wave is not None:
            await self.wave.recover(member)
        if not self.stopping and not self._ending:
            self._spawn(self._live(min(0.1 * 2 ** (self._lost - 1), _LONGEST_BACKOFF_S) if self._lost > 1 else 0.0))

    def say(self, level: int, text: str, aloud: bool = True) -> None:
        """Log a line, and tell it to the user."""
        logger.log(level, "%s", text)
        if aloud:
            self.note(text)

    # A call, and its answer

    def _call_of(self, member: Member) -> Down:
        number, wave = member.number, self.wave
        down = Down(max(_WAIT_S, self.workers / _CALLS), ack=member.ack, stop=self.stopping, drop=self._dropping)
        down.credit = self._quotas.credit(number)
        down.shares = self._shares.of(number)
        down.news, member.news = member.news, []
        down.paused, down.made, member.made = self._paused, member.made, []
        down.answers, member.answers = member.answers, {}
        if wave is None:
            return down
        if member.told is None and not wave.closing and not self.stopping:
            member.told, member.closed = wave.number, False
            down.wave = wave.start
        if member.told == wave.number and not member.closed:
            if wave.closing:
                down.close = member.closed = True
            elif not self.stopping and not self.writer.is_behind(_MAX_BACKLOG, _MAX_BACKLOG_BYTES):
                down.rows, down.low = wave.lease(member)
        return down

    def _take(self, member: Member, up: Up) -> None:
        number = member.number
        for table, row, replaces, size in up.rows:
            self.writer.put(table, row, replaces=replaces, size=size)
        self.put += len(up.rows)
        member.acks.append((up.serial, self.put))
        self._acknowledge(member)
        if up.stats is not None:
            add(self.stats, member.stats, up.stats)
            member.stats = up.stats
        member.half_done |= up.half_done
        member.between = max(up.between, member.between * 0.7)
        if up.finished:
            self._lost = 0
            for row_id in up.finished:
                member.half_done.pop(row_id, None)
            if self.wave is not None:
                self.wave.book.finish(number, up.finished)
        self._quotas.take(number, up.asks)
        self._shares.report(number, up.shares)
        self._pass_on(member, up)
        for question in up.questions:
            self._spawn(self._look_up(member, question))
        if up.over:
            member.told = None
        if up.error is not None:
            self.fail(up.error)
        if up.finished or up.over:
            self.changed.set()
        self._check()

    def _pass_on(self, member: Member, up: Up) -> None:
        """Tell the others, and the user, what a worker has heard."""
        if up.news:
            self._quotas.heard(up.news)
            self._remember(up.news)
            for other in self.members.values():
                if other is not member:
                    other.news += up.news
        for level, text in up.log:
            logger.log(level, "worker %d: %s", member.number, text)
        now = asyncio.get_running_loop().time()
        for line in up.notes:
            key = re.sub(r"[\d.,]+", "", line)
            if now - self._told.get(key, -math.inf) > _AGAIN_S:
                self._told[key] = now
                self.say(logging.INFO, line)
        self.away |= {*up.away}
        member.waits = up.waits
        if up.unreachable is not None and not self.stopping:
            self._stop_run(up.unreachable)

    def _remember(self, news: Sequence[News]) -> None:
        now = asyncio.get_running_loop().time()
        for each in news:
            if each.pause_s or each.cool_s:
                self._lasting[each.label] = now, each

    def _standing(self) -> list[News]:
        """The pauses and outages that last, for a worker that is new."""
        now = asyncio.get_running_loop().time()
        found = []
        for at, each in self._lasting.values():
            pause_s, cool_s = max(each.pause_s - now + at, 0.0), max(each.cool_s - now + at, 0.0)
            if pause_s or cool_s:
                found.append(replace(each, pause_s=pause_s, cool_s=cool_s, headers={}))
        return found

    async def _look_up(self, member: Member, question: Question) -> None:
        assert self._known is not None
        found = await asyncio.to_thread(self._known.look_up, question.stage, question.keys)
        member.answers[question.number] = found

    def committed(self, rows: int) -> None:
        """Note that the writer has committed so many rows."""
        self.committed_rows += rows
        for member in self.members.values():
            self._acknowledge(member)
        self.changed.set()

    def _acknowledge(self, member: Member) -> None:
        while member.acks and member.acks[0][1] <= self.committed_rows:
            member.ack = member.acks.popleft()[0]

    # What the session asks

    def waiting_for(self) -> list[str]:
        """What requests wait for at this moment, in words."""
        return [*dict.fromkeys(line for member in self.members.values() for line in member.waits)]

    def waits(self, now: float) -> list[str]:
        """What there is to say of quotas shared with other runs; what workers have to tell is told when they say it."""
        return self._quotas.notes()

    def used_up(self) -> list[str]:
        """A line for each quota a day that holds requests back."""
        return self._quotas.used_up()

    def told_of(self, label: str) -> bool:
        """Whether a deployment is told to be away or to refuse."""
        return label in self.away

    def pause(self, on: bool) -> None:
        """Let no worker send a request while ``on``."""
        self._paused = on

    def adjust(self, made: Sequence[Adjustment]) -> None:
        """Deal by other limits, windows and slots, which the fleet has by now, and tell all workers."""
        for each in made:
            kind, name, value = each
            self._made[kind, name] = each
            if kind == "window":
                self._shares.resize(("stage", name), value)
            elif kind == "slots":
                self._shares.resize(("slots", name), value)
        self._quotas.take_limits()
        for member in self.members.values():
            member.made += made

    def stop(self) -> None:
        """Lease no row, and let requests in flight finish."""
        self.stopping = True
        self.changed.set()

    def drop(self) -> None:
        """Wait for no request that is in flight."""
        self._dropping = True

    async def aclose(self) -> None:
        """End all workers: with a word, and where they do not hear it by force."""
        self._ending = True
        if self._dealing is not None:
            self._dealing.cancel()
        for task in self._coming.values():
            if task is not None:
                task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_END_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_END_S)
        await self._links.aclose()
