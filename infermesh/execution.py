"""One run of an experiment, from the declaration to the last commit: what ``infermesh run`` and ``resume`` both do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from infermesh.collector import unhurried
from infermesh.config import Experiment, ModelStageConfig, load
from infermesh.control import Control
from infermesh.descriptors import allow_requests
from infermesh.fleet import Fleet
from infermesh.runsession import EXIT_CODES, Observer, RunOutcome, RunSession, config_hash
from infermesh.simulator.process import SimulatorProcess
from infermesh.sinks import Sink
from infermesh.sources import resolve
from infermesh.stages import StageContext, build_stages
from infermesh.stages.build import Pipeline
from infermesh.store.database import Redo
from infermesh.store.live import LiveServer
from infermesh.store.schema import DATABASE

__all__ = [
    "DATABASE",
    "EXIT_CODES",
    "Observer",
    "RunOutcome",
    "assembled",
    "config_hash",
    "execute",
    "outputs_of",
    "run_loop",
]

logger = logging.getLogger("infermesh")

NOWHERE = "http://127.0.0.1:9/v1"  # stands for the embedded simulator where nothing is asked of it


def execute(
    mapping: Mapping[str, Any],
    folder: Path,
    *,
    roots: Sequence[Path],
    observer: Observer,
    environ: Mapping[str, str] = os.environ,
    sink: Sink | None = None,
    overrides: Sequence[str] | None = None,
    redo: Redo | None = None,
    control: Control | None = None,
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
    redo
        Settled rows to send again; what reads them is looked at again.
    control
        Through which other threads stop the run and ask its database.
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
    if (told := allow_requests(_requests_at_once(experiment))) is not None:
        observer.note(told)
    with ExitStack() as stack:
        fleet, pipeline = stack.enter_context(assembled(experiment, roots, environ))
        source = resolve(experiment.source, roots)
        fresh, opened = not (folder / DATABASE).exists(), False
        folder.mkdir(parents=True, exist_ok=True)
        try:
            control = control or Control()
            session = RunSession(experiment, mapping, folder, pipeline, fleet, observer, sink, overrides, control)
            opened = True
            stack.callback(session.close)
            session.prepare(source, roots, redo)
            session.restore_usage(outputs_of(folder))
        except BaseException:
            if fresh and opened:  # else it is another process's, which was a moment quicker
                stack.close()
                for leftover in (folder / DATABASE, folder / f"{DATABASE}.wal"):
                    leftover.unlink(missing_ok=True)
            raise
        if sink is None:
            _point_latest(folder, experiment.name)
        stack.enter_context(_log_to(folder / "run.log"))
        stack.enter_context(LiveServer(folder, session.cursor, control.stop))
        outcome: RunOutcome = run_loop(session.run())
        return outcome


def _requests_at_once(experiment: Experiment) -> int:
    """The most that can be in flight: what the stages' windows hold, or the deployments' slots."""
    windows = sum(
        stage.max_parallel_requests for stage in experiment.stages.values() if isinstance(stage, ModelStageConfig)
    )
    slots = [entry.max_parallel_requests for entry in experiment.deployments.values()]
    return min(windows, sum(slot if slot is not None else windows for slot in slots))


def outputs_of(folder: Path) -> Path:
    """The folder that holds all runs: the one called ``outputs`` above a run's, else that of the working directory."""
    return next((parent for parent in folder.absolute().parents if parent.name == "outputs"), Path.cwd() / "outputs")


@contextlib.contextmanager
def assembled(
    experiment: Experiment, roots: Sequence[Path], environ: Mapping[str, str], *, simulator_url: str | None = None
) -> Iterator[tuple[Fleet, Pipeline]]:
    """What a declaration says, ready to be asked; the embedded simulator, where it asks for one, ends with it.

    With a ``simulator_url`` that stands for the embedded simulator, none is started.

    Raises
    ------
    ConfigError
        The declaration names what is not there.
    """
    with ExitStack() as stack:
        stack.enter_context(_importable(roots))
        if experiment.uses_simulator and simulator_url is None:
            simulator_url = stack.enter_context(SimulatorProcess(experiment.simulator)).url
        fleet = Fleet(experiment, simulator_url=simulator_url, environ=environ)
        pipeline = build_stages(experiment, StageContext(fleet.models, roots))
        for stage in pipeline.stages.values():
            stack.callback(stage.close)
        yield fleet, pipeline


def run_loop(main: Any) -> Any:
    """Run a coroutine on a loop of its own, uvloop's where there is one, without hurry in collecting garbage."""
    with unhurried():
        try:
            import uvloop
        except ImportError:
            return asyncio.run(main)
        else:
            return uvloop.run(main)


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
    handler = logging.FileHandler(path, encoding="utf-8")  # now: later there may be no descriptor left
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
