"""Runs from Python: :func:`run` starts or resumes one in a thread of its own, :func:`open_run` opens another."""

from __future__ import annotations

import asyncio
import html
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson
from dotenv import dotenv_values

from infermesh.config.compose import check_chosen, compose, roots
from infermesh.config.load import load
from infermesh.errors import ConfigError, StoreError, StoreInUseError
from infermesh.query.reader import RunReader, request_stop
from infermesh.query.relation import Prepare, Relation, html_table
from infermesh.runs.execute import DATABASE, EXIT_CODES, Observer, RunOutcome, launch
from infermesh.runs.stats import RunStats
from infermesh.runs.threads import Work, claimed, live
from infermesh.store.folders import fixed, made

__all__ = ["Run", "open_run", "run"]

ROWS = "rows.jsonl"
_LINE_EVERY_S = 5.0


def run(
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    folder: str | Path | None = None,
    env: Mapping[str, str] | str | Path | None = None,
    progress: Callable[[str], object] | Observer | None = None,
    wait: bool = True,
) -> Run:
    """Run an experiment, or go on with the run that is in ``folder``.

    The run has a thread and an event loop of its own, so it works in scripts, threads, notebooks and async code alike.
    It is not told about failed rows by an exception: look at :attr:`Run.status`.

    Parameters
    ----------
    experiment, overrides, config_dir
        What ``infermesh run +experiment=NAME OVERRIDE … --config-dir DIR`` takes.
    config
        Instead of these: a whole declaration, as plain dicts, lists and scalars.
    rows
        Instead of the declaration's source: dicts, which are written to ``rows.jsonl`` in the run's folder one by one,
        so that the run can be resumed. A resumed run matches them by their content.
    folder
        The run's folder; ``outputs/<name>/<time>`` where it is not given.
    env
        Variables over the environment's, for ``api_key_env``: a mapping, or a file of NAME=value lines.
    progress
        Called with a line of text every five seconds, such as ``print``; or an observer of your own. Nothing is printed
        otherwise. It is called in the run's thread.
    wait
        Return when the run has ended. Ctrl-C then drains it and is raised when it has ended. Without it, return at
        once: see :meth:`Run.wait`, or ``await`` the run. A process that ends before drains its runs first.

    Raises
    ------
    ConfigError
        The declaration is wrong; nothing was sent. Without ``wait``, what is found only after the start (a missing
        file, a template that names a missing column) is raised by :meth:`Run.wait`.
    StoreError
        The folder's database cannot be opened, or another run of this process is at it.
    """
    if config is not None and (experiment is not None or overrides or config_dir is not None):
        raise ConfigError("give either config, or an experiment with its overrides and config_dir")
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: expected a list of overrides, got the text {overrides!r}")
    changed: list[str] | None = None
    if config is not None:
        mapping, places, home = _plain(config), roots(Path.cwd(), None), None
    else:
        chosen = [*([] if experiment is None else [f"+experiment={experiment}"]), *overrides]
        composed = compose(chosen, config_dir=None if config_dir is None else Path(config_dir))
        mapping, places, home, changed = composed.mapping, composed.roots, composed.folder, composed.overrides
    if rows is not None:
        mapping = {**mapping, "source": {"path": ROWS, "format": "jsonl"}}
    check_chosen(mapping)
    load(mapping)
    if folder is None and not any("hydra.run.dir" in override for override in overrides):
        target = made((home or _new_folder(mapping)).absolute())
    else:
        target = fixed(Path(folder or home or _new_folder(mapping)).absolute())
    if rows is not None:
        mapping["source"]["path"] = str(target / ROWS)
    work = Work(target)
    with claimed(work):
        if rows is not None:
            _write_rows(target, rows)
        start = partial(
            launch,
            mapping,
            target,
            places,
            observer=_observer(progress),
            overrides=changed,
            environ=_environment(env),
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
    """Open a run that is there: its folder, or its ``run.duckdb``.

    Raises
    ------
    StoreError
        There is no run.
    """
    folder = Path(path).absolute()
    folder = (folder.parent if folder.name == DATABASE else folder).resolve()
    work = live(folder)
    if work is None and not (folder / DATABASE).is_file():
        raise StoreError(f"{path}: no run is there: expected a folder that holds {DATABASE}, or that file")
    return Run(folder, work)


class Run:
    """A run: one that goes on in this process, or what its folder holds.

    ``await`` it to wait for its end without blocking the event loop; that gives the run itself.

    Attributes
    ----------
    folder
        Where ``run.duckdb`` is.
    """

    def __init__(self, folder: Path, work: Work | None = None) -> None:
        self.folder = folder
        self._work = work

    @property
    def run_id(self) -> str:
        """The run's id, as the ``run`` table has it."""
        return str(self._one("SELECT run_id FROM run"))

    @property
    def status(self) -> str:
        """How the run stands.

        ``running``; ``done``; ``failed_rows``; ``interrupted``, by :meth:`stop` or a signal; ``stopped``, by a guard;
        ``failed``, before the first request or with an exception; ``killed``, where its process has gone.
        """
        if self._work is not None:
            if not self._work.future.done():
                return "running"
            return "failed" if self.outcome is None else self.outcome.status
        try:
            with self._reader() as reader:
                row = reader.execute("SELECT status FROM run").fetchone()
                live = reader.live
        except StoreInUseError:
            return "running"
        if row is None:
            raise self._empty()
        status = str(row[0])
        if live:
            return "running"
        # Nobody holds the file, so nobody is at it.
        return {"running": "killed", "crashed": "failed"}.get(status, status)

    @property
    def outcome(self) -> RunOutcome | None:
        """Counts, failures and totals of a run that has ended in this process, else ``None``."""
        future = None if self._work is None else self._work.future
        return None if future is None or not future.done() or future.exception() else future.result()

    @property
    def exit_code(self) -> int | None:
        """What ``infermesh run`` would exit with; ``None`` while it goes on, or where its process was killed."""
        status = self.status
        return 1 if status == "failed" else EXIT_CODES.get(status)

    @property
    def error(self) -> BaseException | None:
        """What ended a run of this process that has ``failed``."""
        future = None if self._work is None else self._work.future
        return future.exception() if future is not None and future.done() else None

    def sql(self, query: str) -> Relation:
        """Ask the run's tables with one SELECT, while it goes on too; what is committed is seen.

        A run that goes on in another process answers with at most 256 MB, within 30 seconds.

        Raises
        ------
        StoreError
            The query is wrong or too large, the run has no tables, or the process that holds them does not answer.
        """
        return Relation(query, self._reading, str(self.folder))

    def results(self, format: Literal["arrow", "pandas", "polars", "rows"] = "arrow") -> Any:
        """The ``results`` view, a row for each row of the source: its columns and each stage's.

        Parameters
        ----------
        format
            A pyarrow table, a pandas or polars frame, or ``rows``: a list of dicts, which needs no package.

        Raises
        ------
        ImportError
            The package is not installed.
        """
        result = self.sql("SELECT * FROM results ORDER BY row_id")
        ways = {"arrow": result.arrow, "pandas": result.df, "polars": result.pl, "rows": result.rows}
        if format not in ways:
            raise ValueError(f"format={format!r}: expected one of {', '.join(ways)}")
        return ways[format]()

    def failures(self) -> Relation:
        """The failed rows: stage, row_id, error_type, error, attempts."""
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
        """Drain the run: nothing more is sent, what is in flight is waited for. Returns at once.

        Raises
        ------
        StoreError
            The run is not this process's, and no other process is at it.
        """
        if self._work is None:
            with closing(request_stop(self.folder)) as asking:
                next(asking)
            return
        self._work.control.stop()

    def wait(self, timeout: float | None = None) -> Run:
        """Block until the run has ended; at once for one that does not go on in this process.

        Parameters
        ----------
        timeout
            In seconds.

        Raises
        ------
        TimeoutError
            It goes on still.
        ConfigError, StoreError
            What ended the run.
        """
        if self._work is not None:
            self._work.future.result(timeout)
        return self

    def __await__(self) -> Generator[Any, None, Run]:
        return self._ended().__await__()

    async def _ended(self) -> Run:
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
        """Stage → its counts in words; empty where they cannot be had at once."""
        if self._work is not None and not self._work.control.ready.is_set():
            return {}
        found: dict[str, list[str]] = {}
        with suppress(StoreError):
            for stage, status, rows in self.sql("SELECT stage, status, rows FROM progress").fetchall():
                found.setdefault(stage, []).append(f"{rows} {status}")
        return {stage: ", ".join(words) for stage, words in found.items()}

    def _one(self, query: str) -> Any:
        row = self.sql(query).fetchone()
        if row is None:
            raise self._empty()
        return row[0]

    def _empty(self) -> StoreError:
        return StoreError(f"{self.folder / DATABASE} holds no run: it ended before its source was loaded")

    @contextmanager
    def _reading(self) -> Iterator[Prepare]:
        """Whom to ask the run's tables, wherever the run is."""
        work = self._work
        if work is not None:
            if work.here and not work.control.ready.is_set():
                raise StoreError(f"{self.folder}: the run has not loaded its source yet")
            work.control.ready.wait()
            with work.control.reading() as connection:
                if connection is not None:
                    yield lambda query: (connection, query)
                    return
            work.future.exception()  # it is closing its database
        with self._reader() as reader:
            yield reader.prepare

    def _reader(self) -> RunReader:
        if not (self.folder / DATABASE).exists():
            raise StoreError(f"{self.folder}: the run has no database: it ended before its source was loaded")
        return RunReader(self.folder)


def _new_folder(mapping: Mapping[str, Any]) -> Path:
    return Path("outputs") / str(mapping.get("name", "unnamed")) / time.strftime("%Y-%m-%d_%H-%M-%S")


def _plain(node: Any) -> Any:
    """Mappings and sequences of any kind as dicts and lists; paths as text."""
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
    """Write the rows beside the database; what was there stays until all are written."""
    fresh = not folder.exists() or not any(folder.iterdir())
    if (folder / ROWS).exists() and not (folder / DATABASE).exists():
        raise ConfigError(f"{folder / ROWS} is there, and no run: it would be overwritten. Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{ROWS}.part"
    try:
        with open(temporary, "wb") as file:
            for number, row in enumerate(rows):
                if not isinstance(row, Mapping):
                    raise ConfigError(f"rows: row {number} is a {type(row).__name__}; expected a dict")
                try:
                    file.write(orjson.dumps(dict(row), default=_as_json, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
                except TypeError as error:
                    raise ConfigError(f"rows: row {number} cannot be written as JSON: {error}") from None
        temporary.replace(folder / ROWS)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if fresh:
            with suppress(OSError):
                folder.rmdir()
        raise


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__}")


def _observer(progress: Callable[[str], object] | Observer | None) -> Observer:
    if progress is None:
        return _Lines(None)
    return _Lines(progress) if callable(progress) else progress


class _Lines:
    """Tells a function where the run is, in a line every five seconds."""

    def __init__(self, tell: Callable[[str], object] | None) -> None:
        self._tell = tell
        self._next = 0.0

    def note(self, text: str) -> None:
        """Say something once."""
        if self._tell is not None:
            self._tell(text)

    def start(self, stats: RunStats) -> None:
        """The first line comes after the first interval."""
        self._next = time.monotonic() + _LINE_EVERY_S

    def tick(self, stats: RunStats) -> None:
        """Tell where a line is due."""
        if time.monotonic() >= self._next:
            self._next += _LINE_EVERY_S
            self._line(stats)

    def stop(self, stats: RunStats) -> None:
        """The last line."""
        self._line(stats)

    def _line(self, stats: RunStats) -> None:
        stages = ", ".join(
            f"{name} {stage.settled}/{stage.total}" + (f" ({stage.failed} failed)" if stage.failed else "")
            for name, stage in stats.stages.items()
        )
        self.note(f"{stages}; {stats.requests} requests")
