"""``infermesh run``, ``resume`` and ``retry``.

Hydra composes the config and calls :class:`_Job` for each job. ``resume`` and ``retry`` need no Hydra: they read the
config that the run stored in its database.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from infermesh.cli.closing import run_closing
from infermesh.cli.common import Progress, fail, print_error, split_config_dir, words_of
from infermesh.cli.detach import telling_when_begun
from infermesh.cli.edited import edited_since
from infermesh.cli.find_run import find_run, sweep_command
from infermesh.cli.progress import make_observer
from infermesh.cli.sweep import ANNOUNCE, Sweep, SweepJob
from infermesh.cli.terminal import guard_streams
from infermesh.config.another_engine import with_engine
from infermesh.config.compose import chosen_experiment, composition_error, overrides_of, plain, search_path
from infermesh.config.declaration import Declaration, declare
from infermesh.config.overrides import addable, refuse_inline
from infermesh.config.project import experiments, primary_folder, roots
from infermesh.config.understood import Understood, UsageError, understood
from infermesh.errors import ConfigError, InfermeshError
from infermesh.exact_json import loads
from infermesh.hints import command, counted, named, nearest, one_line
from infermesh.query.finding import group_words, runs_in
from infermesh.query.left import left_unfinished
from infermesh.query.reader import is_live
from infermesh.query.summary import RunInfo, describe, unfinished_runs
from infermesh.redaction import redact
from infermesh.runs.control import Control
from infermesh.runs.execute import execute
from infermesh.runs.stats import Observer
from infermesh.store.connection import connect, in_words
from infermesh.store.database import Redo
from infermesh.store.folders import CONFIG_FOLDER, claim_folder, discard, resolve_latest, run_folders, sweep_of
from infermesh.store.output_file import read_record
from infermesh.store.schema import DATABASE


def run_hydra(
    argv: list[str], env_file: Path | None = None, progress: Progress = Progress.AUTO, *, detach: bool = False
) -> int:
    """Compose with Hydra and run each job; with ``detach`` each ends once its batches are submitted.

    Returns
    -------
    int
        The exit code; for a sweep, that of its worst job.
    """
    if not argv:
        print("error: which experiment? infermesh run NAME", file=sys.stderr)
        _list_experiments()
        return 2
    _, config_dir = split_config_dir(argv)
    given = _understood(argv, config_dir)
    # hydra.main() reads sys.argv and nothing else, so the arguments are put there for the time of the call.
    # The config itself may ask for a multirun (hydra.mode), so there is always somebody to be told of one.
    sweep = Sweep(argv, env_file, progress)
    arguments = ["infermesh", *given.options, *map(addable, given.overrides), ANNOUNCE]
    job = _Job(config_dir, sweep, progress, detach)
    if "--hydra-help" in given.options:
        return _print_hydras_help(arguments, job)
    with _patched_argv(arguments), _hydra_raises(), search_path(config_dir):
        try:
            with sweep.announced():
                _hydra_main(job)()
        except InfermeshError:
            raise
        except Exception as error:
            with named(sweep.folder):
                fail(_before_the_job(error, job, config_dir))
    return sweep.report() if sweep.folder is not None or sweep.interrupted else job.code


def _understood(argv: list[str], config_dir: Path | None) -> Understood:
    """The arguments as Hydra takes them. What was decided is told; what is wrong ends the command."""
    try:
        given = understood(argv, Path.cwd(), config_dir)
        refuse_inline(given.overrides)  # here, because Hydra writes a sweep's to multirun.yaml before its first job
    except ConfigError as error:
        fail(str(error), code=2 if isinstance(error, UsageError) else 1)
    for note in given.notes:
        print(note, file=sys.stderr)
    return given


def _print_hydras_help(arguments: list[str], job: _Job) -> int:
    """Print what Hydra says of its options, with our command where it names the program."""
    said = io.StringIO()
    with (
        _patched_argv(arguments),
        search_path(None),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),  # Hydra ends so
    ):
        _hydra_main(job)()
    text = re.sub(
        r"^See https?://\S+.*\n|, see the \[\w+\]\(https?://[^)]*\) for details", "", said.getvalue(), flags=re.M
    )
    print(re.sub(r"\binfermesh -", "infermesh run -", text), end="")
    return 0


def _before_the_job(error: Exception, job: _Job, config_dir: Path | None) -> str:
    """What went wrong in Hydra, on one line. An error of a job itself is raised again."""
    try:
        return composition_error(error, job.home, config_dir)
    except Exception:
        if job.began or isinstance(error, OSError):  # Hydra makes the folder; what the system says is said as it is
            raise
        return f"Hydra cannot run this: {type(error).__name__}: {redact(one_line(error, 300))}"


def _hydra_main(job: _Job) -> Any:
    import hydra

    first = primary_folder(Path.cwd())
    return hydra.main(version_base="1.3", config_path=str(first), config_name="config")(job.run)


class _Job:
    """The task function that Hydra calls for each job.

    Some launchers run it in another process. They pickle it, so it holds only what can be pickled.
    """

    def __init__(self, config_dir: Path | None, sweep: Sweep, progress: Progress, detach: bool) -> None:
        self._progress = progress
        self._detach = detach
        self._config_dir = config_dir
        self._sweep = sweep
        self.home = Path.cwd()
        self._process = os.getpid()
        self.began = False
        self.code = 0

    def run(self, config: Any) -> int:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.began = True
        if os.getpid() != self._process:
            guard_streams()
        os.chdir(self.home)  # hydra.job.chdir: a declaration's paths are the project's all the same
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        with contextlib.suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
        folder = resolve_latest(folder)
        try:
            mapping, overrides = plain(config), overrides_of(hydra_config)
        except Exception as error:  # told here, as below
            print_error(composition_error(error, self.home, self._config_dir))
            self.code = 1
            return self.code
        search_roots = roots(Path.cwd(), self._config_dir, chosen_experiment(hydra_config))
        if hydra_config.mode == RunMode.MULTIRUN:
            job = SweepJob(self._sweep, hydra_config.job.num, folder, overrides)
            self.code = job.run(mapping, search_roots, partial(run_job, detach=self._detach))
            return self.code
        fresh = not any("hydra.run.dir" in override for override in hydra_config.overrides.hydra)
        if fresh:
            try:
                (folder / CONFIG_FOLDER).mkdir(parents=True)
            except FileExistsError:  # another run started in the same second and has this folder
                folder = claim_folder(folder)
        try:
            declaration = declare(mapping, search_roots, overrides)
        except ConfigError as error:  # printed here: Hydra would print a line of its own, with all overrides
            print_error(error)
            discard(folder)  # only now that it is ours: it may have been another run's
            self.code = 1
            return self.code
        if fresh and (left := left_unfinished(folder)) is not None:
            print(left, file=sys.stderr)
        self.code = run_job(declaration, folder, observer=make_observer(self._progress), detach=self._detach)
        return self.code


def run_job(
    declaration: Declaration,
    folder: Path,
    *,
    redo: Redo | None = None,
    observer: Observer | None = None,
    control: Control | None = None,
    brief: bool = False,
    keep_errors: bool = False,
    detach: bool = False,
) -> int:
    """Run or resume an experiment in a folder, with progress and a closing message on stderr.

    Parameters
    ----------
    redo
        Rows to send again although they are settled; for ``retry``.
    observer
        Shows progress; the one that suits stderr where it is not given.
    control
        Lets another thread stop the run; for a sweep's jobs.
    brief
        Leave out where the results are and how to continue; for a sweep's jobs.
    keep_errors
        Leave failed rows as they are.
    detach
        End once every batch is submitted.

    Returns
    -------
    int
        The exit code.
    """
    observer = telling_when_begun(observer or make_observer(), folder)
    try:
        outcome = execute(
            declaration,
            folder,
            observer=observer,
            redo=redo,
            control=control,
            keep_errors=keep_errors,
            detach=detach,
        )
    except KeyboardInterrupt:
        print("interrupted before the first request", file=sys.stderr)
        return 130
    except Exception as error:  # said here, since a sweep goes on with its next job
        if (words := words_of(error, folder)) is None:
            raise
        print_error(words)
        return 1
    print(run_closing(outcome, brief=brief), file=sys.stderr)
    for problem in outcome.files.errors:
        print(f"error: {problem}", file=sys.stderr)
    if outcome.files.errors:
        print(
            f"the run's own data is complete: {command('resume', outcome.folder)} writes the files again",
            file=sys.stderr,
        )
    return outcome.exit_code


def resume_run(
    name: str | None,
    overrides: Sequence[str] = (),
    *,
    keep_errors: bool = False,
    detach: bool = False,
    progress: Progress = Progress.AUTO,
) -> int:
    """Continue a run in its folder, with the config stored there. Without a name: the newest run, if it is unfinished.

    An older one is continued only if the user says so. Of several, one with pending rows is preferred.

    Parameters
    ----------
    overrides
        Of its engine: see :func:`~infermesh.config.another_engine.with_engine`.
    keep_errors
        Leave failed rows as they are.
    detach
        End once every batch is submitted.
    """
    if (group := runs_in(name)) is not None:
        again = sweep_command(group[0]) or "run it again by the command that started it, with its hydra.sweep.dir"
        fail(f"{group_words(*group)}. To go on with all that is left: {again}", code=2)
    found = describe(find_run(name)) if name is not None else _to_resume()
    if found is None:
        newest = describe(find_run(None))  # exits with an error if there is no run at all
        print("nothing to resume: no unfinished run below outputs/", file=sys.stderr)
        if newest.failed:
            print(
                f"the newest run finished with {counted(newest.failed, 'failed row state')}; "
                f"{command('resume', newest.folder)} retries them",
                file=sys.stderr,
            )
        return 0
    folder = found.folder
    words = f"{folder} ({found.experiment}: {found.status}, {counted(found.pending, 'row state')} pending)"
    if name is None and not _is_wanted(folder, words):
        return 2
    declaration = stored_declaration(folder)
    print(f"resuming {words}", file=sys.stderr)
    if (sweep := sweep_of(folder)) is not None and (whole := sweep_command(sweep)) is not None:
        print(f"it is one job of a sweep; to go on with all of them: {whole}", file=sys.stderr)
    _say_edited(folder, declaration)
    if overrides:
        try:
            declaration = with_engine(declaration, overrides, Path.cwd())
        except ConfigError as error:
            fail(str(error))
    return run_job(declaration, folder, observer=make_observer(progress), keep_errors=keep_errors, detach=detach)


def _to_resume() -> RunInfo | None:
    """The newest unfinished run that has pending rows; where none has any, the newest one, which is closed then."""
    aside: list[RunInfo] = []
    for found in unfinished_runs():
        if found.has_work:
            for other in aside:
                print(
                    f"left aside, as nothing is pending there: {other.folder} ({other.experiment}: {other.status}); "
                    f"{command('resume', other.folder)} takes it all the same",
                    file=sys.stderr,
                )
            return found
        aside.append(found)
    return aside[0] if aside else None


def _say_edited(folder: Path, declaration: Declaration) -> None:
    if (edited := edited_since(folder, declaration)) is not None:
        print(edited, file=sys.stderr)


def _is_wanted(folder: Path, words: str) -> bool:
    """Whether a run that nobody named may be resumed: the newest one, or one that the user on the terminal wants."""
    newest = run_folders()[0]
    if newest == folder:
        return True
    other = describe(newest)
    older = f"{words} is unfinished, but older than the newest run, {newest} ({other.experiment}: {other.status})"
    if sys.stdin.isatty() and sys.stderr.isatty():
        return typer.confirm(f"{older}. Resume it?", err=True)
    print(f"error: {older}. To resume it: {command('resume', folder)}", file=sys.stderr)
    return False


def retry_run(name: str | None, stage: str, where: str, *, dry_run: bool, progress: Progress = Progress.AUTO) -> int:
    """Send again the rows of a stage that match an SQL condition. Their number is printed first.

    A run that goes on is asked to send them itself.
    """
    folder = find_run(name, lambda job: command("retry", job, "--stage", stage))
    if is_live(folder) and not dry_run:
        from infermesh.cli.hands import retry_live

        retry_live(folder, stage, where)
        return 0
    declaration = stored_declaration(folder)
    redo = Redo(stage, where)
    over_rows = [name for name, config in declaration.experiment.stages.items() if config.kind != "sql"]
    if stage not in over_rows:
        fail(f"--stage {stage}: no such stage over rows.{nearest(stage, over_rows)}", code=2)
    try:
        with connect(folder / DATABASE, read_only=True) as connection:
            rows = redo.count(connection)
    except InfermeshError as error:
        fail(f"--{error}", code=2)
    print(f"{folder}: {counted(rows, 'row')} of {stage} where {where}", file=sys.stderr)
    if dry_run or not rows:
        return 0
    _say_edited(folder, declaration)
    return run_job(declaration, folder, observer=make_observer(progress), redo=redo)


def stored_declaration(folder: Path) -> Declaration:
    """Read the declaration that a run stored.

    Relative paths in it are looked up below the working directory first, then where the run looked them up.
    """
    path = folder / DATABASE
    row, output = None, None
    with connect(path, read_only=True) as connection, in_words(path):
        if connection.execute("SELECT 1 FROM duckdb_tables()").fetchone() is not None:
            row = connection.execute("SELECT config, roots FROM run").fetchone()
            output = read_record(connection)
    if output is not None:
        fail(f"{folder} is the checkpoint of {output.path}: run the command that made it again, with --resume")
    if row is None:
        fail(f"{path} holds no run: it ended before its source was loaded. Run it again.")
    kept = [Path(root) for root in loads(row[1])]
    try:
        return declare(loads(row[0]), [Path.cwd(), *(root for root in kept if root != Path.cwd())])
    except ConfigError as error:
        fail(str(error))


def _list_experiments() -> None:
    print(f"experiments: {', '.join(experiments(Path.cwd()))}", file=sys.stderr)


@contextlib.contextmanager
def _patched_argv(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise its errors.

    Without HYDRA_FULL_ERROR it prints an error with its own hints and exits, and no message of ours could replace it.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
