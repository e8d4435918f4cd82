"""Runs from Python: :func:`run` starts or resumes a run, :func:`open_run` opens an existing one."""

from __future__ import annotations

import asyncio
import html
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from inspect import getattr_static
from pathlib import Path
from typing import Any, Literal

import orjson
from dotenv import dotenv_values

from infermesh.config.compose import Composed, compose
from infermesh.config.declaration import Declaration, declared
from infermesh.config.overrides import from_mapping
from infermesh.config.project import roots
from infermesh.errors import ConfigError, StoreError, StoreInUseError
from infermesh.exact_json import try_enums
from infermesh.query.finding import group_words, named_run, runs_in
from infermesh.query.reader import RunReader, request_stop
from infermesh.query.relation import Prepare, Relation, html_table
from infermesh.runs.execute import execute
from infermesh.runs.outcome import EXIT_CODES, RunOutcome
from infermesh.runs.progress import PlainLines
from infermesh.runs.stats import ForeignObserver, Observer
from infermesh.runs.threads import RunThread, claim, running_in
from infermesh.runtime.foreign import words_of
from infermesh.store.folders import OUTPUTS, claim_folder, discard, resolve_latest
from infermesh.store.schema import DATABASE, status_now

__all__ = ["Run", "open_run", "run"]

ROWS = "rows.jsonl"


def run(
    experiment: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    config_dir: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    folder: str | Path | None = None,
    env: Mapping[str, str] | str | Path | None = None,
    progress: Callable[[str], object] | Observer | bool | None = None,
    wait: bool = True,
) -> Run:
    """Run an experiment, or resume the run that is in ``folder``.

    The run has its own thread and event loop, so this works in scripts, threads, notebooks and async code. Failed rows
    raise nothing: check :attr:`Run.status` or :meth:`Run.failures`.

    Parameters
    ----------
    experiment, overrides, config_dir
        The same as in ``infermesh run NAME OVERRIDE … --config-dir DIR``. The overrides may be a mapping of keys to
        values, which need no quotes then: ``{"stages.summaries.prompt": "Say {{ text }}", "source.limit": 5}``.
    config
        A whole declaration as plain dicts, lists and scalars, instead of the three above.
    rows
        Dicts, instead of the declaration's source; any iterable, read once. They are written to ``rows.jsonl`` in the
        run's folder, so that the run can be resumed. A resumed run matches them by content. ``None`` reads the
        declared source.
    folder
        The run's folder. A folder that holds a run is resumed. ``None`` makes a new one,
        ``outputs/<name>/<time>``, unless the overrides set ``hydra.run.dir``.
    env
        Variables for ``api_key_env`` and ``${oc.env:NAME}``. A mapping overrides the environment. A path names a file
        of ``NAME=value`` lines, which the environment overrides. ``None`` is the environment alone.
    progress
        A function such as ``print``, called with a line of text every five seconds; ``True``, which prints these lines
        to stderr; or an :class:`~infermesh.runs.stats.Observer`. They are called in the run's thread.
        What they raise does not end the run; the first error is in ``run.log``. ``None`` and ``False`` print nothing.
    wait
        True returns when the run has ended; Ctrl-C drains the run, then raises ``KeyboardInterrupt``. False returns at
        once: use :meth:`Run.wait`, or ``await`` the run. At interpreter exit, running runs are drained.

    Raises
    ------
    ConfigError
        The declaration is wrong; nothing was sent. With ``wait=False``, errors found after the start (a missing file,
        a template that names a missing column) are raised by :meth:`Run.wait`.
    StoreError
        The folder's database cannot be opened, or another run of this process uses the folder.

    Examples
    --------
    The declaration ``conf/experiment/summaries.yaml`` with one override::

        done = infermesh.run("summaries", ["stages.summaries.max_parallel_requests=32"], progress=print)
        frame = done.results("pandas")

    A declaration and rows from Python. This one only copies a column with a function, so that it needs no server:

    >>> import infermesh
    >>> copies = {"kind": "python", "function": "builtins:dict", "columns": {"word": "VARCHAR"}}
    >>> config = {"name": "words", "stages": {"copies": copies}}
    >>> done = infermesh.run(config=config, rows=[{"word": "tree"}, {"word": "sea"}], folder="words")
    >>> done.status
    'done'
    >>> done.sql("SELECT word, copies_word FROM results ORDER BY row_id").fetchall()
    [('tree', 'tree'), ('sea', 'sea')]
    """
    if config is not None and (experiment is not None or overrides or config_dir is not None):
        raise ConfigError("give either config, or an experiment with its overrides and config_dir")
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: expected a list of overrides or a dict, got the text {overrides!r}")
    if config is not None:
        composed = Composed(_plain(config), roots(Path.cwd(), None), None, None)
    else:
        listed = from_mapping(overrides) if isinstance(overrides, Mapping) else [*overrides]
        chosen = [*([] if experiment is None else [f"+experiment={experiment}"]), *listed]
        composed = compose(chosen, config_dir=None if config_dir is None else Path(config_dir))
    if rows is not None:
        composed = replace(composed, mapping={**composed.mapping, "source": {"path": ROWS, "format": "jsonl"}})
    observer, environ = _observer(progress), _environment(env)
    for note in composed.notes:
        ForeignObserver(observer).note(note)
    declaration = declared(composed, environ)
    named = Path(folder or composed.folder or _new_folder(declaration)).absolute()
    fresh = folder is None and not any("hydra.run.dir" in override for override in overrides)
    target = claim_folder(named) if fresh else resolve_latest(named)
    work = RunThread(target)
    with claim(work):
        if rows is not None:
            _write_rows(target, rows)
            declaration = declaration.reading(target / ROWS)
        start = partial(
            execute,
            declaration,
            target,
            observer=observer,
            environ=environ,
            control=work.control,
            written=() if rows is None else (ROWS,),
        )
        work.start(start)
    found = Run(target, work)
    if wait:
        try:
            found.wait()
        except KeyboardInterrupt:
            found.stop()
            found.wait()
            raise
    return found


def open_run(path: str | Path) -> Run:
    """Open an existing run, to query, watch or stop it. Nothing is sent; :func:`run` resumes it.

    Parameters
    ----------
    path
        The run's folder, its ``run.duckdb``, its id, or an experiment's name (its newest run), as the commands take it.
        The run may be over, or running in this or another process.

    Raises
    ------
    StoreError
        The path holds no run.

    Examples
    --------
    ::

        found = infermesh.open_run("outputs/summaries/latest")
        found.sql("SELECT stage, status, rows FROM progress").df()
        infermesh.open_run("summaries").results("rows")[0]["summaries_parsed"]["topic"]
    """
    folder = Path(path).absolute()
    folder = (folder.parent if folder.name == DATABASE else folder).resolve()
    work = running_in(folder)
    if work is None and not (folder / DATABASE).is_file():
        if (group := runs_in(str(path))) is not None:
            raise StoreError(f"{group_words(*group)}: open one of them, as {group[1][-1]}")
        if (found := named_run(str(path))) is None:
            raise StoreError(
                f"{path}: no run is there: expected a folder that holds {DATABASE}, that file, a run's id, or an "
                f"experiment's name"
            )
        folder = found.resolve()
        work = running_in(folder)
    return Run(folder, work)


class Run:
    """A run, returned by :func:`run` and :func:`open_run`: running in this process or another, or over.

    ``await run`` waits for its end without blocking the event loop and returns the run itself.

    Attributes
    ----------
    folder
        Where ``run.duckdb`` is.
    """

    def __init__(self, folder: Path, work: RunThread | None = None) -> None:
        self.folder = folder
        self._work = work

    @property
    def run_id(self) -> str:
        """The run's id, as in the ``run`` table. Raises ``StoreError`` before the source is loaded."""
        return str(self._run_value("SELECT run_id FROM run"))

    @property
    def status(self) -> str:
        """The run's status; one of these.

        ``running``
            In this process or another.
        ``done``
            Every row has settled, none with an error.
        ``failed_rows``
            Every row has settled, some with an error: see :meth:`failures`.
        ``interrupted``
            Drained by :meth:`stop`, Ctrl-C or SIGTERM; some rows are pending.
        ``stopped``
            Drained by a guard; some rows are pending.
        ``crashed``
            Ended by an exception: see :attr:`error`.
        ``killed``
            Its process ended without closing the run.
        """
        if self._work is not None:
            if not self._work.future.done():
                return "running"
            return "crashed" if self.outcome is None else self.outcome.status
        try:
            with self._reader() as reader:
                row = reader.execute("SELECT status FROM run").fetchone()
                held = reader.live
        except StoreInUseError:
            return "running"
        if row is None:
            raise self._no_run_row()
        return status_now(str(row[0]), held=held)

    @property
    def outcome(self) -> RunOutcome | None:
        """Counts, failures and totals; ``None`` while the run is running, if it failed, or if another process ran it.

        For such a run, use :meth:`sql` on ``progress`` and ``attempts``.
        """
        future = None if self._work is None else self._work.future
        return None if future is None or not future.done() or future.exception() else future.result()

    @property
    def exit_code(self) -> int | None:
        """The exit code ``infermesh run`` would give; ``None`` if the run is running or was killed."""
        return EXIT_CODES.get(self.status)

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the run, if its status is ``crashed`` and it ran in this process; else ``None``."""
        future = None if self._work is None else self._work.future
        return future.exception() if future is not None and future.done() else None

    def sql(self, query: str) -> Relation:
        """Query the run's tables with one SELECT, during the run or after it.

        The query runs when the result is read, and sees what is committed by then. A run in another process returns at
        most 256 MB, within 30 seconds.

        Raises
        ------
        StoreError
            Raised on reading: the query is wrong or its result too large, the run has no tables yet, or the process
            that holds the database does not answer.

        Examples
        --------
        ::

            run.sql("SELECT finish_reason, count(*) FROM summaries GROUP BY ALL").fetchall()
            run.sql("SELECT * FROM results WHERE summaries_text ILIKE '%error%'").df()
        """
        return Relation(query, self._query_source, str(self.folder))

    def results(self, format: Literal["arrow", "pandas", "polars", "rows"] = "arrow") -> Any:
        """Read the ``results`` view: one row per source row, with its columns and each stage's.

        Use :meth:`sql` for a part of it.

        Parameters
        ----------
        format
            ``arrow``: a pyarrow table. ``pandas``, ``polars``: a frame. ``rows``: a list of dicts, which needs no
            package. JSON columns, such as a stage's ``parsed``, are Python's own objects in ``rows`` and ``pandas``,
            and text in the others.

        Raises
        ------
        ImportError
            The package for the format is not installed.
        StoreError
            As in :meth:`sql`.
        """
        result = self.sql("SELECT * FROM results ORDER BY row_id")
        ways = {"arrow": result.arrow, "pandas": result.df, "polars": result.pl, "rows": result.rows}
        if format not in ways:
            raise ValueError(f"format={format!r}: expected one of {', '.join(ways)}")
        return ways[format]()

    def failures(self) -> Relation:
        """Query the failed rows: ``stage``, ``row_id``, ``error_type``, ``error``, ``attempts``."""
        found = self.sql(
            "SELECT DISTINCT p.stage, c.table_name FROM progress p JOIN duckdb_columns() c "
            "ON c.column_name = p.stage || '_error_type' WHERE c.table_name IN (SELECT view_name FROM duckdb_views())"
        ).fetchall()
        parts = [
            f'SELECT \'{stage}\' AS stage, row_id, "{stage}_error_type" AS error_type, "{stage}_error" AS error, '
            f'"{stage}_attempts" AS attempts FROM "{view}" WHERE "{stage}_status" = \'error\''
            for stage, view in found
        ]
        return self.sql(" UNION ALL ".join(parts) + " ORDER BY stage, row_id")

    def stop(self) -> None:
        """Drain the run, in whichever process it runs: send no new request, wait for those in flight. Returns at once.

        Raises
        ------
        StoreError
            The run is not running.
        """
        if self._work is None:
            with closing(request_stop(self.folder)) as steps:
                next(steps)
            return
        self._work.control.stop()

    def wait(self, timeout: float | None = None) -> Run:
        """Block until the run has ended, and return it. A run that this process does not run returns at once.

        Parameters
        ----------
        timeout
            In seconds; ``None`` waits without limit.

        Raises
        ------
        TimeoutError
            The run is still running.
        ConfigError, StoreError
            The error that ended the run.

        Examples
        --------
        ::

            running = infermesh.run("summaries", wait=False)
            print(running.sql("SELECT * FROM progress").fetchall())
            running.wait()
        """
        if self._work is not None:
            self._work.future.result(timeout)
        return self

    def __await__(self) -> Generator[Any, None, Run]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Run:
        if self._work is not None:
            await asyncio.wrap_future(self._work.future)
        return self

    def __repr__(self) -> str:
        counts = ", ".join(f"{stage}: {text}" for stage, text in self._progress().items())
        return f"<Run {self.folder} {self.status}{'; ' if counts else ''}{counts}>"

    def _repr_html_(self) -> str:
        table = html_table(["stage", "rows"], list(self._progress().items()))
        return f"<p><b>{html.escape(str(self.folder))}</b> {self.status}</p>{table}"

    def _progress(self) -> dict[str, str]:
        """Stage → its counts in words. Empty where the tables cannot be read now: a repr never waits or raises."""
        if self._work is not None and not self._work.control.ready.is_set():
            return {}
        found: dict[str, list[str]] = {}
        with suppress(StoreError):
            for stage, status, rows in self.sql("SELECT stage, status, rows FROM progress").fetchall():
                found.setdefault(stage, []).append(f"{rows} {status}")
        return {stage: ", ".join(words) for stage, words in found.items()}

    def _run_value(self, query: str) -> Any:
        row = self.sql(query).fetchone()
        if row is None:
            raise self._no_run_row()
        return row[0]

    def _no_run_row(self) -> StoreError:
        return StoreError(f"{self.folder / DATABASE} holds no run: it ended before its source was loaded")

    @contextmanager
    def _query_source(self) -> Iterator[Prepare]:
        """How to query the run's tables: this process's connection, another process's socket, or the file."""
        work = self._work
        if work is not None:
            if work.is_current and not work.control.ready.is_set():  # waiting would block the run itself
                raise StoreError(f"{self.folder}: the run has not loaded its source yet")
            work.control.ready.wait()
            with work.control.read() as connection:
                if connection is not None:
                    yield lambda query: (connection, query)
                    return
            work.future.exception()  # the run is closing its database: wait for that, then open the file
        with self._reader() as reader:
            yield reader.prepare

    def _reader(self) -> RunReader:
        if not (self.folder / DATABASE).exists():
            raise StoreError(f"{self.folder}: the run has no database: it ended before its source was loaded")
        return RunReader(self.folder)


def _new_folder(declaration: Declaration) -> Path:
    return OUTPUTS / declaration.experiment.name / time.strftime("%Y-%m-%d_%H-%M-%S")


def _plain(node: Any) -> Any:
    """Convert mappings and sequences of any type to dicts and lists, and paths to text."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, Path):
        return str(node)
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node


def _environment(env: Mapping[str, str] | str | Path | None) -> Mapping[str, str]:
    if env is None:
        return os.environ
    if isinstance(env, Mapping):
        return {**os.environ, **env}
    if not Path(env).is_file():
        raise ConfigError(f"env: no file {env}")
    return {**{name: value for name, value in dotenv_values(env).items() if value is not None}, **os.environ}


def _write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows.jsonl`` beside the database. An earlier file is replaced only once all rows are written."""
    fresh = not folder.exists() or not any(folder.iterdir())
    if (folder / ROWS).exists() and not (folder / DATABASE).exists():  # a user's file, not one of ours
        raise ConfigError(
            f"{folder / ROWS} exists in a folder without a run, and would be overwritten. Give another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{ROWS}.part"
    try:
        with open(temporary, "wb") as file:
            for number, row in enumerate(rows):
                if not isinstance(row, Mapping):
                    raise ConfigError(f"rows: row {number} is a {type(row).__name__}; expected a dict")
                try:
                    plain = dict(row)
                    try_enums(plain)
                    file.write(orjson.dumps(plain, default=_as_json, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
                except Exception as error:  # of an enumeration or a NumPy array of the caller's
                    raise ConfigError(f"rows: row {number} cannot be written as JSON: {words_of(error)}") from None
        temporary.replace(folder / ROWS)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if fresh:
            discard(folder)
        raise


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__}")


def _observer(progress: Callable[[str], object] | Observer | bool | None) -> Observer:
    if progress is None or progress is False:
        return PlainLines(lambda line: None)
    if progress is True:
        return PlainLines(lambda line: print(line, file=sys.stderr))
    if callable(progress):
        return PlainLines(progress)
    if any(getattr_static(progress, name, None) is None for name in ("start", "tick", "stop", "note")):
        raise ConfigError(f"progress={progress!r}: expected True, a function such as print, or an Observer")
    return progress
