"""One session of a run: opens the store, runs the pending rows wave after wave, closes with a final status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from infermesh.config.declaration import Declaration
from infermesh.config.schema import TelemetryConfig
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import ConfigError, InfermeshError, StoppedError, StoreError
from infermesh.hints import command, counted
from infermesh.inputs.sources import Source
from infermesh.query.in_batches import InBatches, in_batches
from infermesh.query.reader import ask_run
from infermesh.query.sinks import check_sinks, write_sinks
from infermesh.results import TokenUsage
from infermesh.runs.again import SentAgain
from infermesh.runs.control import Control
from infermesh.runs.crew.engine import workers_of
from infermesh.runs.explain import changes, opening_lines
from infermesh.runs.guards import Guards
from infermesh.runs.hands import Adjustment, Hands, adjust
from infermesh.runs.outcome import RunOutcome, StageTotals
from infermesh.runs.output_files import Sink
from infermesh.runs.record import run_record
from infermesh.runs.remarks import job_remarks, where_remarks
from infermesh.runs.retry import Retry, left_open
from infermesh.runs.runner import Runner
from infermesh.runs.signals import stopping
from infermesh.runs.stats import Observer, RunStats, StageStats
from infermesh.runtime.workers import Window
from infermesh.stages.graph import Pipeline, Wave
from infermesh.store import Column, Connection, GroupWriter, PendingRows, RunStore
from infermesh.store.batches import has_batches
from infermesh.store.database import Redo, utcnow
from infermesh.store.filter import RowFilter
from infermesh.store.known import KnownAnswers
from infermesh.store.schema import DATABASE, SOURCE, RunStatus
from infermesh.store.usage import used_today
from infermesh.store.whose import refuse_other

if TYPE_CHECKING:
    from infermesh.runs.batches.desk import BatchDesk
    from infermesh.runs.crew.make import CrewWave, Hub
    from infermesh.runs.telemetry import Telemetry

logger = logging.getLogger("infermesh")

_TICK_S = 0.25  # between two calls of Observer.tick and two checks of the guards
_DRAIN_S = 30.0  # after a stop, requests that are still in flight then are dropped
_DROP_S = 5.0  # after that, whatever is not over is cancelled


class RunSession:
    """One session: :meth:`load`, :meth:`restore_usage`, :meth:`run`, :meth:`close`, each once, in this order.

    Raises
    ------
    StoreError
        The database cannot be opened.

    Notes
    -----
    *Resuming.* Each stage has a signature: a hash of everything that decides its answers, with the signatures of the
    stages it reads. If it differs from the stored one, the stage is stale: all its rows are rendered again, and only
    those whose ``request_key`` has changed are sent. While that is under way, its table holds rows of both
    declarations. So the stored signature is emptied before the first row and set after the last: a session that was
    killed in between leaves the stage stale.

    *Waves.* The stages over the source run first, then each sql stage's query and the stages over its rows. A query
    needs all rows it reads, so it runs between waves, after the writer's queue is committed.
    """

    def __init__(
        self,
        declaration: Declaration,
        folder: Path,
        pipeline: Pipeline,
        fleet: Fleet,
        observer: Observer,
        control: Control,
        sink: Sink | None = None,
        keep_errors: bool = False,
        environ: Mapping[str, str] = MappingProxyType({}),
        detach: bool = False,
    ) -> None:
        self._detach = detach or declaration.experiment.detach_batches
        self._desk: BatchDesk | None = None
        self._control = control
        self._environ = environ
        self._declaration = declaration
        self._experiment = experiment = declaration.experiment
        self._folder, self._place = folder, folder.absolute()
        self._pipeline = pipeline
        self._fleet = fleet
        self._observer = observer
        self._sink = sink
        self._keep_errors = keep_errors or self._experiment.keep_errors
        self._retry: Retry | None = None
        self._workers = workers_of(experiment, pipeline.stages, observer.note)
        self._store = RunStore(folder / DATABASE, experiment.store, vectors=_has_vectors(pipeline))
        self._filters: dict[str, RowFilter] = {}
        self._origins: Mapping[str, Sequence[Column]] = {}
        self._stale: set[str] = set()
        self._signatures: dict[str, str] = {}
        self._known: KnownAnswers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: Runner | CrewWave | None = None
        self._again: SentAgain | None = None
        self._closing: list[RowFilter] = []  # of rows that were sent again
        self._hub: Hub | None = None
        self._work: asyncio.Task[None] | None = None
        self._settled_before: dict[str, int] = {}
        self._stops = 0  # how often a stop was requested
        self._dropping = False
        self._began = utcnow()
        self._stopped_by: str | None = None  # the guard's reason; None if a user stopped the run
        self._complete = False  # every wave has run to its end
        self.hands = Hands(self, declaration, environ, folder, observer.note)
        self._windows = {name: Window(stage.window) for name, stage in pipeline.stages.items()}
        self._guards: Guards | None = None
        self._left = (0, 0)  # batches that are at a provider when the session ends, and their requests

    def load(self, source: Source, redo: Redo | None = None) -> None:
        """Load the source, check the declaration against it, and find which stages are stale.

        Parameters
        ----------
        redo
            Settled rows to send again; ``None`` for none.

        Raises
        ------
        ConfigError
            The declaration names something that does not exist, such as a column, or does not fit the sink.
        StoreError
            The source cannot be loaded.
        """
        store, pipeline = self._store, self._pipeline
        tables = [stage.table for stage in pipeline.stages.values()]
        signatures = pipeline.signatures
        last = next(reversed(pipeline.stages.values()), None)
        if self._experiment.telemetry != TelemetryConfig():
            from infermesh.runs.telemetry import refuse_missing

            refuse_missing()
        refuse_other(store, self._experiment.name, self._declaration.overrides, self._folder)
        if self._sink is not None and last is not None:
            self._sink.admit(store, last.table, last.facts, self._observer.note)
        edits: dict[str, str] = {}
        if not store.is_new:
            before = orjson.loads(store.run_value("signatures") or "{}")
            self._stale = {name for name, now in signatures.items() if before.get(name, now) != now}
            self._signatures = before | signatures
            facts = {name: pipeline.stages[name].facts for name in self._stale}
            edits = changes(store.facts(), facts)
        else:
            self._signatures = signatures
            self._observer.note(f"loading {source.shown} …")
        # An empty signature matches none, so these stages stay stale until a session has been through all their rows.
        unsure = self._signatures | dict.fromkeys(self._stale, "")
        store.load(
            source,
            tables,
            self._record(unsure),
            queries=list(pipeline.queries.values()),
            check=self._check,
        )
        if self._sink is not None and last is not None:
            self._sink.open(stale=last.name in self._stale, keep_errors=self._keep_errors)
        if redo is not None:
            # The stages that read it keep their answers where the new upstream answer leaves their request unchanged.
            readers, origin = pipeline.readers(redo.stage), store.origin_of(redo.stage)
            self._retry = Retry(redo.stage, readers, frozenset(self._stale), origin)
            self._stale = set(readers)
            rows = store.redo(redo, self._retry.signatures(self._signatures) | dict.fromkeys(readers, ""))
            self._retry.rows[origin] = rows
            self._keep_errors = True
            again = counted(len(rows), f"row of {redo.stage} is", f"rows of {redo.stage} are")
            self._observer.note(f"retry: {again} sent again")
            for name in sorted(self._retry.edited):
                self._observer.note(f"{name}: its declaration has changed; a resume looks at its other rows")
            for name in sorted(readers):
                self._observer.note(f"{name}: reads {redo.stage}: of these rows, those whose request changes are sent")
        for line in job_remarks(self._experiment, self._fleet, pipeline, self._origins):
            self._observer.note(line)
        self._desk = self._make_desk()
        self._known = KnownAnswers.for_run(self._experiment, self._folder, store, tables, self._observer.note)
        if self._retry is None:
            for line in opening_lines(store, list(pipeline.stages), edits, keep_errors=self._keep_errors):
                self._observer.note(line)
        self._control.attach(store.cursor)

    def _make_desk(self) -> BatchDesk | None:
        """What puts requests into batches, if any deployment has them, or an earlier session had."""
        stages, note = self._pipeline.stages, self._observer.note
        if not any(entry.batch.enabled for entry in self._experiment.deployments.values()):
            with self._store.cursor() as connection:
                if not has_batches(connection):
                    return None
        from infermesh.runs.batches.make import make_desk  # late, as workers are

        desk = make_desk(
            self._experiment,
            self._fleet,
            stages,
            self._store,
            self._folder,
            note=note,
            stop=lambda reason: None if self._stops else self._stop(reason),
            detach=self._detach,
        )
        if desk is not None:
            for name, stage in stages.items():
                if stage.batch_size > 1 and stage.model is not None and stage.model.route is not None:
                    note(f"stages.{name}.micro_batch_size counts as 1: a line of a batch has one text")
                    stage.batch_size = 1
            if self._workers:
                note("engine.workers: a run with batches is sent by one process; there is little to send")
                self._workers = 0
        return desk

    def restore_usage(self, outputs: Path) -> None:
        """Charge today's usage, by this run and by the runs below ``outputs``, to the daily quotas."""
        with self._store.cursor() as own:
            used = used_today(self._experiment, own, outputs, self._folder, self._observer.note, live=ask_run)
        for note in self._fleet.restore_usage(used):
            self._observer.note(note)

    def _check(self, connection: Connection, origins: Mapping[str, Sequence[Column]]) -> None:
        self._pipeline.check_columns(origins)
        if self._sink is not None:
            self._sink.check([column.name for column in origins[SOURCE]])
        self._filters = self._pipeline.filters(origins)
        check_sinks(connection, self._experiment.sinks)
        self._origins = origins

    def _record(self, signatures: Mapping[str, str]) -> dict[str, Any]:
        facts = {name: stage.facts for name, stage in self._pipeline.stages.items()}
        return run_record(self._declaration, signatures, facts)

    async def run(self) -> RunOutcome:
        """Run the pending rows; return when they are settled and committed, or drained after a stop.

        Raises
        ------
        StoreError
            The database could not be read or written.
        """
        # The handlers stay until the final status is written: KeyboardInterrupt before that would leave a run that
        # looks killed.
        with stopping(self._control, self._stop, self._drain):
            return await self._run()

    async def _run(self) -> RunOutcome:
        store, observer = self._store, self._observer
        self._loop = loop = asyncio.get_running_loop()
        started = time.monotonic()
        names = [
            name
            for name in self._pipeline.stages
            if self._retry is None or self._retry.may_send(name, store.origin_of(name))
        ]
        stats = RunStats({name: StageStats() for name in names})
        for wave in self._pipeline.waves:
            self._restore_counts(stats, self._pending_rows(wave))
        self._settled_before = {name: stage.settled for name, stage in stats.stages.items()}
        failure: list[Exception] = []

        def failed(error: Exception) -> None:
            failure.append(error)
            loop.call_soon_threadsafe(work.cancel)

        def committed(rows: int) -> None:
            loop.call_soon_threadsafe(self._committed, rows)

        telemetry = self._make_telemetry(stats)
        sinks = [self._sink.committed] if self._sink is not None else []
        takers = [*sinks, *([telemetry.take] if telemetry is not None else [])]

        def settled(rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
            for take in takers:
                take(rows)

        on_rows = settled if takers else None
        writer = store.writer(on_commit=committed, on_rows=on_rows, on_failure=failed)
        spent, before = store.totals()["cost_usd"], store.dearest_requests()
        self._guards = guards = Guards(self._experiment.guards, spent=spent, before=before)
        if self._workers:
            self._hub = self._make_hub(writer, stats, guards)
        self._work = work = asyncio.create_task(self._run_waves(stats, writer, guards))
        ticker = asyncio.create_task(self._tick(stats, guards))
        observer.start(stats)
        self.hands.begin()
        try:
            await asyncio.wait([work])
        finally:
            self.hands.end()
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            if self._hub is not None:
                await self._hub.aclose()
            if self._desk is not None:
                self._left = self._desk.left()
                await self._desk.aclose()
            await asyncio.to_thread(_close_quietly, writer)  # commits what is queued, after a cancel too
            if telemetry is not None:
                await asyncio.to_thread(telemetry.close)
            self._tell(self._fleet.unpriced())  # since the last tick
            stats.waits = []
            observer.stop(stats)
            await self._fleet.aclose()
        if failure:
            raise failure[0]
        if not work.cancelled() and (error := _unwrap_group(work.exception())) is not None:
            store.finish("crashed", time.monotonic() - started, reason=f"{type(error).__name__}: {error}")
            raise error
        if self._sink is not None:
            await asyncio.to_thread(self._sink.finish)
        return self._outcome(stats, time.monotonic() - started)

    def _make_telemetry(self, stats: RunStats) -> Telemetry | None:
        if self._experiment.telemetry == TelemetryConfig():
            return None
        from infermesh.runs.telemetry import Telemetry  # late: it takes a third of a second, and packages of its own

        return Telemetry(self._experiment, str(self._store.run_value("run_id")), stats, self._observer.note)

    async def _run_waves(self, stats: RunStats, writer: GroupWriter, guards: Guards) -> None:
        """Run the stages over the source, then each sql stage's query and the stages over its rows."""
        if self._desk is not None:
            await self._desk.start()
        for wave in self._pipeline.waves:
            if wave.query is not None:
                await asyncio.to_thread(writer.flush)  # the query must see every row of the waves before
                if self._retry is not None and self._lacks_rows(wave, stats):
                    break  # a resume runs it
                await asyncio.to_thread(self._materialize, wave)
            if wave.graph.stages:
                rows = self._pending_rows(wave)
                self._restore_counts(stats, rows)
                if self._known is not None and rows.chunks:
                    # Only now is it known which rows of this wave are retired: the query may just have retired some.
                    await asyncio.to_thread(self._known.collect_retired, wave.graph.stages)
                self._runner = runner = self._make_runner(wave, rows, writer, stats, guards)
                if self._stops:  # stopped before this runner existed, or while the query ran
                    runner.stop()
                if self._again is None or not isinstance(runner, Runner):
                    await runner.run(rows)
                else:
                    await self._again.run(runner, rows)
                    self._again = None
            if self._stops or (self._desk is not None and self._desk.waits):
                return
        self._complete = True

    def _make_runner(
        self, wave: Wave, rows: PendingRows, writer: GroupWriter, stats: RunStats, guards: Guards
    ) -> Runner | CrewWave:
        """What runs the stages of a wave: this process, or the workers."""
        graph = wave.graph
        scope = None if self._retry is None else self._retry.scope(wave.origin)
        if self._hub is not None:
            from infermesh.runs.crew.make import CrewWave

            known = self._known
            return CrewWave(
                self._hub,
                self._pipeline.waves.index(wave),
                graph,
                rows,
                lambda ids: self._pending_rows(wave, ids),
                stale=self._stale,
                keep_errors=self._keep_errors,
                scope=scope,
                known=[name for name in graph.stages if known is not None and known.knows(name)],
            )

        if self._desk is None:

            def make(again: SentAgain, scope: Collection[str]) -> Runner:
                return self._make_other(wave, again, writer, stats, guards, scope)

            self._again = SentAgain(wave, self._store, writer, make)

        async def reread(row_ids: Sequence[int]) -> PendingRows:
            await asyncio.to_thread(writer.flush)  # what the rows have settled meanwhile
            return await asyncio.to_thread(self._pending_rows, wave, row_ids)

        return Runner(
            graph,
            writer,
            stats,
            filters={name: self._filters[name] for name in graph.stages if name in self._filters},
            stale=self._stale,
            keep_errors=self._keep_errors,
            known=self._known,
            scope=scope,
            on_settled=self._guard_check(stats, guards) if guards else None,
            on_error=self._guard_check(stats, guards),
            budget=guards.budget(stats),
            desk=self._desk,
            failed=None if self._again is None else self._again.failed,
            reread=reread,
            windows=self._windows,
        )

    def _make_other(
        self,
        wave: Wave,
        again: SentAgain,
        writer: GroupWriter,
        stats: RunStats,
        guards: Guards,
        scope: Collection[str],
    ) -> Runner:
        """What sends failed rows of a wave again, beside its Runner."""
        filters = self._pipeline.filters(self._origins)  # of its own: a condition decides for one Runner at a time
        self._closing += filters.values()
        runner = Runner(
            wave.graph,
            writer,
            stats,
            filters={name: each for name, each in filters.items() if name in wave.graph.stages},
            stale=self._stale,
            keep_errors=False,
            scope=scope,
            on_settled=self._guard_check(stats, guards) if guards else None,
            on_error=self._guard_check(stats, guards),
            budget=guards.budget(stats),
            windows=self._windows,
            failed=again.failed,
            counted=True,
        )
        if self._stops:
            runner.stop()
        return runner

    def _make_hub(self, writer: GroupWriter, stats: RunStats, guards: Guards) -> Hub:
        from infermesh.runs.crew.make import make_hub  # late: a run of one process starts sooner without it

        return make_hub(
            self._workers,
            self._declaration,
            self._environ,
            self._origins,
            self._fleet,
            self._pipeline.stages,
            writer=writer,
            stats=stats,
            known=self._known,
            note=self._observer.note,
            check=self._guard_check(stats, guards),
            stop=lambda reason: None if self._stops else self._stop(reason),
        )

    def _pending_rows(self, wave: Wave, only: Sequence[int] | None = None) -> PendingRows:
        if only is None and self._retry is not None:
            only = self._retry.only(wave.origin)
        return self._store.reader(
            wave.graph.needed, origin=wave.origin, stale=self._stale, keep_errors=self._keep_errors, only=only
        )

    def _restore_counts(self, stats: RunStats, rows: PendingRows) -> None:
        """Set the counts of an origin's stages to what earlier sessions have settled."""
        total = rows.total
        for name, settled in rows.settled_counts().items():
            if (stage := stats.stages.get(name)) is None:  # a retry leaves it alone
                continue
            stage.total = total
            stage.done, stage.failed, stage.skipped = (settled.get(key, 0) for key in ("done", "error", "skipped"))

    def _materialize(self, wave: Wave) -> None:
        assert wave.query is not None
        end = self._store.end_of(wave.origin)
        made = self._store.materialize(wave.query)
        if made is not None:
            rows, added, gone = made
            lost = f", {gone} gone" if gone else ""
            self._observer.note(f"{wave.origin}: {counted(rows, 'row')}, {added} of them new{lost}")
            if self._retry is not None:
                self._retry.rows[wave.origin] = range(end, self._store.end_of(wave.origin))

    def _lacks_rows(self, wave: Wave, stats: RunStats) -> bool:
        """Whether rows that a wave's query reads are pending, which a retry leaves so."""
        assert wave.query is not None
        return not left_open(self._store.counts(), stats.not_redone).keys().isdisjoint(wave.query.reads)

    def _committed(self, rows: int) -> None:
        for runner in self._runners():
            runner.committed(rows)

    def _runners(self) -> list[Runner | CrewWave]:
        """What is at work: a wave's, and what sends failed rows of it again."""
        others = [] if self._again is None else [*self._again.others]
        return [*([] if self._runner is None else [self._runner]), *others]

    def _guard_check(self, stats: RunStats, guards: Guards) -> Callable[[], None]:
        def check() -> None:
            if not self._stops and (reason := guards.tripped(stats)):
                self._stop(reason)

        return check

    def _outcome(self, stats: RunStats, elapsed_s: float) -> RunOutcome:
        store = self._store
        if (displaced := store.displaced()) is not None:
            what, advice = displaced
            with contextlib.suppress(Exception):  # what is left may be damaged
                store.finish("crashed", elapsed_s, reason=what)
            raise StoreError(f"{what}. {advice}")
        counts = store.counts()
        # The stats count too: a row of a stale stage has an old answer in its table, but is pending until its request
        # has been compared.
        unsettled = not self._complete or any(stage.settled < stage.total for stage in stats.stages.values())
        others = left_open(counts, stats.not_redone) if self._retry is not None and self._complete else {}
        left = {name: found["pending"] for name, found in counts.items() if found.get("pending")}
        pending = unsettled or bool(left)
        failed = any(statuses.get("error") for statuses in counts.values()) or bool(stats.not_redone)
        status: RunStatus = "failed_rows" if failed else "done"
        if pending and self._stops:
            status = "interrupted" if self._stopped_by is None else "stopped"
        elif pending and self._left[0]:
            status = "waiting"
        elif others:
            status = "interrupted"
            self._observer.note(f"still pending, as before: {_rows_of(others)}; resume sends them")
        elif status != "waiting" and (
            unsettled or left != {name: rows for name, (rows, _) in stats.not_redone.items()}
        ):
            listed = _rows_of(left) or "of a changed stage"
            reason = f"the run came to its end, but rows are pending: {listed}. This is a bug; resume sends them."
            store.finish("crashed", elapsed_s, reason=reason)
            raise StoreError(reason)
        for name, (rows, example) in stats.not_redone.items():
            again = counted(rows, "row failed again and keeps its answer", "rows failed again and keep their answers")
            self._observer.note(f"{name}: {again}; resume sends what failed: {example}")
        if self._dropping and (dropped := self._dropped()):
            self._observer.note(
                f"{counted(dropped, 'sent request')} dropped: not answered yet, in attempts as 'stopped'; the server "
                "may charge for them, and a resume sends them again"
            )
        sinks = {} if status in ("interrupted", "waiting") else self._experiment.sinks
        with store.cursor() as connection:
            for line in where_remarks(connection, self._pipeline.stages) if self._complete else ():
                self._observer.note(line)
            files = write_sinks(connection, sinks, self._folder, self._place)
        signatures = None if pending and not others else self._signatures
        if signatures is not None and self._retry is not None:
            signatures = self._retry.signatures(signatures)
        if self._desk is not None:
            if status in ("done", "failed_rows"):
                self._desk.clear()
            if stale := self._desk.stale():
                words = counted(stale, "answer of a batch is", "answers of batches are")
                self._observer.note(f"{words} not used: the request has changed since it was submitted")
        store.finish(status, elapsed_s, reason=self._stopped_by, signatures=signatures)
        return RunOutcome(
            self._folder,
            self._experiment.name,
            status,
            counts,
            store.failures(),
            store.totals(),
            elapsed_s,
            stats.kept,
            stats.reused,
            self._stopped_by,
            files,
            store.invalid_answers(),
            batches=self._batches(),
            stages=self._stage_totals(stats, elapsed_s),
        )

    def _stage_totals(self, stats: RunStats, elapsed_s: float) -> dict[str, StageTotals]:
        found = {}
        for name, (reused, tokens, dollars) in self._store.stage_totals().items():
            counts = stats.stages.get(name)
            rows = 0 if counts is None else counts.settled - self._settled_before.get(name, 0)
            found[name] = StageTotals(reused, tokens, dollars, rows / elapsed_s if rows > 0 and elapsed_s else None)
        return found

    def _batches(self) -> InBatches | None:
        """What of the run went through batch APIs, over all sessions."""
        if self._desk is None:
            return None

        def price(label: str, usage: TokenUsage) -> float | None:
            found = self._fleet.deployments.get(label)
            return None if found is None or found.price is None else found.price(usage)

        with self._store.cursor() as connection:
            return in_batches(lambda query: connection.execute(query).fetchall(), price)

    def _dropped(self) -> int:
        """How many requests of this session were sent, and not waited for."""
        with self._store.cursor() as connection:
            query = "SELECT count(*) FROM attempts WHERE error_type = ? AND started_at >= ?"
            ((dropped,),) = connection.execute(query, [StoppedError.kind, self._began]).fetchall()
        return int(dropped)

    async def _tick(self, stats: RunStats, guards: Guards) -> None:
        check = self._guard_check(stats, guards)
        while True:
            await asyncio.sleep(_TICK_S)
            check()
            if not self._stops and (displaced := self._store.displaced()):
                self._stop(displaced[0])
            now = asyncio.get_running_loop().time()
            where = self._hub or self._fleet
            stats.paused = self.hands.paused_at is not None
            stats.waits = self.hands.waiting_for() or where.waiting_for()
            if self._desk is not None:
                stats.waits += self._desk.waiting_for()
            stats.waits = [*stats.waits, *guards.waiting_for]
            self._observer.tick(stats)
            self._tell((*where.used_up(), *where.waits(now), *stats.untold(where.told_of), *self._fleet.unpriced()))
            if not self._stops and (reason := self._fleet.unreachable(now)):
                self._stop(reason)

    def _tell(self, notes: Sequence[str]) -> None:
        for note in notes:
            logger.info("%s", note)
            self._observer.note(note)

    def cursor(self) -> Connection:
        """Another connection to the run's database, for use in another thread."""
        return self._store.cursor()

    def _stop(self, reason: str | None = None) -> None:
        """Drain at the first call; drop what is in flight at a user's second one, or 30 seconds after the first.

        Draining admits no row, sends no request and waits for those in flight. Dropping ends those too; their attempts
        are stored, their rows stay pending, and the next session sends them again.

        Parameters
        ----------
        reason
            The guard that stops the run; ``None`` for a user. A guard's call is never the one that cancels.
        """
        self._stops += 1
        if self._stops > 1:
            if reason is None:
                self._drop()
            return
        self._stopped_by = reason
        waiting = 0
        if self._runner is not None:
            waiting = self._runner.in_flight
        for runner in self._runners():
            runner.stop()
        why = f"stopping: {reason}" if reason else "stopping"
        self._observer.note(
            f"{why}: of {counted(waiting, 'row')} in flight, those already sent are waited for; Ctrl-C again drops them"
        )
        for stage in self._pipeline.stages.values():
            stage.stop()
        if self._desk is not None:
            batches, requests = self._desk.left()
            self._desk.stop()
            if batches:
                self._observer.note(
                    f"{counted(batches, 'batch', 'batches')} of {counted(requests, 'request')} stay at the provider, "
                    f"and will be paid for: {command('resume', self._folder)} collects the answers; to end them: "
                    f"{command('stop', self._folder, '--cancel-batches')}"
                )
        if self._loop is not None and self._work is not None:
            self._loop.call_later(_DRAIN_S, self._give_up)

    # What hands do

    @property
    def stopping(self) -> bool:
        """Whether it sends nothing more."""
        return self._stops > 0

    def pause(self, on: bool) -> None:
        """Send no request while ``on``; those in flight go on."""
        for stage in self._pipeline.stages.values():
            stage.pause(on)
        if self._hub is not None:
            self._hub.pause(on)
        if self._desk is not None:
            self._desk.pause(on)

    def adjust(self, made: Sequence[Adjustment]) -> None:
        """Go by other limits, windows, slots and weights."""
        adjust(self._fleet, self._pipeline.stages, made)
        for kind, name, value in made:
            if kind == "window":
                self._windows[name].resize(value)
        if self._hub is not None:
            self._hub.adjust(made)
        for runner in self._runners():
            runner.resized()

    async def send_again(self, stage: str, where: str) -> tuple[int, int]:
        """Send failed rows of a stage again, beside the others: as :meth:`~infermesh.runs.again.SentAgain.send`."""
        if self._again is None:
            why = "the run's rows are with workers" if self._hub is not None else "no stage over rows is at work"
            why = why if self._desk is None else "the run's rows go through batches"
            later = command("retry", self._folder, "--stage", stage)
            raise ConfigError(f"{why}: once it has ended, {later} sends them again")
        return await self._again.send(Redo(stage, where), self._pipeline.readers(stage))

    def set_budget(self, dollars: float | None) -> None:
        """Go by another ``guards.max_cost_usd``."""
        if self._guards is not None:
            self._guards.set_budget(dollars)

    def _drain(self) -> None:
        """Stop the run, if it is not stopping already."""
        if not self._stops:
            self._stop()

    def _give_up(self) -> None:
        """Drop what has not been answered by the end of a drain, and say so."""
        waiting = 0 if self._runner is None else self._runner.in_flight
        if waiting:
            dropped = counted(waiting, "row is", "rows are")
            self._observer.note(f"{dropped} dropped: no answer within {_DRAIN_S:g} s; resume sends what was dropped")
        self._drop()

    def _drop(self) -> None:
        self._dropping = True
        if self._hub is not None:
            self._hub.drop()
        if self._desk is not None:
            self._desk.drop()
        for stage in self._pipeline.stages.values():
            stage.stop(drop=True)
        if self._loop is not None and self._work is not None:
            self._loop.call_later(_DROP_S, self._work.cancel)

    def close(self) -> None:
        """Close the database and everything that uses it. Waits for a reader in another thread."""
        self._control.attach(None)
        for condition in (*self._filters.values(), *self._closing):
            condition.close()
        if self._known is not None:
            self._known.close()
        if self._sink is not None:
            self._sink.close()
        self._store.close()


def _unwrap_group(error: BaseException | None) -> BaseException | None:
    """The first ``InfermeshError`` in an exception group, which has a message for the user; else the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in map(_unwrap_group, error.exceptions):
            if isinstance(inner, InfermeshError):
                return inner
    return error


def _rows_of(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rows} of {name}" for name, rows in counts.items())


def _close_quietly(writer: GroupWriter) -> None:
    with contextlib.suppress(Exception):  # on_failure has reported it
        writer.close()


def _has_vectors(pipeline: Pipeline) -> bool:
    return any(column.type == "FLOAT[]" for stage in pipeline.stages.values() for column in stage.table.outputs)
