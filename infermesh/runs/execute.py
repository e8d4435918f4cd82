"""One run of an experiment, from the declaration to the last commit: what ``infermesh run`` and ``resume`` both do."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from infermesh.config.compose import check_chosen
from infermesh.config.load import config_hash, load
from infermesh.config.schema import Experiment, ModelStageConfig
from infermesh.errors import InfermeshError
from infermesh.inputs.sources import resolve_source
from infermesh.query.server import LiveServer
from infermesh.runs.assemble import assembled
from infermesh.runs.control import Control
from infermesh.runs.outcome import EXIT_CODES, RunOutcome
from infermesh.runs.output_files import Sink
from infermesh.runs.session import RunSession
from infermesh.runs.stats import Observer
from infermesh.runtime.loop import run_loop
from infermesh.runtime.openfiles import allow_requests
from infermesh.store.database import Redo
from infermesh.store.folders import outputs_of, point_latest
from infermesh.store.schema import DATABASE
from infermesh.transports.http.reqwest import import_for_good

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
        source = resolve_source(experiment.source, roots)
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
            point_latest(folder, experiment.name)
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


_OURS = frozenset({".hydra", "run.log"})


def launch(
    mapping: Mapping[str, Any],
    folder: Path,
    roots: Sequence[Path],
    *,
    observer: Observer,
    overrides: Sequence[str] | None = None,
    redo: Redo | None = None,
    environ: Mapping[str, str] = os.environ,
    control: Control | None = None,
    written: Collection[str] = (),
) -> RunOutcome:
    """Run an experiment in a folder, or go on with the run that is there; parameters as :func:`execute` takes them.

    Where nothing was run, a new folder is gone again, with the files in it that the caller has ``written`` for the run,
    and an old one's config is what it was.

    Raises
    ------
    ConfigError
        No experiment was chosen, or the declaration is wrong.
    StoreError
        The database cannot be opened or written.
    KeyboardInterrupt
        Before the first request; later, it drains the run.
    """
    fresh = not (folder / DATABASE).exists()
    kept = {file: file.read_bytes() for file in (folder / ".hydra").glob("*.yaml")}
    if threading.current_thread() is not threading.main_thread():
        import_for_good("pyreqwest.client")
    try:
        check_chosen(mapping)
        load(mapping)  # before anything is written: an inline key must not reach the folder
        _write_config(folder, mapping, overrides)
        return execute(
            mapping,
            folder,
            roots=roots,
            observer=observer,
            overrides=overrides,
            redo=redo,
            environ=environ,
            control=control,
        )
    except (InfermeshError, KeyboardInterrupt) as error:
        if fresh:
            _discard(folder, {*_OURS, *written})
        elif not isinstance(error, KeyboardInterrupt):
            for file, content in kept.items():  # what stands there is what was run
                file.write_bytes(content)
        raise


def _write_config(folder: Path, mapping: Mapping[str, Any], overrides: Sequence[str] | None) -> None:
    target = folder / ".hydra"
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.yaml").write_text(yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))
    if overrides is not None:
        (target / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


def _discard(folder: Path, ours: Collection[str]) -> None:
    """Remove a folder in which nothing ran, unless it holds something that is not ours."""
    if folder.is_dir() and all(item.name in ours for item in folder.iterdir()):
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
