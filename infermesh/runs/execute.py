"""Run an experiment in a folder, from the declaration to the last commit. Every way to run one ends here."""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from infermesh.config.declaration import Declaration
from infermesh.config.schema import NotifyConfig
from infermesh.errors import InfermeshError
from infermesh.hints import command, one_line, system_words, visible
from infermesh.inputs.sources import resolve_source
from infermesh.query.server import LiveServer
from infermesh.runs.assemble import assembled, requests_at_once
from infermesh.runs.control import Control
from infermesh.runs.notify import facts_of, notify
from infermesh.runs.outcome import RunOutcome
from infermesh.runs.output_files import Sink
from infermesh.runs.remarks import refuse_missing_keys
from infermesh.runs.session import RunSession
from infermesh.runs.signals import interrupting
from infermesh.runs.stats import ForeignObserver, Observer
from infermesh.runs.watched import Watched
from infermesh.runtime.loop import run_loop
from infermesh.runtime.openfiles import allow_requests
from infermesh.runtime.whole_file import write_whole
from infermesh.store.connection import in_words
from infermesh.store.database import Redo
from infermesh.store.folders import CONFIG_FOLDER, LOG, discard, outputs_of, point_latest, remove_database
from infermesh.store.schema import DATABASE

logger = logging.getLogger("infermesh")


@interrupting()
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
    keep_errors: bool = False,
    detach: bool = False,
) -> RunOutcome:
    """Run an experiment in ``folder``, or resume the run that is there.

    If the run ends before its source is loaded, a new folder is removed and a resumed run's config files are restored.

    Parameters
    ----------
    folder
        Where ``run.duckdb`` is or will be.
    environ
        Where ``api_key_env`` is looked up.
    sink
        Also write the last stage's rows here as they settle. Such a folder is the checkpoint of one command: it gets
        neither a copy of the config nor a ``latest`` link. ``None`` writes to the store alone.
    redo
        Settled rows to send again; stages that read them are checked again, and no other row is sent.
        ``None`` for none.
    control
        Lets other threads stop the run and query its database. ``None`` if none need to.
    written
        Names of files that the caller wrote into a new folder for this run; they are removed with the folder, except
        that Ctrl-C leaves those of a ``sink``'s checkpoint.
    keep_errors
        Leave failed rows as they are in this session, whatever the declaration says.
    detach
        End once every batch is submitted, whatever the declaration says.

    Raises
    ------
    ConfigError
        The declaration names something that does not exist; nothing was sent.
    StoreError
        The database cannot be opened or written.
    OSError
        The folder or a file in it cannot be written.
    KeyboardInterrupt
        Ctrl-C before the first request. Later, Ctrl-C drains the run and raises nothing.
    """
    watched = Watched(ForeignObserver(observer, declaration.long_form.as_written))
    observer = watched
    fresh = not (folder / DATABASE).exists()
    # A refused declaration must leave no trace: a new folder is removed, and a resumed run gets back the config that
    # its rows were made with. Once the source is loaded nothing is removed, since `discard` spares a folder that holds
    # a database. Ctrl-C may come after the database has recorded the new declaration, so it keeps the new config.
    began = False
    before = {file: file.read_bytes() for file in (folder / CONFIG_FOLDER).glob("*.yaml")}
    try:
        if sink is None:
            _write_config(folder, declaration)
        with (
            in_words(folder / DATABASE),
            _session(
                declaration, folder, watched, environ, sink, redo, control or Control(), keep_errors, detach
            ) as session,
        ):
            began = True
            outcome: RunOutcome = run_loop(session.run())
            watched.over(outcome.exit_code)
    except (InfermeshError, OSError, KeyboardInterrupt) as error:
        if began:
            _tell(declaration, folder, observer, "crashed", reason=str(error))
        interrupted = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(OSError):  # a full disk, say: what is told is why the run ended
            if fresh:
                # What a checkpoint has kept of stdin stays after Ctrl-C, for --resume: it may not come a second time.
                kept = sink is not None and interrupted
                discard(folder, () if kept else written, with_parent=sink is None)
            elif not interrupted:
                for file, content in before.items():
                    write_whole(file, content)
        raise
    if sink is None and declaration.experiment.report:
        outcome.report = _report(folder, observer)
    _tell(declaration, folder, observer, outcome.status, outcome=outcome, reason=outcome.reason)
    return outcome


@contextlib.contextmanager
def _session(
    declaration: Declaration,
    folder: Path,
    observer: Watched,
    environ: Mapping[str, str],
    sink: Sink | None,
    redo: Redo | None,
    control: Control,
    keep_errors: bool,
    detach: bool,
) -> Iterator[RunSession]:
    """Open a session: load its source, log to ``run.log``, serve queries on the run's socket."""
    experiment = declaration.experiment
    if (warning := allow_requests(requests_at_once(experiment))) is not None:
        observer.note(warning)
    with ExitStack() as stack:
        fleet, pipeline = stack.enter_context(assembled(declaration, environ))
        with declaration.long_form.told():
            refuse_missing_keys(experiment, environ)
        source = resolve_source(experiment.source, declaration.roots)
        fresh = not (folder / DATABASE).exists()
        folder.mkdir(parents=True, exist_ok=True)
        # RunSession creates the database. One in which nothing ran must not look like a run to the next session, so it
        # is removed, after the stack has closed it. A database that existed before always stays.
        session = RunSession(
            declaration, folder, pipeline, fleet, observer, control, sink, keep_errors, environ, detach
        )
        session.hands.write_config = partial(_write_config, folder)
        stack.callback(session.close)
        try:
            session.load(source, redo)
            session.restore_usage(outputs_of(folder))
        except BaseException:
            if fresh:
                stack.close()
                remove_database(folder)
            raise
        if sink is None:
            point_latest(folder, experiment.name)
        stack.enter_context(_log_to(folder / LOG))
        stack.enter_context(LiveServer(folder, session.cursor, control.stop, session.hands.ask, observer.lines))
        yield session


def _tell(
    declaration: Declaration,
    folder: Path,
    observer: Observer,
    status: str,
    *,
    outcome: RunOutcome | None = None,
    reason: str | None = None,
) -> None:
    """Tell those who are to know how the run has ended. That this fails is told, and fails nothing."""
    experiment = declaration.experiment
    if experiment.notify == NotifyConfig():
        return
    facts = facts_of(experiment.name, folder, status, outcome=outcome, reason=reason)
    if (why := notify(experiment.notify, facts, folder)) is not None:
        observer.note(why)


def _report(folder: Path, observer: Observer) -> Path | None:
    """Write the page over the run, whose data is complete by now: what goes wrong here is told, and fails nothing."""
    from infermesh.pages.run import write_report  # its templates are read when they are needed

    try:
        return write_report(folder)
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        words = "interrupted" if interrupted else system_words(error) if isinstance(error, OSError) else one_line(error)
        observer.note(f"no report.html was written: {words}; try again: {command('report', folder)}")
        if not (interrupted or isinstance(error, InfermeshError | OSError)):
            with _log_to(folder / LOG):
                logger.exception("report.html could not be made")
        return None


def _write_config(folder: Path, declaration: Declaration) -> None:
    target = folder / CONFIG_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_dump(dict(declaration.mapping), sort_keys=False, allow_unicode=True)
    write_whole(target / "config.yaml", config.encode())
    if declaration.overrides is not None:
        write_whole(target / "overrides.yaml", yaml.safe_dump(list(declaration.overrides)).encode())


class _OneLine(logging.Formatter):
    """A message is one line, and a traceback is indented: a server's words forge no line and steer no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:
        return textwrap.indent(super().formatException(ei), "    ")


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    # Opened now: connections may use up the descriptors later.
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    before = logger.disabled, logger.level
    logger.disabled = False  # Hydra's logging config may have disabled every existing logger
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.disabled, logger.level = before
        handler.close()
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:  # nothing to tell
                path.unlink()
