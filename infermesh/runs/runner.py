"""Runs one wave's stage graph: admits rows, streams them from stage to stage, settles each state, drains on stop.

A row is in memory from its admission until its last stage has settled it. The number of such rows is bounded by the
stages' windows, not by the input. A row enters a stage as soon as all the stages that it reads have settled the row.

The tasks of a run, and what a row passes through::

    feeder → [gate →] channel → workers of a stage → the same for the stages that read it
                 ↘ settled by where, or by a known answer

Everything runs on one event loop, so counters and rows need no locks. Threads do what blocks: reading chunks, DuckDB's
lookups of the gates, and the writer.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from infermesh.dispatch.batched import SENDER, Sender
from infermesh.errors import ContentFilterError, InputError, ParkedError, RequestError, StoppedError
from infermesh.results import RequestMetrics
from infermesh.runs.attempts import AttemptLog, RowWriter
from infermesh.runs.budget import Budget
from infermesh.runs.gate import Gate, Known
from infermesh.runs.row import (
    StageOutputs,
    answered_by_its_state,
    settled_row,
    take_stored,
    tells_its_request,
    to_be_redone,
)
from infermesh.runs.stats import RunStats
from infermesh.runtime.workers import Channel, Window, run_window
from infermesh.stages import BatchStage, Prepared, Stage, prepare
from infermesh.stages.base import Result
from infermesh.stages.graph import StageGraph
from infermesh.store import Row
from infermesh.store.filter import RowFilter
from infermesh.store.pending import CHUNK
from infermesh.store.reuse import KnownAnswer

logger = logging.getLogger("infermesh")


class Rows(Protocol):
    """Where the rows come from: chunk after chunk, each read in a thread. As in ``PendingRows``."""

    @property
    def row_bytes(self) -> int: ...

    @property
    def chunks(self) -> Iterable[int]: ...

    def read(self, chunk: int) -> list[Row]: ...


class Desk(Protocol):
    """Where requests are put into batches. As in ``BatchDesk``."""

    on_change: Callable[[], None]

    @property
    def is_busy(self) -> bool: ...

    def returned(self) -> Sequence[int] | None: ...

    def flush(self) -> None: ...


# What is not committed: above it no row is admitted, so that a slow disk does not fill the memory.
_MAX_BACKLOG, _MAX_BACKLOG_BYTES = 20_000, 48_000_000
_MAX_ACTIVE_BYTES = 64_000_000  # of the admitted rows, beyond those that the windows need
_BYTES = {str: 1, bytes: 1, list: 32}  # of a character, a byte, a float in a list
_BATCH_LINGER_S = 0.25  # wait for a micro-batch to fill: half-empty ones cost requests. The last one does not wait
_STUCK_S = 1.0  # while nothing happens for so long, what waits for the budget fills no batch
_GATE_LINGER_S = 0.002  # the same for a gate's batch


class Runner:
    """Runs a graph of stages over the pending rows of an origin. Used for one wave, once.

    Parameters
    ----------
    graph
        The stages and which reads which.
    writer
        Gets each settled state and each attempt, in the order in which they happen.
    stats
        Counts to update.
    filters
        Stage → its ``where``, compiled.
    stale
        Stages whose stored states do not count as settled: their declaration, or a stage that they read, has changed.
        Their rows are rendered again, and sent only if the request differs.
    keep_errors
        Leave rows that failed in an earlier session as they are.
    known
        Answers of retired rows and of earlier runs; ``None`` to look up none.
    scope
        Of a row that has states, settle these stages alone: what is left elsewhere stays as it is. ``None`` for all.
    on_settled
        Called after the rows of each request have settled.
    on_error
        Called after a row has settled with an error.
    budget
        What requests have to fit into before they are sent; ``None``: there is none. A request that does not calls
        ``on_settled``.
    on_state
        Called with a row_id, a stage and how the stage has settled the row: its status, ``kept`` or ``former``.
    on_row
        Called with a row_id once no stage is left to settle the row.
    windows
        Stage → its window, which may change: the stage's own, or a worker's share of it.
    desk
        Where requests are put into batches; ``None``: none are.
    failed
        Gets the row_ids that have left memory, and that a stage has failed; ``None``: nobody asks.
    counted
        The rows' failures are in the counts, which take them back as the rows are admitted.
    reread
        Reads chosen rows again, with the states that are stored now, for the desk's.
    """

    def __init__(
        self,
        graph: StageGraph,
        writer: RowWriter,
        stats: RunStats,
        *,
        filters: dict[str, RowFilter],
        stale: set[str],
        keep_errors: bool,
        known: Known | None = None,
        scope: Collection[str] | None = None,
        on_settled: Callable[[], None] | None = None,
        on_error: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
        on_state: Callable[[int, str, str], None] | None = None,
        on_row: Callable[[int], None] | None = None,
        windows: Mapping[str, Window] | None = None,
        desk: Desk | None = None,
        failed: array[int] | None = None,
        counted: bool = False,
        reread: Callable[[Sequence[int]], Awaitable[Rows]] | None = None,
    ) -> None:
        self._failed = failed
        self._counted = counted
        self._desk = desk
        self._reread = reread
        self._parking: dict[int, bool] = {}  # rows in memory with a parked stage → whether their batch is back already
        self._late: list[int] = []  # rows that have left memory after their batch came back
        self._budget = budget
        self._on_state = on_state
        self._on_row = on_row
        self._windows = {name: Window(stage.window) for name, stage in graph.stages.items()} | dict(windows or {})
        self._row_bytes = 1
        self._on_settled = on_settled
        self._on_error = on_error
        self._graph = graph
        self._writer = writer
        self.stats = stats
        self._log = AttemptLog(writer, stats)
        self._stale = stale
        self._keep_errors = keep_errors
        self._scope = scope
        self._channels: dict[str, Channel[Row]] = {name: Channel() for name in graph.stages}
        gates = {name: Gate(stage, filters.get(name), known) for name, stage in graph.stages.items()}
        self._gates: dict[str, tuple[Gate, Channel[Row]]] = {
            name: (gate, Channel()) for name, gate in gates.items() if not gate.is_open
        }
        self._active = 0  # admitted rows that have a stage left to settle
        self._room = asyncio.Event()  # set when the feeder should check the bounds again
        self.resized()
        self._stopping = False
        self._upstream_counts = {name: len(graph.requires[name]) for name in graph.stages}
        self._first = [name for name, count in self._upstream_counts.items() if not count]
        self._outputs = {name: StageOutputs(stage.table, graph.needed[name]) for name, stage in graph.stages.items()}

    async def run(self, rows: Rows) -> None:
        """Take every pending row through its stages; return when all have settled, or after :meth:`stop` has drained.

        Raises
        ------
        ExceptionGroup
            A row could not be read, or the code has a bug; the other tasks were cancelled.
        """
        async with asyncio.TaskGroup() as group:
            ends = {"": group.create_task(self._feed_all(rows), name="feeder")}
            for name, stage in self._graph.stages.items():  # each after those it requires
                before = [ends[""], *(ends[other] for other in self._graph.requires[name])]
                ends[name] = group.create_task(self._work(stage), name=f"stage-{name}")
                group.create_task(self._seal(name, before), name=f"seal-{name}")
            for name in self._gates:
                group.create_task(self._run_gate(name), name=f"gate-{name}")

    def stop(self) -> None:
        """Admit no more rows and let requests in flight finish. Rows in channels and gates stay pending."""
        # Nothing is lost by dropping the channels: a row's settled states are queued for commit already, and the next
        # session reads the row as pending at the stages that it has not settled.
        self._stopping = True
        self._room.set()
        if self._budget is not None:
            self._budget.stop()
        for gate, entrance in self._gates.values():
            gate.stop()
            entrance.drop()
        for channel in self._channels.values():
            channel.drop()

    @property
    def in_flight(self) -> int:
        """How many rows have a request sent, or waiting to be."""
        return sum(stage.in_flight for stage in self.stats.stages.values())

    @property
    def stage_names(self) -> Collection[str]:
        """The stages of its graph."""
        return self._graph.stages.keys()

    def wanted(self, name: str) -> int:
        """How many requests a stage has in flight or could send."""
        stage = self._graph.stages[name]
        rows = len(self._channels[name]) + (len(self._gates[name][1]) if name in self._gates else 0)
        return self._windows[name].used + -(-rows // stage.batch_size)

    def resized(self) -> None:
        """Set the admission bound by the stages' windows, after one was changed.

        In rows; channels are unbounded, so this alone limits memory. Twice what all windows hold keeps every worker
        supplied while other rows are in a gate or between stages; never below two chunks.
        """
        windows = sum(stage.window * stage.batch_size for stage in self._graph.stages.values())
        self._limit = min(max(2 * CHUNK, 2 * windows), max(_MAX_ACTIVE_BYTES // self._row_bytes, windows + 1))
        self._room.set()

    def committed(self, rows: int = 0) -> None:
        """Let the feeder check the writer's backlog again. Called on the event loop after each commit of some rows."""
        self._room.set()

    async def _seal(self, name: str, before: Sequence[asyncio.Task[None]]) -> None:
        """Close a stage's channel once the feeder and the stages that it reads have ended: no row can come any more.

        This lets the last micro-batch go half-empty, and the stage's workers end.
        """
        await asyncio.wait(before)
        self._entrance(name).close()

    def _entrance(self, name: str) -> Channel[Row]:
        """Where rows enter a stage: the channel before its gate if it has one, else the stage's own."""
        return self._gates[name][1] if name in self._gates else self._channels[name]

    async def _feed_all(self, rows: Rows) -> None:
        """Admit the pending rows, and those that come back with a batch."""
        if self._desk is None:
            await self._feed(rows)
            return
        self._desk.on_change = self._room.set
        async with asyncio.TaskGroup() as group:
            fed = group.create_task(self._feed(rows), name="feeder of pending rows")
            fed.add_done_callback(lambda _: self._room.set())
            group.create_task(self._feed_again(self._desk, fed), name="feeder of batches")

    async def _feed_again(self, desk: Desk, fed: asyncio.Task[None]) -> None:
        """Admit the rows whose batch is back, until there is no batch to wait for."""
        assert self._reread is not None
        while not self._stopping:
            if (row_ids := desk.returned()) is not None:
                for row_id in row_ids:
                    if row_id in self._parking:
                        self._parking[row_id] = True
                ready = [row_id for row_id in row_ids if row_id not in self._parking]
                await self._feed(await self._reread(ready), again=True)
                continue
            if self._late:
                late, self._late = sorted(self._late), []
                await self._feed(await self._reread(late), again=True)
                continue
            if fed.done() and not self._active:
                desk.flush()  # nothing can come that would fill a batch further
                if not desk.is_busy:
                    return
            self._room.clear()
            try:
                async with asyncio.timeout(None if self._budget is None else _STUCK_S):
                    await self._room.wait()
            except TimeoutError:
                if self._budget is not None and self._budget.is_waited_for and not self.in_flight:
                    desk.flush()  # only what a batch brings makes room for more

    async def _feed(self, rows: Rows, *, again: bool = False) -> None:
        """Admit rows within the bounds, reading one chunk ahead in a thread."""
        self._row_bytes = max(self._row_bytes, rows.row_bytes)
        self.resized()
        chunks = iter(rows.chunks)
        first = next(chunks, None)
        ahead = None if first is None else asyncio.create_task(asyncio.to_thread(rows.read, first))
        try:
            while ahead is not None:
                stored = await ahead
                following = next(chunks, None)
                ahead = None if following is None else asyncio.create_task(asyncio.to_thread(rows.read, following))
                for item in stored:
                    while self._active >= self._limit or self._is_behind():
                        if self._stopping:
                            return
                        self._room.clear()
                        await self._room.wait()
                    if self._stopping:
                        return
                    item.again = again
                    self._admit(item)
                await asyncio.sleep(0)
        finally:
            if ahead is not None:
                # A thread cannot be cancelled, and the session closes its connection after this.
                await asyncio.wait([ahead])

    def _is_behind(self) -> bool:
        return self._writer.is_behind(_MAX_BACKLOG, _MAX_BACKLOG_BYTES)

    def _admit(self, row: Row) -> None:
        """Find the stages that the row has not settled, and submit it to those whose upstream stages all have.

        A row of a resumed run may have settled some stages in an earlier session; their stored outputs go into its
        context.
        """
        graph = self._graph
        if not row.states:  # nothing stored: the common case, without looking at each stage
            row.open = len(graph.stages)
            row.waiting = dict(self._upstream_counts)
            self._active += 1
            for name in self._first:
                self._submit(name, row)
            return
        unsettled = [name for name in graph.stages if not self._take_stored(row, name)]
        if self._scope is not None:
            unsettled = self._within(self._scope, unsettled)
        if not unsettled:
            if self._on_row is not None:
                self._on_row(row.row_id)
            return
        if self._counted:
            self._take_back(row, unsettled)
        row.open = len(unsettled)
        self._active += 1
        ready = []
        for name in unsettled:
            count = sum(1 for other in graph.requires[name] if other in unsettled)
            row.waiting[name] = count
            if not count:
                ready.append(name)
        # Not in the loop above: submitting may settle the row at once, which counts down `waiting` of later stages.
        for name in ready:
            self._submit(name, row)

    def _take_back(self, row: Row, unsettled: Sequence[str]) -> None:
        """Take a row's failures out of the counts, which will count it again."""
        stats = self.stats
        stats.rows -= 1
        for name in unsettled:
            state, stage = row.states.get(name), stats.stages[name]
            if state is None:
                continue
            stats.settled -= 1
            if state.status == "error":
                stats.errors -= 1
                stage.take_back(state.error_type or "internal")
            else:
                stage.skipped -= 1

    def _within(self, scope: Collection[str], unsettled: Sequence[str]) -> list[str]:
        """The stages in ``scope`` that do not wait for one that stays unsettled."""
        left: list[str] = []
        for name in unsettled:  # each after those it requires
            if name in scope and not any(
                other in unsettled and other not in left for other in self._graph.requires[name]
            ):
                left.append(name)
        return left

    def _take_stored(self, row: Row, name: str) -> bool:
        stale = name in self._stale
        return take_stored(row, name, self._outputs[name], stale=stale, keep_errors=self._keep_errors)

    def _submit(self, name: str, row: Row) -> None:
        """Give a row to a stage, or settle it there: skipped if an upstream stage failed, an error if malformed."""
        if row.failed and (failed := self._graph.requires[name] & row.failed.keys()):
            reason = "; ".join(f"{other}: {row.failed[other]}" for other in sorted(failed))
            self._settle(self._graph.stages[name], row, "skipped", error=("upstream", reason))
        elif row.error is not None:
            self._settle(self._graph.stages[name], row, "error", error=("malformed_input", row.error))
        else:
            self._entrance(name).put_nowait(row)

    async def _run_gate(self, name: str) -> None:
        """Take the rows of a stage through its gate, in batches: each batch is one query in DuckDB."""
        stage, channel = self._graph.stages[name], self._channels[name]
        gate, entrance = self._gates[name]
        while True:
            try:
                rows = await entrance.get_batch(await gate.ready(), _GATE_LINGER_S)
            except StopAsyncIteration:
                channel.close()
                return
            passed = self._settle_filtered(stage, rows, await gate.passing_async(rows))
            # Between the answers handed out here and their settling below nothing awaits, so that a stop cannot come
            # in between and leave an answer used up and its row pending.
            left, answered = await gate.split(passed, lambda: self._stopping)
            for row, item, answer in answered:
                self.stats.reused += 1
                own = answer.outputs[: len(answer.outputs) - len(item.carried)]
                self._settle(stage, row, "done", (*own, *item.carried), key=item.key, reused=answer)
            if self._stopping:
                return
            for row in left:
                channel.put_nowait(row)

    def _settle_filtered(self, stage: Stage, rows: Sequence[Row], verdicts: Sequence[bool | InputError]) -> list[Row]:
        """Settle the rows for which ``where`` is false or fails; return the others."""
        passed = []
        for row, verdict in zip(rows, verdicts, strict=True):
            if self._stopping:
                return []
            if isinstance(verdict, InputError):
                self._settle(stage, row, "error", error=(verdict.kind, verdict.message))
            elif verdict:
                passed.append(row)
            else:
                self._settle(stage, row, "skipped")
        return passed

    async def _work(self, stage: Stage) -> None:
        channel = self._channels[stage.name]
        if not isinstance(stage, BatchStage) or stage.batch_size == 1:

            async def handle_one(row: Row) -> None:
                if (item := await self._prepare(stage, row)) is not None:
                    if self._budget is None:
                        await self._send(stage, row, item)
                    elif not await self._budget.afford(
                        stage, [item], lambda: self._send(stage, row, item), whose=row.row_id
                    ):
                        self._refused()

            await run_window(channel.get, handle_one, self._windows[stage.name])
            return

        async def pull() -> Sequence[Row]:
            return await channel.get_batch(stage.batch_size, _BATCH_LINGER_S)

        async def handle(rows: Sequence[Row]) -> None:
            if stage.mapper is None:
                items = [await self._prepare(stage, row) for row in rows]
            else:
                items = await asyncio.gather(*(self._prepare(stage, row) for row in rows))
            ready = [(row, item) for row, item in zip(rows, items, strict=True) if item is not None]
            if not ready:
                return
            sent, made = zip(*ready, strict=True)
            if self._budget is None:
                await self._send_batch(stage, sent, made)
            elif not await self._budget.afford(stage, made, lambda: self._send_batch(stage, sent, made)):
                self._refused()

        await run_window(pull, handle, self._windows[stage.name])

    async def _prepare(self, stage: Stage, row: Row) -> Prepared[Any] | None:
        """Build a row's request. ``None`` if there is none: it failed, has its stored answer, or the stage stopped."""
        try:
            if row.prepared and stage.name in row.prepared:
                made = row.prepared.pop(stage.name)
                self._gates[stage.name][0].taken(made)
                if isinstance(made, Exception):
                    raise made
                item: Prepared[Any] = made
            else:
                item = await prepare(stage, row.context)
        except StoppedError:
            return None
        except InputError as error:
            self._settle(stage, row, "error", error=(error.kind, error.message))
            return None
        except Exception as error:
            self._settle(stage, row, "error", error=_internal_error(stage, error))
            return None
        if row.states and answered_by_its_state(row, stage.name, item):
            self._keep_stored(stage, row)
            return None
        return item

    def _refused(self) -> None:
        """The budget has no room for a request: its rows stay pending, and the guards look at what is spent."""
        if self._on_settled is not None:
            self._on_settled()

    def _park(self, name: str, row: Row) -> None:
        """The row's request is in a batch. It leaves memory once nothing else of it is under way."""
        if row.parked is None:
            row.parked = set()
            self._parking[row.row_id] = False
        row.parked.add(name)
        self._let_go(row)

    def _let_go(self, row: Row) -> None:
        """Forget a row all of whose unsettled stages are parked, or wait for one that is."""
        if row.parked is None or row.row_id not in self._parking:  # a follower that was settled at once has done it
            return
        blocked, ahead = set(row.parked), list(row.parked)
        while ahead:
            for follower in self._graph.feeds[ahead.pop()]:
                if follower in row.waiting and follower not in blocked:
                    blocked.add(follower)
                    ahead.append(follower)
        if row.open > len(blocked):
            return
        if self._parking.pop(row.row_id):
            self._late.append(row.row_id)
        self._active -= 1
        self._room.set()

    async def _send(self, stage: Stage, row: Row, item: Prepared[Any]) -> Sequence[RequestMetrics] | None:
        """Send one row's request and settle the row with the result. ``None``: it is in a batch."""
        stats = self.stats.stages[stage.name]
        stats.in_flight += 1
        log = self._log.begin(stage.name, row.row_id)
        if self._desk is not None:
            while self._is_behind() and not self._stopping:  # what a batch has brought comes as fast as it is read
                self._room.clear()
                await self._room.wait()
            SENDER.set(Sender(stage.name, row.row_id, row.again))
        result: Result | RequestError
        try:
            result = await stage.answer(item)
        except ParkedError:
            self._park(stage.name, row)
            return None
        except RequestError as error:
            result = error
        except Exception as error:
            self._settle(stage, row, "error", error=_internal_error(stage, error), key=item.key)
            return ()
        finally:
            stats.in_flight -= 1
        sole = stage.name not in row.states and tells_its_request(result)  # a row that is replaced may keep its state
        if result.metrics is not None:
            log.end(result.metrics, told=sole)
        self._settle_result(stage, row, item, result, sole=sole)
        if self._on_settled is not None:
            self._on_settled()
        return () if result.metrics is None else (result.metrics,)

    async def _send_batch(
        self, stage: BatchStage, rows: Sequence[Row], items: Sequence[Prepared[Any]]
    ) -> Sequence[RequestMetrics]:
        """Send one request for several rows and settle each with its result."""
        stats = self.stats.stages[stage.name]
        stats.in_flight += len(rows)
        log = self._log.begin(stage.name, rows[0].row_id)
        try:
            results = await stage.answer_batch(items)
        except Exception as error:
            for row, item in zip(rows, items, strict=True):
                self._settle(stage, row, "error", error=_internal_error(stage, error), key=item.key)
            return ()
        finally:
            stats.in_flight -= len(rows)
        seen: list[RequestMetrics] = []
        for row, item, result in zip(rows, items, results, strict=True):
            metrics = result.metrics
            if metrics is not None and (not seen or metrics is not seen[-1]):  # rows of one request share its metrics
                seen.append(metrics)
                log.end(metrics, row.row_id)
            self._settle_result(stage, row, item, result)
        if self._on_settled is not None:
            self._on_settled()
        return seen

    def _settle_result(
        self, stage: Stage, row: Row, item: Prepared[Any], result: Result | RequestError, *, sole: bool = False
    ) -> None:
        if isinstance(result, StoppedError):  # it was never sent, so its row stays pending
            return
        if isinstance(result, RequestError):
            failure = (result.kind, result.message)
        else:
            try:
                outputs = stage.outputs(result)
            except Exception as error:  # what one answer holds costs its row, not the run
                failure = _internal_error(stage, error)
            else:
                self._settle(stage, row, "done", outputs + item.carried, key=item.key, result=result, sole=sole)
                return
        blank = (None,) * (len(stage.table.outputs) - len(item.carried))
        self._settle(stage, row, "error", blank + item.carried, error=failure, key=item.key, result=result, sole=sole)

    def _keep_stored(self, stage: Stage, row: Row) -> None:
        """The stage is stale, but this row's request is unchanged: keep the stored state; nothing is written."""
        row.context[stage.name] = row.states[stage.name].outputs | {"status": "done"}
        self.stats.stages[stage.name].done += 1
        self.stats.settled += 1
        self.stats.kept += 1
        self._advance(stage.name, row, "kept")

    def _keep_former(self, stage: Stage, row: Row, error: str) -> None:
        """The row was to be done again and failed: keep the answer that it has. It stays to be done again."""
        rows, example = self.stats.not_redone.get(stage.name, (0, error))
        self.stats.not_redone[stage.name] = (rows + 1, example)
        self.stats.errors += 1
        row.context[stage.name] = row.states[stage.name].outputs | {"status": "done"}
        self.stats.stages[stage.name].failed += 1
        self.stats.settled += 1
        self._advance(stage.name, row, "former")

    def _settle(
        self,
        stage: Stage,
        row: Row,
        status: str,
        outputs: tuple[Any, ...] | None = None,
        *,
        error: tuple[str, str] | None = None,
        key: str | None = None,
        result: Result | RequestError | None = None,
        reused: KnownAnswer | None = None,
        sole: bool = False,
    ) -> None:
        """Queue a row's final state at a stage for commit, and submit the row to the stages that waited for it."""
        name = stage.name
        message = error[1] if error is not None else None
        stats = self.stats.stages[name]
        if error is not None and to_be_redone(row, name) and row.states[name].status == "done":
            self._keep_former(stage, row, ": ".join(error))
            return
        if status == "done":
            stats.done += 1
            row.context[name] = self._outputs[name].done(outputs or ())
        elif status == "error":
            kind = error[0] if error is not None else "internal"
            stats.fail(kind, message or "", lasting=row.error is None and _is_lasting(result))
            self.stats.errors += 1
            row.failed[name] = message or "failed"
        else:
            stats.skipped += 1
            row.context[name] = self._outputs[name].skipped
            if error is not None:
                row.failed[name] = message or "skipped"
        self.stats.settled += 1
        if outputs is None:
            outputs = (None,) * len(stage.table.outputs)
        state = settled_row(row.row_id, status, outputs, error or (None, None), key, result, reused, sole=sole)
        # Queued before the row advances: the writer commits in this order, so that no commit has a state without the
        # upstream states that it was made from.
        self._writer.put(name, state, replaces=name in row.states, size=_size_of(outputs))
        if status == "error":
            self._on_error()
        self._advance(name, row, status)

    def _advance(self, name: str, row: Row, how: str) -> None:
        """Count a stage as settled for a row: release the row after its last, else submit it where it is due."""
        row.open -= 1
        if self._on_state is not None:
            self._on_state(row.row_id, name, how)
        if row.parked:
            self._submit_followers(name, row)
            self._let_go(row)
            return
        if not row.open:
            if self._on_row is not None:
                self._on_row(row.row_id)
            self.stats.rows += 1
            if row.failed and self._failed is not None:
                self._failed.append(row.row_id)
            self._active -= 1
            if self._active < self._limit:
                self._room.set()
            return
        self._submit_followers(name, row)

    def _submit_followers(self, name: str, row: Row) -> None:
        if self._stopping:
            return
        for follower in self._graph.feeds[name]:
            if follower in row.waiting:
                row.waiting[follower] -= 1
                if not row.waiting[follower]:
                    self._submit(follower, row)


def _internal_error(stage: Stage, error: Exception) -> tuple[str, str]:
    """Log an unexpected exception, and return it as the row's error: a bug costs one row, not the run."""
    logger.error("stage %s: unexpected error", stage.name, exc_info=error)
    return "internal", f"{type(error).__name__}: {error} (run.log has the traceback)"


def _size_of(outputs: Sequence[Any]) -> int:
    """About how many bytes the long values of an answer take."""
    return sum([len(value) * _BYTES[value.__class__] for value in outputs if value.__class__ in _BYTES])


def _is_lasting(result: Result | RequestError | None) -> bool:
    """Whether a failure may be every row's, until something is mended: a content filter speaks of one row's words."""
    return not getattr(result, "retryable", False) and not isinstance(result, ContentFilterError)
