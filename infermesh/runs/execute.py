"""One run of an experiment in a folder, from the declaration to the last commit: every way to run one ends here."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import yaml

from infermesh.config.declaration import Declaration
from infermesh.config.schema import Experiment, ModelStageConfig
from infermesh.errors import InfermeshError
from infermesh.inputs.sources import resolve_source
from infermesh.query.server import LiveServer
from infermesh.runs.assemble import assembled
from infermesh.runs.control import Control
from infermesh.runs.outcome import RunOutcome
from infermesh.runs.output_files import Sink
from infermesh.runs.session import RunSession
from infermesh.runs.stats import Observer
from infermesh.runtime.loop import run_loop
from infermesh.runtime.openfiles import allow_requests
from infermesh.store.database import Redo
from infermesh.store.folders import CONFIG_FOLDER, LOG, discard, outputs_of, point_latest
from infermesh.store.schema import DATABASE

logger = logging.getLogger("infermesh")


def execute(
    declaration: Declaration,
    folder: Path,
    *,
    observer: Observer,
    environ: Mapping[str, str] = os.environ,
    sink: Sink | None = None,
    redo: Redo | None = None,
    control: Control | None = None,
    written: Collection[str] = (),
) -> RunOutcome:
    """Run an experiment in ``folder``, or go on with the run that is there.

    Where it ends before its source is loaded, a new folder is removed again, and an old one's config is what it was.

    Parameters
    ----------
    declaration
        What to run.
    folder
        Where ``run.duckdb`` is or will be.
    environ
        Where ``api_key_env`` looks.
    sink
        Where the rows of the last stage go as well, as they settle. Such a folder is one command's checkpoint: it gets
        neither a copy of the config nor a ``latest`` beside it.
    redo
        Settled rows to send again; what reads them is looked at again.
    control
        Through which other threads stop the run and query its database.
    written
        Names of files that the caller has put into a new folder for this run; they are removed with it.

    Raises
    ------
    ConfigError
        The declaration names what is not there; nothing was sent.
    StoreError
        The database cannot be opened or written.
    KeyboardInterrupt
        Before the first request; later, it drains the run.
    """
    fresh = not (folder / DATABASE).exists()
    before = {file: file.read_bytes() for file in (folder / CONFIG_FOLDER).glob("*.yaml")}
    try:
        if sink is None:
            _write_config(folder, declaration)
        with _session(declaration, folder, observer, environ, sink, redo, control or Control()) as session:
            outcome: RunOutcome = run_loop(session.run())
            return outcome
    except (InfermeshError, KeyboardInterrupt) as error:
        if fresh:
            discard(folder, written)
        elif not isinstance(error, KeyboardInterrupt):
            for file, content in before.items():
                file.write_bytes(content)
        raise


@contextlib.contextmanager
def _session(
    declaration: Declaration,
    folder: Path,
    observer: Observer,
    environ: Mapping[str, str],
    sink: Sink | None,
    redo: Redo | None,
    control: Control,
) -> Iterator[RunSession]:
    """A session whose source is loaded, which logs into its folder and answers queries from outside."""
    experiment = declaration.experiment
    if (warning := allow_requests(_requests_at_once(experiment))) is not None:
        observer.note(warning)
    with ExitStack() as stack:
        fleet, pipeline = stack.enter_context(assembled(declaration, environ))
        source = resolve_source(experiment.source, declaration.roots)
        fresh = not (folder / DATABASE).exists()
        folder.mkdir(parents=True, exist_ok=True)
        session = RunSession(declaration, folder, pipeline, fleet, observer, control, sink)
        stack.callback(session.close)
        try:
            session.prepare(source, redo)
            session.restore_usage(outputs_of(folder))
        except BaseException:
            if fresh:
                stack.close()
                _remove_database(folder)
            raise
        if sink is None:
            point_latest(folder, experiment.name)
        stack.enter_context(_log_to(folder / LOG))
        stack.enter_context(LiveServer(folder, session.cursor, control.stop))
        yield session


def _requests_at_once(experiment: Experiment) -> int:
    """The most that can be in flight: what the stages' windows hold, or the deployments' slots."""
    windows = sum(
        stage.max_parallel_requests for stage in experiment.stages.values() if isinstance(stage, ModelStageConfig)
    )
    slots = [entry.max_parallel_requests for entry in experiment.deployments.values()]
    return min(windows, sum(slot if slot is not None else windows for slot in slots))


def _write_config(folder: Path, declaration: Declaration) -> None:
    target = folder / CONFIG_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_dump(dict(declaration.mapping), sort_keys=False, allow_unicode=True)
    (target / "config.yaml").write_text(config, encoding="utf-8")
    if declaration.overrides is not None:
        (target / "overrides.yaml").write_text(yaml.safe_dump(list(declaration.overrides)), encoding="utf-8")


def _remove_database(folder: Path) -> None:
    """Remove a database that this process has made and closed, and in which nothing was run."""
    for leftover in (folder / DATABASE, folder / f"{DATABASE}.wal"):
        leftover.unlink(missing_ok=True)


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
