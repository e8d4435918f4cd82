"""One run of an experiment, from the declaration to the last commit: what ``infermesh run`` and ``resume`` both do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from infermesh.config import Experiment, load
from infermesh.errors import StoreError
from infermesh.fleet import Fleet
from infermesh.runner import Runner, RunStats, StageStats
from infermesh.simulator.process import SimulatorProcess
from infermesh.sinks import Sink
from infermesh.sources import resolve
from infermesh.stages import StageContext, build_stages
from infermesh.stages.build import StageGraph
from infermesh.store import Column, RunStore
from infermesh.store.database import PendingRows, utcnow
from infermesh.store.filter import RowFilter
from infermesh.store.live import LiveServer
from infermesh.store.schema import DATABASE as DATABASE

logger = logging.getLogger("infermesh")

_TICK_S = 0.25
_DRAIN_S = 30.0


class Observer(Protocol):
    """Who watches a run: the terminal, a log, a test."""

    def note(self, text: str) -> None:
        """Say something once."""
        ...

    def start(self, stats: RunStats) -> None:
        """The first row is about to go."""
        ...

    def tick(self, stats: RunStats) -> None:
        """A few times a second."""
        ...

    def stop(self, stats: RunStats) -> None:
        """No more rows."""
        ...


@dataclass(slots=True)
class RunOutcome:
    """How a session of a run ended. ``failures`` is ``(stage, error_type, rows, example)``."""

    folder: Path
    experiment: str
    status: str
    counts: dict[str, dict[str, int]]
    failures: list[tuple[str, str, int, str]]
    totals: dict[str, Any]
    elapsed_s: float

    @property
    def exit_code(self) -> int:
        """0 complete, 3 finished with failed rows, 130 interrupted."""
        return {"done": 0, "failed_rows": 3, "interrupted": 130}[self.status]


def execute(
    mapping: Mapping[str, Any],
    folder: Path,
    *,
    roots: Sequence[Path],
    observer: Observer,
    environ: Mapping[str, str] = os.environ,
    sink: Sink | None = None,
    overrides: Sequence[str] | None = None,
) -> RunOutcome:
    """Run an experiment in ``folder``, or go on with the run that is there.

    Parameters
    ----------
    mapping
        The composed config, as plain dicts, lists and scalars.
    folder
        Where ``run.duckdb`` is or will be.
    roots
        What relative paths are relative to, first match wins.
    overrides
        What the caller changed of the declaration, as Hydra writes it; kept in the ``run`` table. ``None`` leaves what
        stands there.
    sink
        Where the rows of the last stage go as well, as they settle. Such a folder is one command's checkpoint: it gets
        no ``latest`` beside it.

    Raises
    ------
    ConfigError
        The declaration is wrong; nothing was sent, and a new folder is left without a database.
    StoreError
        The database cannot be opened or written.
    """
    experiment = load(mapping)
    with ExitStack() as stack:
        fleet, graph = stack.enter_context(assembled(experiment, roots, environ))
        source = resolve(experiment.source, roots)
        fresh, opened = not (folder / DATABASE).exists(), False
        folder.mkdir(parents=True, exist_ok=True)
        try:
            session = _Session(experiment, mapping, folder, graph, fleet, observer, sink, overrides)
            opened = True
            stack.callback(session.close)
            session.prepare(source, roots)
        except BaseException:
            if fresh and opened:  # else it is another process's, which was a moment quicker
                stack.close()
                for leftover in (folder / DATABASE, folder / f"{DATABASE}.wal"):
                    leftover.unlink(missing_ok=True)
            raise
        if sink is None:
            _point_latest(folder, experiment.name)
        stack.enter_context(_log_to(folder / "run.log"))
        stack.enter_context(LiveServer(folder, session.cursor, session.request_stop))
        outcome: RunOutcome = run_loop(session.run())
        return outcome


@contextlib.contextmanager
def assembled(
    experiment: Experiment, roots: Sequence[Path], environ: Mapping[str, str]
) -> Iterator[tuple[Fleet, StageGraph]]:
    """What a declaration says, ready to be asked; the embedded simulator, where it asks for one, ends with it.

    Raises
    ------
    ConfigError
        The declaration names what is not there.
    """
    with ExitStack() as stack:
        stack.enter_context(_importable(roots))
        simulator = None
        if experiment.uses_simulator:
            simulator = stack.enter_context(SimulatorProcess(experiment.simulator))
        fleet = Fleet(experiment, simulator_url=simulator.url if simulator else None, environ=environ)
        yield fleet, build_stages(experiment, StageContext(fleet.models, roots))


def run_loop(main: Any) -> Any:
    """Run a coroutine on a loop of its own, uvloop's where there is one.

    Rows make many objects and few cycles: with the collector's usual thresholds it would stop the loop for tens of
    milliseconds every second, to find next to nothing.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    else:
        return uvloop.run(main)
    finally:
        gc.set_threshold(*before)


class _Session:
    """A store, its stages and one go at the pending rows."""

    def __init__(
        self,
        experiment: Experiment,
        mapping: Mapping[str, Any],
        folder: Path,
        graph: StageGraph,
        fleet: Fleet,
        observer: Observer,
        sink: Sink | None = None,
        overrides: Sequence[str] | None = None,
    ) -> None:
        self._overrides = overrides
        self._experiment = experiment
        self._mapping = mapping
        self._folder = folder
        self._graph = graph
        self._fleet = fleet
        self._observer = observer
        self._sink = sink
        self._store = RunStore(folder / DATABASE, experiment.store)
        self._filters: dict[str, RowFilter] = {}
        self._stale: set[str] = set()
        self._signatures: dict[str, str] = {}
        self._interrupts = 0
        self._stop_lock = threading.Lock()
        self._stop_asked = False
        self._stop: Callable[[], object] | None = None

    def cursor(self) -> Any:
        """One more connection to the run's database."""
        return self._store.cursor()

    def request_stop(self) -> None:
        """Drain, as the first Ctrl-C does. From any thread; before the first row it holds from then on."""
        with self._stop_lock:
            self._stop_asked = True
            if self._stop is not None:
                self._stop()

    def prepare(self, source: Any, roots: Sequence[Path]) -> None:
        """Load the source, check what is named against it, find what an edit has touched."""
        store, graph = self._store, self._graph
        tables = [stage.table for stage in graph.stages.values()]
        signatures = graph.signatures
        *_, last = graph.stages.values()
        if self._sink is not None:
            self._sink.admit(store, last.table, last.facts, self._observer.note)
        if not store.is_new:
            before = orjson.loads(store.run_value("signatures") or "{}")
            self._stale = {name for name, now in signatures.items() if before.get(name, now) != now}
            self._signatures = before | signatures
        else:
            self._signatures = signatures
            self._observer.note(f"loading {', '.join(source.files[:3]) or 'the source query'} …")
        # Until they have all been looked at, rows of a stale stage may be of either declaration: no signature holds.
        unsure = self._signatures | dict.fromkeys(self._stale, "")
        store.prepare(source, tables, self._record(unsure, roots), check=self._check)
        if self._sink is not None:
            self._sink.open(stale=last.name in self._stale, keep_errors=self._experiment.keep_errors)

    def _check(self, columns: Sequence[Column]) -> None:
        if not columns:
            return  # an empty file tells of no columns, and no row will ask for them
        self._graph.check_columns(columns)
        for name, stage in self._graph.stages.items():
            if stage.where is not None:
                upstream = {other: self._graph.stages[other].table for other in self._graph.requires[name]}
                self._filters[name] = RowFilter(stage.where, f"stages.{name}.where", columns, upstream)

    def _record(self, signatures: Mapping[str, str], roots: Sequence[Path]) -> dict[str, Any]:
        config = orjson.dumps(self._mapping, option=orjson.OPT_SORT_KEYS)
        return {
            "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            "experiment": self._experiment.name,
            "config": config.decode(),
            "config_hash": hashlib.blake2b(config, digest_size=16).hexdigest(),
            "git_revision": _git_revision(),
            "versions": orjson.dumps(
                {name: importlib.metadata.version(name) for name in ("infermesh", "duckdb", "pyreqwest")}
                | {"python": platform.python_version()}
            ).decode(),
            "started_at": utcnow(),
            "signatures": orjson.dumps(signatures).decode(),
            "roots": orjson.dumps([str(root) for root in roots]).decode(),
            "overrides": None if self._overrides is None else orjson.dumps(list(self._overrides)).decode(),
        }

    async def run(self) -> RunOutcome:
        """Send what is pending; returns when it is settled and committed, or drained after an interrupt."""
        store, graph, observer = self._store, self._graph, self._observer
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        keep_errors = self._experiment.keep_errors
        rows = store.reader(graph.needed, stale=self._stale, keep_errors=keep_errors)
        stats = self._stats(rows)
        failure: list[Exception] = []

        def failed(error: Exception) -> None:
            failure.append(error)
            loop.call_soon_threadsafe(work.cancel)

        def committed(_: int) -> None:
            loop.call_soon_threadsafe(runner.committed)

        settled = self._sink.committed if self._sink is not None else None
        writer = store.writer(on_commit=committed, on_rows=settled, on_failure=failed)
        runner = Runner(graph, writer, stats, filters=self._filters, stale=self._stale, keep_errors=keep_errors)
        work = asyncio.create_task(runner.run(rows))
        ticker = asyncio.create_task(self._tick(stats))
        self._observer.start(stats)
        try:
            with self._signals(runner, work):
                await _settled(work)
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            await asyncio.to_thread(_close_quietly, writer)
            observer.stop(stats)
            await self._fleet.aclose()
        if failure:
            raise failure[0]
        if not work.cancelled() and (error := work.exception()) is not None:
            store.finish("crashed", time.monotonic() - started, reason=f"{type(error).__name__}: {error}")
            raise error
        if self._sink is not None:
            await asyncio.to_thread(self._sink.finish)
        return self._outcome(stats, time.monotonic() - started)

    def _outcome(self, stats: RunStats, elapsed_s: float) -> RunOutcome:
        counts = self._store.counts()
        # A row whose stage was edited has an older answer until it has been looked at: it counts as pending too.
        pending = any(stage.settled < stage.total for stage in stats.stages.values())
        failed = any(statuses.get("error") for statuses in counts.values())
        status = "interrupted" if self._interrupts and pending else "failed_rows" if failed else "done"
        self._store.finish(status, elapsed_s, signatures=None if pending else self._signatures)
        return RunOutcome(
            self._folder,
            self._experiment.name,
            status,
            counts,
            self._store.failures(),
            self._store.totals(),
            elapsed_s,
        )

    def _stats(self, rows: PendingRows) -> RunStats:
        total = self._store.total
        stages = {}
        for name, settled in rows.settled_counts().items():
            stages[name] = StageStats(total, settled.get("done", 0), settled.get("error", 0), settled.get("skipped", 0))
        pending = sum(stage.total - stage.settled for stage in stages.values())
        self._observer.note(self._opening(total, pending))
        return RunStats({name: stages[name] for name in self._graph.stages})

    def _opening(self, total: int, pending: int) -> str:
        stages = len(self._graph.stages)
        if self._store.is_new:
            return f"{total} rows × {stages} stages"
        text = f"resuming: {total * stages - pending} of {total * stages} row states are settled, {pending} to do"
        if self._stale:
            text += f"; changed since, and looked at again: {', '.join(sorted(self._stale))}"
        return text

    async def _tick(self, stats: RunStats) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._observer.tick(stats)

    @contextlib.contextmanager
    def _signals(self, runner: Runner, work: asyncio.Task[None]) -> Iterator[None]:
        """First Ctrl-C or SIGTERM: drain. Second, or after half a minute: stop at once."""
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            self._interrupts += 1
            if self._interrupts == 1:
                waiting = sum(stage.in_flight for stage in runner.stats.stages.values())
                self._observer.note(
                    f"stopping: of {waiting} rows in flight, those already sent are waited for; Ctrl-C again drops them"
                )
                runner.stop()
                self._fleet.stop()
                loop.call_later(_DRAIN_S, work.cancel)
            else:
                work.cancel()

        def asked() -> None:
            if not self._interrupts:
                interrupt()

        numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            numbers = ()
        for number in numbers:
            loop.add_signal_handler(number, interrupt)
        with self._stop_lock:
            self._stop = functools.partial(loop.call_soon_threadsafe, asked)
            if self._stop_asked:
                self._stop()
        try:
            yield
        finally:
            with self._stop_lock:
                self._stop = None
            for number in numbers:
                loop.remove_signal_handler(number)

    def close(self) -> None:
        """Close the filters and the database."""
        for condition in self._filters.values():
            condition.close()
        if self._sink is not None:
            self._sink.close()
        self._store.close()


async def _settled(work: asyncio.Task[None]) -> None:
    await asyncio.wait([work])


def _close_quietly(writer: Any) -> None:
    with contextlib.suppress(StoreError, OSError):  # reported through on_failure already
        writer.close()


def _git_revision() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _point_latest(folder: Path, experiment: str) -> None:
    """``outputs/<experiment>/latest`` → the run, where it lies below such a folder (a sweep's jobs one level deeper).

    A file system without symbolic links goes without.
    """
    home = next((parent for parent in list(folder.absolute().parents)[:2] if parent.name == experiment), None)
    if home is None:
        return
    temporary = home / f".latest-{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.symlink_to(folder.absolute().relative_to(home))
        temporary.replace(home / "latest")


@contextlib.contextmanager
def _importable(roots: Sequence[Path]) -> Iterator[None]:
    """Let ``module:name`` in a config import from the roots."""
    added = [str(root) for root in roots if str(root) not in sys.path]
    sys.path[:0] = added
    try:
        yield
    finally:
        for root in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(root)


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.disabled, logger.level
    logger.disabled = False  # composing a config may have silenced every logger there was
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.disabled, logger.level = before
        handler.close()
