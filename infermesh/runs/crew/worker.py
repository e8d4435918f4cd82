"""A worker: runs today's stages, Runner and dispatch over rows that the hub leases, and hands settled rows back.

It is started by a link: as ``python -m infermesh.runs.crew.worker FD``, which talks over that socket alone, or in a
process of the link's own (:func:`run`). It ends by itself when the hub is gone: at the end of the socket, and where it
is not called for as long as the hub would wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from infermesh.hints import visible
from infermesh.limits import CompositeLimiter, LocalRateLimiter
from infermesh.limits.dealing import Ask, ask_of, grant
from infermesh.limits.granted import GrantedBucket, GrantedDay
from infermesh.runs.assemble import assembled, requests_at_once
from infermesh.runs.crew.channel import Channel, SocketChannel
from infermesh.runs.crew.leased import LeasedRows, RemoteKnown, SendingWriter
from infermesh.runs.crew.messages import PROTOCOL, Down, Share, Start, Up, WaveStart, as_row
from infermesh.runs.crew.overheard import Grapevine
from infermesh.runs.hands import Adjustment, adjust
from infermesh.runs.runner import Runner
from infermesh.runs.stats import RunStats, StageStats
from infermesh.runtime.guarded import start_thread
from infermesh.runtime.loop import run_loop
from infermesh.runtime.openfiles import allow_requests
from infermesh.runtime.workers import Window

_LEAST_S = 0.01  # between a call and its answer
logger = logging.getLogger("infermesh")


class Worker:
    """Takes calls and makes answers; between them, the wave's Runner runs. Within one event loop.

    Parameters
    ----------
    start
        The hub's first message. The declaration is assembled from it, as a run of one process does.

    Raises
    ------
    ConfigError
        The declaration does not fit this machine: a file or a function that it names is not there.
    """

    def __init__(self, start: Start) -> None:
        self._wake = asyncio.Event()
        self._stack = ExitStack()
        self._log = _Log()
        logger.addHandler(self._log)
        self._writer = SendingWriter(self._wake.set)
        self._known: RemoteKnown | None = None
        self._leased: LeasedRows | None = None
        self._runner: Runner | None = None
        self._wave: asyncio.Task[None] | None = None
        self._half_done: dict[int, dict[str, str]] = {}
        self._in_hand = self._low = 0
        self._moved: set[int] = set()  # those of them that the hub does not know of yet
        self._finished: list[int] = []
        self._between = 0  # of them, before the call
        self._notes: list[str] = []
        self._serial = 0
        self._stopping = self._paused = False
        fleet, self._pipeline = self._stack.enter_context(
            assembled(
                start.declaration,
                start.environ,
                simulator_url=start.simulator_url,
                limiter=partial(LocalRateLimiter, bucket=GrantedBucket, day=GrantedDay, share=1 / start.workers),
            )
        )
        allow_requests(requests_at_once(start.declaration.experiment))  # windows move: all of them may come here
        self._fleet = fleet
        self._filters = self._pipeline.filters(start.origins)
        self._limiters = [(key, limiter, labels) for key, limiter, labels in fleet.limiters()]
        self._composites = {
            label: each.limiter
            for label, each in fleet.deployments.items()
            if isinstance(each.limiter, CompositeLimiter)
        }
        self._grapevine = Grapevine(fleet.deployments)
        self._windows = {name: Window(0) for name in self._pipeline.stages}
        for deployment in fleet.deployments.values():
            if deployment.max_parallel_requests is not None:
                deployment.resize(0)
        self._stats = RunStats({name: StageStats() for name in self._pipeline.stages})

    async def exchange(self, down: Down) -> Up:
        """Take a call, and answer when there is much to say, or its time has passed."""
        self._take(down)
        until = asyncio.get_running_loop().time() + down.wait_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await asyncio.sleep(min(_LEAST_S, down.wait_s))  # many small answers would cost more than they bring
                await self._wake.wait()
        self._wake.clear()
        return self._answer()

    def _take(self, down: Down) -> None:
        self._between = len(self._finished)
        if down.made:
            self._adjust(down.made)
        if down.paused != self._paused:
            self._paused = down.paused
            for stage in self._pipeline.stages.values():
                stage.pause(down.paused)
        for (kind, name), size in down.shares.items():
            if kind == "stage":
                self._windows[name].resize(size)
            elif self._fleet.deployments[name].max_parallel_requests is not None:
                self._fleet.deployments[name].resize(size)
        self._grant(down)
        self._grapevine.learn(down.news)
        if self._known is not None:
            self._known.answer(down.answers)
        self._writer.acknowledged(down.ack)
        if self._runner is not None:
            self._runner.committed()
        if down.wave is not None:
            self._begin(down.wave)
        self._in_hand += len(down.rows)
        self._low = down.low
        if self._in_hand < self._low:
            self._wake.set()
        if self._leased is not None:
            if down.rows:
                self._leased.put([as_row(sent) for sent in down.rows])
            if down.close:
                self._leased.close()
        if down.stop and not self._stopping:
            self._stop()
        if down.drop:
            for stage in self._pipeline.stages.values():
                stage.stop(drop=True)

    def _adjust(self, made: Sequence[Adjustment]) -> None:
        adjust(self._fleet, self._pipeline.stages, made, shared=True)
        self._limiters = [*self._fleet.limiters()]
        if self._runner is not None:
            self._runner.resized()

    def _grant(self, down: Down) -> None:
        for key, limiter, _ in self._limiters:
            if (credit := down.credit.get(key)) is not None:
                grant(limiter, credit)

    def _begin(self, wave: WaveStart) -> None:
        graph = self._pipeline.waves[wave.number].graph
        self._leased = leased = LeasedRows(wave.row_bytes)
        loop = asyncio.get_running_loop()
        self._known = None
        if wave.known:
            self._known = RemoteKnown(wave.known, lambda: loop.call_soon_threadsafe(self._wake.set))
        self._in_hand = 0
        self._half_done.clear()
        self._moved.clear()
        self._runner = Runner(
            graph,
            self._writer,
            self._stats,
            filters={name: self._filters[name] for name in graph.stages if name in self._filters},
            stale=set(wave.stale),
            keep_errors=wave.keep_errors,
            known=self._known,
            scope=wave.scope,
            on_state=self._note_state if len(graph.stages) > 1 else None,
            on_row=self._note_row,
            windows=self._windows,
        )
        self._wave = asyncio.create_task(self._runner.run(leased), name="wave")
        self._wave.add_done_callback(lambda _: self._wake.set())
        if self._stopping:
            self._stop()

    def _note_state(self, row_id: int, stage: str, how: str) -> None:
        self._half_done.setdefault(row_id, {})[stage] = how
        self._moved.add(row_id)

    def _note_row(self, row_id: int) -> None:
        self._half_done.pop(row_id, None)
        self._moved.discard(row_id)
        self._finished.append(row_id)
        self._in_hand -= 1
        if self._in_hand < self._low:
            self._wake.set()

    def _stop(self) -> None:
        self._stopping = True
        if self._runner is not None:
            self._runner.stop()
        for stage in self._pipeline.stages.values():
            stage.stop()
        if self._leased is not None:
            self._leased.close()
        if self._known is not None:
            self._known.close()

    def _answer(self) -> Up:
        now = asyncio.get_running_loop().time()
        self._serial += 1
        up = Up(self._serial, rows=self._writer.take(self._serial))
        up.finished, up.between, self._finished = self._finished, self._between, []
        up.half_done, self._moved = {row_id: self._half_done[row_id] for row_id in self._moved}, set()
        up.stats = self._stats
        up.asks = {key: self._ask(limiter, labels, now) for key, limiter, labels in self._limiters}
        up.news = self._grapevine.news()
        up.shares = self._shares()
        up.questions = self._known.questions() if self._known is not None else ()
        up.log = self._log.taken()
        up.notes, self._notes = [*self._notes, *self._fleet.waits(now), *self._fleet.unpriced()], []
        up.waits = self._fleet.waiting_for()
        up.away = [label for label in self._fleet.deployments if self._fleet.told_of(label)]
        up.unreachable = self._fleet.unreachable(now)
        if self._wave is not None and self._wave.done():
            up.over = True
            if not self._wave.cancelled() and (error := self._wave.exception()) is not None:
                up.error = _travels(error)
            self._wave = self._runner = self._leased = self._known = None
        return up

    def _ask(self, limiter: LocalRateLimiter, labels: Any, now: float) -> Ask:
        before = sum(self._composites[label].waiting for label in labels if label in self._composites)
        return ask_of(limiter, now, before)

    def _shares(self) -> dict[tuple[str, str], Share]:
        runner = self._runner
        stages = () if self._wave is None or runner is None else runner.stage_names
        found = {
            ("stage", name): Share(window.used, runner.wanted(name) if runner is not None and name in stages else 0)
            for name, window in self._windows.items()
        }
        for label, deployment in self._fleet.deployments.items():
            if deployment.max_parallel_requests is not None:
                found["slots", label] = Share(deployment.in_flight, deployment.wanted)
        return found

    async def aclose(self) -> None:
        await self._fleet.aclose()
        self._stack.close()


class _Log(logging.Handler):
    """Keeps what is logged for the hub's ``run.log``."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: list[tuple[int, str]] = []
        self._lines = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.levelno, self._lines.format(record)))

    def taken(self) -> list[tuple[int, str]]:
        taken, self._kept = self._kept, []
        return taken


def _travels(error: BaseException) -> BaseException:
    """An error that can be pickled: itself, or its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(visible(f"{type(error).__name__}: {error}"))
    return error


async def serve(channel: Channel) -> None:
    """Greet, become what the first message says, and answer calls until the last.

    A thread reads: it notices the hub's end though a user's function holds the loop. The process ends then.
    """
    loop = asyncio.get_running_loop()
    try:
        await asyncio.to_thread(channel.receive, None)
        await channel.send(PROTOCOL)
        start: Start = await asyncio.to_thread(channel.receive, None)
    except (OSError, EOFError):
        return  # the hub is gone, or refuses this version
    sys.path[:] = start.path
    try:
        worker = Worker(start)
    except Exception as error:
        await channel.send(Up(0, PROTOCOL, error=_travels(error)))
        return
    calls: asyncio.Queue[Down] = asyncio.Queue()

    def listen() -> None:
        while True:
            try:
                down: Down = channel.receive(start.silence_s)
            except (OSError, EOFError):
                os._exit(0)
            loop.call_soon_threadsafe(calls.put_nowait, down)
            if down.end:
                return

    start_thread("infermesh-hub", listen, died=lambda _: os._exit(1))
    await channel.send(Up(0, PROTOCOL))
    while not (down := await calls.get()).end:
        await channel.send(await worker.exchange(down))
    with suppress(Exception):
        async with asyncio.timeout(2.0):
            await worker.aclose()
    await channel.send(None)


def run(channel: Channel) -> None:
    """Be a worker, in this thread, until the hub has said its last word."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    run_loop(serve(channel))


def main() -> None:
    """The process, as a link of this machine starts it."""
    run(SocketChannel(socket.socket(fileno=int(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # threads of users' functions may never end


if __name__ == "__main__":
    # Messages name their classes by this module's own name.
    from infermesh.runs.crew import worker

    _main: Callable[[], None] = worker.main
    _main()
