"""One session of a run: a store, its stages, and one go at the pending rows, wave after wave."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.config.load import config_hash
from infermesh.config.schema import Experiment
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import InfermeshError, StoreError
from infermesh.inputs.sources import Source
from infermesh.query.reader import ask_run
from infermesh.query.sinks import check_sinks, write_sinks
from infermesh.runs.control import Control
from infermesh.runs.explain import changed, opening
from infermesh.runs.guards import Guards
from infermesh.runs.outcome import RunOutcome
from infermesh.runs.output_files import Sink
from infermesh.runs.record import git_revision
from infermesh.runs.runner import Runner
from infermesh.runs.stats import Observer, RunStats, StageStats
from infermesh.stages.graph import Pipeline, Wave
from infermesh.store import Column, GroupWriter, PendingRows, RunStore
from infermesh.store.database import Redo, utcnow
from infermesh.store.filter import RowFilter
from infermesh.store.known import KnownAnswers
from infermesh.store.schema import DATABASE
from infermesh.store.usage import used_today

logger = logging.getLogger("infermesh")

_TICK_S = 0.25
_DRAIN_S = 30.0


class RunSession:
    """A store, its stages and one go at the pending rows.

    Raises
    ------
    StoreError
        The database cannot be opened.
    """

    def __init__(
        self,
        experiment: Experiment,
        mapping: Mapping[str, Any],
        folder: Path,
        pipeline: Pipeline,
        fleet: Fleet,
        observer: Observer,
        sink: Sink | None = None,
        overrides: Sequence[str] | None = None,
        control: Control | None = None,
    ) -> None:
        self._control = control or Control()
        self._experiment = experiment
        self._mapping = mapping
        self._folder = folder
        self._pipeline = pipeline
        self._fleet = fleet
        self._observer = observer
        self._sink = sink
        self._overrides = overrides
        self._store = RunStore(folder / DATABASE, experiment.store)
        self._filters: dict[str, RowFilter] = {}
        self._stale: set[str] = set()
        self._signatures: dict[str, str] = {}
        self._known: KnownAnswers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: Runner | None = None
        self._work: asyncio.Task[None] | None = None
        self._stops = 0
        self._stopped_by: str | None = None  # a guard's reason; None where a user did
        self._complete = False

    def prepare(self, source: Source, roots: Sequence[Path], redo: Redo | None = None) -> None:
        """Load the source, check what is named against it, find what an edit has touched or is to be done again."""
        store, pipeline = self._store, self._pipeline
        tables = [stage.table for stage in pipeline.stages.values()]
        signatures = pipeline.signatures
        last = next(reversed(pipeline.stages.values()), None)
        if self._sink is not None and last is not None:
            self._sink.admit(store, last.table, last.facts, self._observer.note)
        changes: dict[str, str] = {}
        if not store.is_new:
            before = orjson.loads(store.run_value("signatures") or "{}")
            self._stale = {name for name, now in signatures.items() if before.get(name, now) != now}
            self._signatures = before | signatures
            facts = {name: pipeline.stages[name].facts for name in self._stale}
            changes = changed(store.facts(), facts)
        else:
            self._signatures = signatures
            self._observer.note(f"loading {source.shown} …")
        # Until they have all been looked at, rows of a stale stage may be of either declaration: no signature holds.
        unsure = self._signatures | dict.fromkeys(self._stale, "")
        store.prepare(
            source,
            tables,
            self._record(unsure, roots),
            queries=list(pipeline.queries.values()),
            check=self._check,
        )
        if self._sink is not None and last is not None:
            self._sink.open(stale=last.name in self._stale, keep_errors=self._experiment.keep_errors)
        if redo is not None:
            readers = pipeline.readers(redo.stage)
            self._stale |= readers
            rows = store.redo(redo, self._signatures | dict.fromkeys(self._stale, ""))
            self._observer.note(f"retry: {rows} rows of {redo.stage} are sent again")
            changes |= dict.fromkeys(readers, f"{redo.stage}, which it reads, is done again")
        # What is to be done again is asked for anew, not taken from elsewhere.
        able = [table for table in tables if redo is None or table.name != redo.stage]
        self._known = KnownAnswers.of(self._experiment, self._folder, store, able, self._observer.note)
        for line in opening(store, list(pipeline.stages), changes, keep_errors=self._experiment.keep_errors):
            self._observer.note(line)
        self._control.opened(store.cursor)

    def restore_usage(self, outputs: Path) -> None:
        """Count to the quotas of the day what was used of them before, by this run and by those below ``outputs``."""
        with self._store.cursor() as own:
            used = used_today(self._experiment, own, outputs, self._folder, self._observer.note, live=ask_run)
        for told in self._fleet.restore_usage(used):
            self._observer.note(told)

    def _check(self, connection: duckdb.DuckDBPyConnection, origins: Mapping[str, Sequence[Column]]) -> None:
        self._pipeline.check_columns(origins)
        self._filters = self._pipeline.filters(origins)
        check_sinks(connection, self._experiment.sinks)

    def _record(self, signatures: Mapping[str, str], roots: Sequence[Path]) -> dict[str, Any]:
        facts = {name: stage.facts for name, stage in self._pipeline.stages.items()}
        return {
            "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            "experiment": self._experiment.name,
            "config": orjson.dumps(self._mapping).decode(),  # as written: the order of stages and columns is kept
            "config_hash": config_hash(self._mapping),
            "git_revision": git_revision(),
            "versions": orjson.dumps(
                {name: importlib.metadata.version(name) for name in ("infermesh", "duckdb", "pyreqwest")}
                | {"python": platform.python_version()}
            ).decode(),
            "started_at": utcnow(),
            "signatures": orjson.dumps(signatures).decode(),
            "facts": orjson.dumps(facts, default=str, option=orjson.OPT_NON_STR_KEYS).decode(),
            "roots": orjson.dumps([str(root) for root in roots]).decode(),
            "overrides": None if self._overrides is None else orjson.dumps(list(self._overrides)).decode(),
        }

    async def run(self) -> RunOutcome:
        """Send what is pending; returns when it is settled and committed, or drained after a stop."""
        # Up to the last word in the database: an interrupt in between would leave a run that looks killed.
        with self._signals():
            return await self._run()

    async def _run(self) -> RunOutcome:
        store, observer = self._store, self._observer
        self._loop = loop = asyncio.get_running_loop()
        started = time.monotonic()
        stats = RunStats({name: StageStats() for name in self._pipeline.stages})
        for wave in self._pipeline.waves:
            self._count(stats, self._rows(wave))
        failure: list[Exception] = []

        def failed(error: Exception) -> None:
            failure.append(error)
            loop.call_soon_threadsafe(work.cancel)

        def committed(_: int) -> None:
            loop.call_soon_threadsafe(self._committed)

        settled = self._sink.committed if self._sink is not None else None
        writer = store.writer(on_commit=committed, on_rows=settled, on_failure=failed)
        guards = Guards(self._experiment.guards, spent=store.totals()["cost_usd"])
        self._work = work = asyncio.create_task(self._waves(stats, writer, guards))
        ticker = asyncio.create_task(self._tick(stats, guards))
        observer.start(stats)
        try:
            await asyncio.wait([work])
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            await asyncio.to_thread(_close_quietly, writer)
            observer.stop(stats)
            await self._fleet.aclose()
        if failure:
            raise failure[0]
        if not work.cancelled() and (error := _told(work.exception())) is not None:
            store.finish("crashed", time.monotonic() - started, reason=f"{type(error).__name__}: {error}")
            raise error
        if self._sink is not None:
            await asyncio.to_thread(self._sink.finish)
        return self._outcome(stats, time.monotonic() - started)

    async def _waves(self, stats: RunStats, writer: GroupWriter, guards: Guards) -> None:
        """The stages over the source, then each sql stage's query and the stages over its rows."""
        for wave in self._pipeline.waves:
            if wave.query is not None:
                await asyncio.to_thread(writer.flush)
                await asyncio.to_thread(self._materialize, wave)
            if wave.graph.stages:
                rows = self._rows(wave)
                self._count(stats, rows)
                if self._known is not None and rows.chunks:
                    await asyncio.to_thread(self._known.take_retired, wave.graph.stages)
                self._runner = runner = Runner(
                    wave.graph,
                    writer,
                    stats,
                    filters={name: self._filters[name] for name in wave.graph.stages if name in self._filters},
                    stale=self._stale,
                    keep_errors=self._experiment.keep_errors,
                    known=self._known,
                    after=self._guard(stats, guards) if guards else None,
                )
                if self._stops:
                    runner.stop()
                await runner.run(rows)
            if self._stops:
                return
        self._complete = True

    def _rows(self, wave: Wave) -> PendingRows:
        keep_errors = self._experiment.keep_errors
        return self._store.reader(wave.graph.needed, origin=wave.origin, stale=self._stale, keep_errors=keep_errors)

    def _count(self, stats: RunStats, rows: PendingRows) -> None:
        """Bring the counts of the stages over some rows to what is stored."""
        total = rows.total
        for name, settled in rows.settled_counts().items():
            stage = stats.stages[name]
            stage.total = total
            stage.done, stage.failed, stage.skipped = (settled.get(key, 0) for key in ("done", "error", "skipped"))

    def _materialize(self, wave: Wave) -> None:
        assert wave.query is not None
        made = self._store.materialize(wave.query)
        if made is not None:
            rows, added, gone = made
            self._observer.note(f"{wave.origin}: {rows} rows, {added} of them new" + (f", {gone} gone" if gone else ""))

    def _committed(self) -> None:
        if self._runner is not None:
            self._runner.committed()

    def _guard(self, stats: RunStats, guards: Guards) -> Any:
        def look() -> None:
            if not self._stops and (reason := guards.tripped(stats)):
                self._stop(reason)

        return look

    def _outcome(self, stats: RunStats, elapsed_s: float) -> RunOutcome:
        store = self._store
        counts = store.counts()
        # A row whose stage was edited has an older answer until it has been looked at: it counts as pending too.
        pending = not self._complete or any(stage.settled < stage.total for stage in stats.stages.values())
        failed = any(statuses.get("error") for statuses in counts.values())
        status = "failed_rows" if failed else "done"
        if pending and self._stops:
            status = "interrupted" if self._stopped_by is None else "stopped"
        sinks = {} if status == "interrupted" else self._experiment.sinks
        with store.cursor() as connection:
            files = write_sinks(connection, sinks, self._folder)
        store.finish(status, elapsed_s, reason=self._stopped_by, signatures=None if pending else self._signatures)
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
        )

    async def _tick(self, stats: RunStats, guards: Guards) -> None:
        look = self._guard(stats, guards)
        while True:
            await asyncio.sleep(_TICK_S)
            look()
            self._observer.tick(stats)
            for told in self._fleet.used_up():
                self._observer.note(told)

    def cursor(self) -> Any:
        """One more connection to the run's database, for a thread of its own."""
        return self._store.cursor()

    def _stop(self, reason: str | None = None) -> None:
        """First: drain. Second, or after half a minute: stop at once."""
        self._stops += 1
        if self._stops > 1:
            if self._work is not None and reason is None:
                self._work.cancel()
            return
        self._stopped_by = reason
        waiting = 0
        if self._runner is not None:
            waiting = sum(stage.in_flight for stage in self._runner.stats.stages.values())
            self._runner.stop()
        why = f"stopping: {reason}" if reason else "stopping"
        self._observer.note(
            f"{why}: of {waiting} rows in flight, those already sent are waited for; Ctrl-C again drops them"
        )
        for stage in self._pipeline.stages.values():
            stage.stop()
        if self._loop is not None and self._work is not None:
            self._loop.call_later(_DRAIN_S, self._work.cancel)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and whoever holds the control stop the run."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

        def drain() -> None:
            if not self._stops:
                self._stop()

        with self._control.stops(functools.partial(loop.call_soon_threadsafe, drain)):
            for number in numbers:
                loop.add_signal_handler(number, self._stop)
            try:
                yield
            finally:
                for number in numbers:
                    loop.remove_signal_handler(number)

    def close(self) -> None:
        """Close the filters and the database."""
        self._control.opened(None)
        for condition in self._filters.values():
            condition.close()
        if self._known is not None:
            self._known.close()
        if self._sink is not None:
            self._sink.close()
        self._store.close()


def _told(error: BaseException | None) -> BaseException | None:
    """The error to tell of: one with words for the user, where a group of tasks ended with such a one."""
    if isinstance(error, BaseExceptionGroup):
        for inner in map(_told, error.exceptions):
            if isinstance(inner, InfermeshError):
                return inner
    return error


def _close_quietly(writer: Any) -> None:
    with contextlib.suppress(StoreError, OSError):  # reported through on_failure already
        writer.close()
