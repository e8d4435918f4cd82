"""The stage graph at work: admits rows, streams them from stage to stage, settles each state, drains when asked.

A row is in memory from its admission until its last stage has settled it; the number of such rows is bounded by the
stages' windows, whatever the size of the input. A row enters a stage as soon as it has left those that the stage reads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from infermesh.errors import InputError, RequestError, StoppedError
from infermesh.results import RequestMetrics, TokenUsage
from infermesh.runs.gate import Gate
from infermesh.runs.row import StageOutputs, answered_by_its_state, take_stored
from infermesh.runs.stats import RunStats
from infermesh.runtime.workers import Channel, run_window
from infermesh.stages import BatchStage, Prepared, Stage
from infermesh.stages.base import Result
from infermesh.stages.graph import StageGraph
from infermesh.store import GroupWriter, PendingRows, Row
from infermesh.store.filter import RowFilter
from infermesh.store.known import KnownAnswers
from infermesh.store.pending import CHUNK
from infermesh.store.reuse import Answer
from infermesh.store.schema import attempt_row, state_row, timestamp

logger = logging.getLogger("infermesh")

_MAX_BACKLOG = 20_000
_GATE_BATCH = 512
_BATCH_LINGER_S = 0.25  # half-empty micro-batches cost requests; a full one and the last never wait
_GATE_LINGER_S = 0.002


class Runner:
    """Runs a graph of stages over the pending rows of a store.

    Parameters
    ----------
    graph
        The stages and who reads whom.
    writer
        Where states go. ``put`` must not block.
    filters
        Stage → its ``where``, compiled.
    stale
        Stages to look at again although they hold a state: their declaration, or what they read, has changed.
    keep_errors
        Leave rows that failed in an earlier session as they are.
    known
        Answers of rows that have gone, and of earlier runs.
    after
        Called when a request's rows have settled.
    """

    def __init__(
        self,
        graph: StageGraph,
        writer: GroupWriter,
        stats: RunStats,
        *,
        filters: dict[str, RowFilter],
        stale: set[str],
        keep_errors: bool,
        known: KnownAnswers | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._after = after
        self._graph = graph
        self._writer = writer
        self.stats = stats
        self._stale = stale
        self._keep_errors = keep_errors
        self._channels: dict[str, Channel[Row]] = {name: Channel() for name in graph.stages}
        gates = {name: Gate(stage, filters.get(name), known) for name, stage in graph.stages.items()}
        self._gates: dict[str, tuple[Gate, Channel[Row]]] = {
            name: (gate, Channel()) for name, gate in gates.items() if not gate.is_open
        }
        self._limit = max(2 * CHUNK, 2 * sum(stage.window * stage.batch_size for stage in graph.stages.values()))
        self._active = 0
        self._room = asyncio.Event()
        self._stopping = False
        self._fresh = {name: len(graph.requires[name]) for name in graph.stages}
        self._first = [name for name, count in self._fresh.items() if not count]
        self._outputs = {name: StageOutputs(stage.table, graph.needed[name]) for name, stage in graph.stages.items()}

    async def run(self, rows: PendingRows) -> None:
        """Take every pending row through its stages; returns when all are settled, or drained after :meth:`stop`."""
        async with asyncio.TaskGroup() as group:
            ends = {"": group.create_task(self._feed(rows), name="feeder")}
            for name, stage in self._graph.stages.items():  # each after those it requires
                before = [ends[""], *(ends[other] for other in self._graph.requires[name])]
                ends[name] = group.create_task(self._work(stage), name=f"stage-{name}")
                group.create_task(self._seal(name, before), name=f"seal-{name}")
            for name in self._gates:
                group.create_task(self._keep_gate(name), name=f"gate-{name}")

    def stop(self) -> None:
        """Admit nothing more and let what is in flight finish; rows between stages stay pending."""
        self._stopping = True
        self._room.set()
        for channel in (*(entrance for _, entrance in self._gates.values()), *self._channels.values()):
            channel.drop()

    def committed(self) -> None:
        """Tell the feeder that the writer has caught up some; called on the event loop."""
        self._room.set()

    async def _seal(self, name: str, before: Sequence[asyncio.Task[None]]) -> None:
        """Close a stage's channel once nothing more can come: its last micro-batch goes as it is."""
        await asyncio.wait(before)
        self._entrance(name).close()

    def _entrance(self, name: str) -> Channel[Row]:
        """Where rows for a stage go in: before its gate, where it has one."""
        return self._gates[name][1] if name in self._gates else self._channels[name]

    async def _feed(self, rows: PendingRows) -> None:
        chunks = iter(rows.chunks)
        first = next(chunks, None)
        ahead = None if first is None else asyncio.create_task(asyncio.to_thread(rows.read, first))
        try:
            while ahead is not None:
                stored = await ahead
                following = next(chunks, None)
                ahead = None if following is None else asyncio.create_task(asyncio.to_thread(rows.read, following))
                for item in stored:
                    while self._active >= self._limit or self._writer.backlog > _MAX_BACKLOG:
                        if self._stopping:
                            return
                        self._room.clear()
                        await self._room.wait()
                    if self._stopping:
                        return
                    self._admit(item)
                await asyncio.sleep(0)
        finally:
            if ahead is not None:
                await asyncio.wait([ahead])  # a thread cannot be cancelled; the connection must outlive it

    def _admit(self, row: Row) -> None:
        graph = self._graph
        if not row.states:
            row.open = len(graph.stages)
            row.waiting = dict(self._fresh)
            self._active += 1
            for name in self._first:
                self._submit(name, row)
            return
        unsettled = [name for name in graph.stages if not self._take_stored(row, name)]
        if not unsettled:
            return
        row.open = len(unsettled)
        self._active += 1
        ready = []
        for name in unsettled:
            count = sum(1 for other in graph.requires[name] if other in unsettled)
            row.waiting[name] = count
            if not count:
                ready.append(name)
        for name in ready:
            self._submit(name, row)

    def _take_stored(self, row: Row, name: str) -> bool:
        stale = name in self._stale
        return take_stored(row, name, self._outputs[name], stale=stale, keep_errors=self._keep_errors)

    def _submit(self, name: str, row: Row) -> None:
        if row.failed and (failed := self._graph.requires[name] & row.failed.keys()):
            reason = "; ".join(f"{other}: {row.failed[other]}" for other in sorted(failed))
            self._settle(self._graph.stages[name], row, "skipped", error=("upstream", reason))
        elif row.error is not None:
            self._settle(self._graph.stages[name], row, "error", error=("malformed_input", row.error))
        else:
            self._entrance(name).put_nowait(row)

    async def _keep_gate(self, name: str) -> None:
        """Take the rows that come to a stage through its gate, in batches, since DuckDB is asked about each batch."""
        stage, channel = self._graph.stages[name], self._channels[name]
        gate, entrance = self._gates[name]
        while True:
            try:
                rows = await entrance.get_batch(_GATE_BATCH, _GATE_LINGER_S)
            except StopAsyncIteration:
                channel.close()
                return
            passed = self._settle_filtered(stage, rows, await gate.where(rows))
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
        """Settle the rows that ``where`` leaves out or fails for; the others."""
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
                if (item := self._ready(stage, row)) is not None:
                    await self._send(stage, row, item)

            await run_window(channel.get, handle_one, stage.window)
            return

        async def pull() -> Sequence[Row]:
            return await channel.get_batch(stage.batch_size, _BATCH_LINGER_S)

        async def handle(rows: Sequence[Row]) -> None:
            ready = [(row, item) for row in rows if (item := self._ready(stage, row)) is not None]
            if ready:
                await self._send_batch(stage, *zip(*ready, strict=True))

        await run_window(pull, handle, stage.window)

    def _ready(self, stage: Stage, row: Row) -> Prepared[Any] | None:
        """Make a row ready to send; ``None`` where that settles it."""
        try:
            if row.prepared and stage.name in row.prepared:
                item: Prepared[Any] = row.prepared.pop(stage.name)
            else:
                item = stage.prepare(row.context)
        except InputError as error:
            self._settle(stage, row, "error", error=(error.kind, error.message))
            return None
        except Exception as error:
            self._settle(stage, row, "error", error=_unforeseen(stage, error))
            return None
        if row.states and answered_by_its_state(row, stage.name, item):
            self._keep(stage, row)
            return None
        return item

    async def _send(self, stage: Stage, row: Row, item: Prepared[Any]) -> None:
        """One request for one row, and what came of it."""
        stats = self.stats.stages[stage.name]
        stats.in_flight += 1
        result: Result | RequestError
        try:
            result = await stage.answer(item)
        except RequestError as error:
            result = error
        except Exception as error:
            self._settle(stage, row, "error", error=_unforeseen(stage, error), key=item.key)
            return
        finally:
            stats.in_flight -= 1
        if result.metrics is not None:
            self._log_attempts(stage.name, row.row_id, result.metrics)
        self._settle_result(stage, row, item, result)
        if self._after is not None:
            self._after()

    async def _send_batch(self, stage: BatchStage, rows: Sequence[Row], items: Sequence[Prepared[Any]]) -> None:
        """One request for these rows, and what came of it for each."""
        stats = self.stats.stages[stage.name]
        stats.in_flight += len(rows)
        try:
            results = await stage.answer_batch(items)
        except Exception as error:
            for row, item in zip(rows, items, strict=True):
                self._settle(stage, row, "error", error=_unforeseen(stage, error), key=item.key)
            return
        finally:
            stats.in_flight -= len(rows)
        seen: RequestMetrics | None = None
        for row, item, result in zip(rows, items, results, strict=True):
            metrics = result.metrics
            if metrics is not None and metrics is not seen:  # rows of one request share its metrics
                seen = metrics
                self._log_attempts(stage.name, row.row_id, metrics)
            self._settle_result(stage, row, item, result)
        if self._after is not None:
            self._after()

    def _settle_result(self, stage: Stage, row: Row, item: Prepared[Any], result: Result | RequestError) -> None:
        if not isinstance(result, RequestError):
            self._settle(stage, row, "done", stage.outputs(result) + item.carried, key=item.key, result=result)
        elif not isinstance(result, StoppedError):  # it was not sent: the row stays pending
            blank = (None,) * (len(stage.table.outputs) - len(item.carried))
            failure = (result.kind, result.message)
            self._settle(stage, row, "error", blank + item.carried, error=failure, key=item.key, result=result)

    def _keep(self, stage: Stage, row: Row) -> None:
        """The request is the one that was answered before: the stored answer stands."""
        row.context[stage.name] = row.states[stage.name].outputs | {"status": "done"}
        self.stats.stages[stage.name].done += 1
        self.stats.settled += 1
        self.stats.kept += 1
        self._advance(stage.name, row)

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
        reused: Answer | None = None,
    ) -> None:
        """Store a row's final state of a stage and send the row on."""
        name = stage.name
        message = error[1] if error is not None else None
        stats = self.stats.stages[name]
        if status == "done":
            stats.done += 1
            row.context[name] = self._outputs[name].of(outputs or ())
        elif status == "error":
            stats.failed += 1
            self.stats.errors += 1
            row.failed[name] = message or "failed"
        else:
            stats.skipped += 1
            row.context[name] = self._outputs[name].of_skipped
            if error is not None:
                row.failed[name] = message or "skipped"
        self.stats.settled += 1
        if outputs is None:
            outputs = (None,) * len(stage.table.outputs)
        state = _state(row.row_id, status, outputs, error or (None, None), key, result, reused)
        self._writer.put(name, state, replaces=name in row.states)
        self._advance(name, row)

    def _advance(self, name: str, row: Row) -> None:
        row.open -= 1
        if not row.open:
            self.stats.rows += 1
            self._active -= 1
            if self._active < self._limit:
                self._room.set()
            return
        if self._stopping:
            return
        for follower in self._graph.feeds[name]:
            if follower in row.waiting:
                row.waiting[follower] -= 1
                if not row.waiting[follower]:
                    self._submit(follower, row)

    def _log_attempts(self, stage: str, row_id: int, metrics: RequestMetrics) -> None:
        """One ``attempts`` row for each request sent; a request that carried several rows names the first."""
        stats = self.stats
        for attempt in metrics.attempts:
            stats.requests += 1
            if attempt.error_type is not None or attempt.attempt > 1:
                stats.retries += attempt.attempt > 1
                stats.rate_limited += attempt.status_code == 429
            prompt, completion, cost = attempt.prompt_tokens, attempt.completion_tokens, attempt.cost_usd
            if prompt:
                stats.prompt_tokens += prompt
            if completion:
                stats.completion_tokens += completion
            if cost is not None:
                stats.cost_usd = (stats.cost_usd or 0.0) + cost
            self._writer.put("attempts", attempt_row(stage, row_id, attempt))


def _state(
    row_id: int,
    status: str,
    outputs: Sequence[Any],
    error: tuple[str | None, str | None],
    key: str | None,
    result: Result | RequestError | None,
    reused: Answer | None,
) -> tuple[Any, ...]:
    """The row of a stage's table for what became of a row there; ``result`` and ``reused`` exclude each other."""
    metrics: RequestMetrics | None = None
    usage: TokenUsage | Answer | None = None
    model_id = request_id = deployment = cost = finished_at = None
    if isinstance(result, RequestError):
        metrics, request_id, deployment = result.metrics, result.request_id, result.deployment
    elif result is not None:
        metrics, request_id = result.metrics, result.request_id
        usage, model_id, cost = result.token_usage, result.model_id, result.cost
        deployment = metrics.deployment if metrics is not None else None
    elif reused is not None:
        usage, model_id, request_id, cost = reused, reused.model_id, reused.request_id, 0.0
        finished_at = reused.finished_at
    return state_row(
        row_id,
        status,
        outputs,
        *error,
        len(metrics.attempts) if metrics is not None else 0,
        deployment,
        model_id,
        request_id,
        key,
        usage.prompt_tokens if usage is not None else None,
        usage.completion_tokens if usage is not None else None,
        cost,
        metrics.queue_s if metrics is not None else None,
        metrics.service_s if metrics is not None else None,
        finished_at or timestamp(time.time()),
        reused.run_id if reused is not None else None,
    )


def _unforeseen(stage: Stage, error: Exception) -> tuple[str, str]:
    """A bug, ours or a plug-in's, costs the row that met it and not the run; run.log has the traceback."""
    logger.error("stage %s met an unforeseen error", stage.name, exc_info=error)
    return "internal", f"{type(error).__name__}: {error} (run.log has the traceback)"
