"""``infermesh run -m``: run each job in its own folder, skip jobs that are already complete, print a table at the end.

Hydra's launcher decides whether jobs run in this process or in others, so nothing is passed back in memory:

- Each job writes a small record (``<sweep's folder>/.jobs/<number>.json``) when it starts and when it ends. The table
  is made from these records and the jobs' databases. A record carries the id of the command that wrote it, so that
  records of an earlier, interrupted command are not taken for this one's.
- To stop jobs in other processes, this process creates a stop file beside the records. Each running job looks for it
  on every progress tick and drains; a job that has not started yet ends at once.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from infermesh.bench.sweep_page import SWEEP_PAGE, picture_of, write_page
from infermesh.bench.sweeps import (
    RULE,
    Advice,
    MeasuredJob,
    advise,
    decides_speed_only,
    figures_scope,
    is_complete,
    measure,
    read_record,
    setting,
    value_text,
    write_table,
)
from infermesh.cli.common import Progress, print_error
from infermesh.cli.progress import make_observer
from infermesh.cli.sweep_table import print_table
from infermesh.config.compose import overrides_of
from infermesh.config.declaration import Declaration, declare
from infermesh.errors import ConfigError, StoreError
from infermesh.hints import command, system_words
from infermesh.query.figures import read_stored
from infermesh.query.glance import first_query_across
from infermesh.query.union import RunUnion
from infermesh.runs.control import Control
from infermesh.runs.progress import PlainLines
from infermesh.runs.stats import RunStats
from infermesh.runtime.signals import Wishes
from infermesh.store.folders import JOBS, discard
from infermesh.store.schema import DATABASE

ANNOUNCE = "++hydra.callbacks.infermesh={_target_:infermesh.cli.hydra_callback.Announcer}"
_UNQUOTED_VALUE = re.compile(r"[\w./:+%@-]+")

current_sweep: Sweep | None = None  # Hydra creates the callback itself, so this is how the callback finds the sweep


def _stopping_signals() -> list[signal.Signals]:
    """Ctrl-C, SIGTERM, and a closed terminal, unless nohup has that ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class Sweep:
    """A multirun. It is pickled and sent to the jobs' processes, so it holds only what can be pickled.

    Parameters
    ----------
    argv
        The arguments of ``infermesh run``, as the user typed them.
    env_file
        The file given as ``--env-file``.
    progress
        How the progress of each job is shown, where they run one after the other.

    Attributes
    ----------
    id
        Names this command, in records and in the stop file.
    keys
        The swept keys. Known, like ``folder``, ``jobs`` and ``parallel``, once :meth:`prepare` was called.
    jobs
        How many jobs there are; ``None`` for a sweeper that decides it as it goes.
    folder
        The sweep's folder; ``None`` before :meth:`prepare`.
    parallel
        Whether the launcher runs jobs in other processes or threads.
    interrupted
        Whether the user has stopped the sweep.
    """

    def __init__(self, argv: Sequence[str], env_file: Path | None, progress: Progress = Progress.AUTO) -> None:
        self._argv = list(argv)
        self._env_file = env_file
        self.progress = progress
        self._wishes = Wishes()
        self.id = uuid.uuid4().hex[:12]
        self.keys: list[str] = []
        self.folder: Path | None = None
        self.jobs: int | None = None
        self.parallel = False
        self.interrupted = False

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """Let Hydra's callback find this sweep, and turn an interrupt into the end of the sweep.

        A job that was interrupted in this process ends the sweep by ``SystemExit(130)``, an interrupt between two jobs
        arrives as ``KeyboardInterrupt``. Both end here, so that the table of the jobs so far is printed.
        """
        global current_sweep
        current_sweep = self
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in _stopping_signals()} if main else {}
        try:
            yield
        except KeyboardInterrupt:
            if self.folder is None:
                raise
            self.interrupted = True
        except SystemExit as ended:
            if ended.code != 130:
                raise
            self.interrupted = True
        finally:
            current_sweep = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def prepare(self, config: Any) -> None:
        """Read the sweep's folder and keys from Hydra's config. The callback calls it before the first job.

        With a parallel launcher this process only waits for the jobs, so it handles Ctrl-C and SIGTERM for them: the
        handler creates the stop file. Jobs in this process need no handler here: the run itself sets one.
        """
        self.folder = Path(config.hydra.sweep.dir)
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        overrides = _parse_overrides([*params, *overrides_of(config.hydra)])
        self.keys += [override.key_or_group for override in overrides if override.is_sweep_override()]
        if str(config.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
            self.jobs = _combinations(overrides)
        self.parallel = not str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher")
        if self.parallel and threading.current_thread() is threading.main_thread():
            for number in _stopping_signals():
                signal.signal(number, self._stop_jobs)

    def _stop_jobs(self, number: int, frame: Any) -> None:
        """Handle the first Ctrl-C, SIGTERM or closed terminal while jobs run elsewhere: ask them to drain.

        A second Ctrl-C or SIGTERM ends at once. Shell and kernel may both tell of the same closed terminal.
        """
        if not self._wishes.another() or (number == signal.SIGHUP and self.interrupted):
            return
        if self.interrupted:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
        self.interrupted = True
        self.stop_file.parent.mkdir(parents=True, exist_ok=True)
        self.stop_file.touch()
        print(
            "stopping: running jobs finish what they have sent, no further job starts; Ctrl-C again ends them at once",
            file=sys.stderr,
        )

    @property
    def records(self) -> Path:
        assert self.folder is not None
        return self.folder / JOBS

    @property
    def stop_file(self) -> Path:
        """While this file exists, running jobs drain and no further job starts. Only this command's jobs look at it."""
        return self.records / f"stop-{self.id}"

    def report(self) -> int:
        """Print the table, the recommendation and the command to continue; write ``sweep.parquet`` and ``sweep.html``.

        Returns
        -------
        int
            The exit code of the worst job: 1 before 130, 4 and 3.
        """
        if self.folder is None:  # no job was to run: --cfg, --help, …
            return 130 if self.interrupted else 0
        self.stop_file.unlink(missing_ok=True)
        # An earlier command has left records of jobs that this one has not reached.
        found = [read_record(file) for file in self.records.glob("*.json")]
        records = [record for sweep, record in found if sweep == self.id]
        jobs = measure(records, self.keys)
        codes = {job.record.code for job in jobs} | ({130} if self.interrupted else set())
        code = next((code for code in (1, 130, 4, 3) if code in codes), 0)
        if not jobs:
            return code
        if 1 in codes:
            # Hydra has written the overrides into this file. One that was refused may be an API key.
            (self.folder / "multirun.yaml").unlink(missing_ok=True)
        advice = advise(jobs, self.keys)
        print_table(jobs, self.keys)
        if advice.job is not None:
            print(f"recommended: {setting(advice.job, self.keys)}   ({RULE})", file=sys.stderr)
        for note in advice.notes:
            print(f"note: {note}", file=sys.stderr)
        measured = any(job.figures is not None for job in jobs)
        if measured:
            write_table(self.folder / "sweep.parquet", jobs, self.keys)
            print(f"  figures   {self.folder / 'sweep.parquet'}", file=sys.stderr)
            self._draw(self.folder / SWEEP_PAGE, jobs, advice)
        if (query := self._answers_query(jobs)) is not None:
            print(f"  answers   {command('sql', '--runs', self.folder, query)}", file=sys.stderr)
        if code and any(job.record.code != 1 for job in jobs):
            print(f"  continue  {self.command()}   (does only what is left)", file=sys.stderr)
        return code

    def _draw(self, path: Path, jobs: Sequence[MeasuredJob], advice: Advice) -> None:
        """Write the sweep's page. The figures are safe by now: what goes wrong here is told."""
        title = f"{self.folder}: {figures_scope(self.keys)}"
        try:
            write_page(path, picture_of(title, jobs, self.keys, advice, self.command()))
            print(f"  plot      {path}", file=sys.stderr)
        except OSError as error:
            print(f"  plot      none: {system_words(error)}", file=sys.stderr)

    def _answers_query(self, jobs: Sequence[MeasuredJob]) -> str | None:
        """A query that puts the jobs' answers side by side, with a column for each swept key; ``None`` if none can."""
        folders = [job.record.folder for job in jobs if job.figures is not None]
        try:
            with RunUnion(folders, DATABASE) as union:
                return first_query_across(union)
        except StoreError:
            return None

    def command(self) -> str:
        """The command that continues this sweep: the same arguments, with its folder."""
        folder = str(self.folder)
        value = folder if _UNQUOTED_VALUE.fullmatch(folder) else "'" + folder.replace("'", "\\'") + "'"
        argv = [argument for argument in self._argv if not argument.lstrip("+").startswith("hydra.sweep.dir=")]
        env_file = [] if self._env_file is None else ["--env-file", str(self._env_file)]
        return command("run", *env_file, *argv, f"hydra.sweep.dir={value}")


class SweepJob:
    """One job of a sweep, in whichever process the launcher runs it.

    A job that is already complete is skipped. A folder that holds another job's run is refused. Else the job is run or
    resumed.
    """

    def __init__(self, sweep: Sweep, number: int, folder: Path, overrides: list[str]) -> None:
        self._sweep = sweep
        self._number = number
        self._folder = folder
        self._overrides = overrides
        parsed = {override.key_or_group: override.value() for override in _parse_overrides(overrides)}
        self._values = {key: _json_value(parsed.get(key)) for key in sweep.keys}

    def run(self, mapping: dict[str, Any], roots: list[Path], run_job: Callable[..., int]) -> int:
        """Run the job, unless it is complete, and write its record.

        Returns
        -------
        int
            The job's exit code.

        Raises
        ------
        SystemExit
            The job was interrupted and the jobs run one after the other: no further one may start.
        """
        shown = " ".join(override.lstrip("+") for override in self._overrides)
        print(f"job {self._number}: {shown}", file=sys.stderr)
        passed_over = False
        if self._sweep.stop_file.exists():
            code = 130
        else:
            self._write_record(None)
            try:
                job = declare(self._without_reuse(mapping), roots, self._overrides)
            except ConfigError as error:
                print_error(error)
                discard(self._folder)
                code = 1
            else:
                code, passed_over = self._run_or_skip(job, run_job)
        self._write_record(code, passed_over)
        if code == 130 and not self._sweep.parallel:
            raise SystemExit(130)
        return code

    def _run_or_skip(self, job: Declaration, run_job: Callable[..., int]) -> tuple[int, bool]:
        """Return the job's exit code, and whether it was complete already."""
        if differs := self._conflict():
            print(f"error: {differs}", file=sys.stderr)
            return 1, False
        if is_complete(job, self._folder):
            print(f"  already complete, not run again: {self._folder}", file=sys.stderr)
            return (3 if self._has_failed_rows() else 0), True
        return self._execute(job, run_job), False

    def _execute(self, job: Declaration, run_job: Callable[..., int]) -> int:
        control = Control()
        observer = make_observer(self._sweep.progress)
        in_own_process = self._sweep.parallel and threading.current_thread() is threading.main_thread()
        if self._sweep.parallel:
            observer = _JobLines(self._number, control, self._sweep.stop_file)
            if self._number == 0 and self._sweep.progress is not Progress.AUTO:
                print(
                    f"--progress {self._sweep.progress}: not with jobs side by side, which are shown by a line each",
                    file=sys.stderr,
                )
            if in_own_process:
                # A terminal sends Ctrl-C to every process of the group. Jobs ignore it: the process that started them
                # catches it and creates the stop file.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return run_job(job, self._folder, observer=observer, control=control, brief=True)
        finally:
            if in_own_process:  # the run has set a handler of its own meanwhile
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _without_reuse(self, mapping: dict[str, Any]) -> dict[str, Any]:
        """Turn ``reuse`` off if a key that decides only speed is swept: answers that are reused measure nothing."""
        reuse = mapping.get("reuse", "none")
        if reuse == "none" or not any(decides_speed_only(key) for key in self._sweep.keys):
            return mapping
        if self._number == 0:
            print(
                f"note: reuse is none in these jobs, not {reuse}: speed is measured by sending requests",
                file=sys.stderr,
            )
        return {**mapping, "reuse": "none"}

    def _conflict(self) -> str | None:
        """Say how the run in the folder differs from this job; ``None`` if it is this job's or the folder is empty."""
        if not (self._folder / DATABASE).exists():
            return None
        try:
            stored = read_stored(self._folder / DATABASE)
        except StoreError:  # the run meets the same error and reports it
            return None
        if stored is None or stored.overrides is None:
            return None
        before = {
            override.key_or_group: _json_value(override.value()) for override in _parse_overrides(stored.overrides)
        }
        different = [
            f"{key}={value_text(before[key]) if key in before else '(not set)'} there, {key}={value_text(value)} here"
            for key, value in self._values.items()
            if before.get(key) != value or key not in before
        ]
        if not different:
            return None
        return (
            f"{self._folder} holds the run of another job: {'; '.join(different)}. Give the same values in the same "
            f"order, or another hydra.sweep.dir."
        )

    def _has_failed_rows(self) -> bool:
        stored = read_stored(self._folder / DATABASE)
        return stored is not None and stored.status == "failed_rows"

    def _write_record(self, code: int | None, passed_over: bool = False) -> None:
        self._sweep.records.mkdir(parents=True, exist_ok=True)
        target = self._sweep.records / f"{self._number}.json"
        record = {
            "sweep": self._sweep.id,
            "job": self._number,
            "of": self._sweep.jobs,
            "folder": str(self._folder),
            "values": self._values,
            "overrides": self._overrides,
            "code": code,
            "passed_over": passed_over,
        }
        temporary = target.with_suffix(".tmp")  # replaced at once, so that nobody reads half a record
        temporary.write_bytes(orjson.dumps(record))
        temporary.replace(target)


class _JobLines(PlainLines):
    """Progress of a parallel job: notes carry the job's number, and each tick looks for the stop file."""

    def __init__(self, number: int, control: Control, stop_file: Path) -> None:
        super().__init__()
        self._number = number
        self._control = control
        self._stop_file = stop_file

    def note(self, text: str) -> None:
        super().note(f"job {self._number} | {text}")

    def tick(self, stats: RunStats) -> None:
        super().tick(stats)
        if not self._control.stopping and self._stop_file.exists():
            self._control.stop()


def _parse_overrides(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # it knows what a glob stands for
    return list(OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)))


def _combinations(overrides: Sequence[Any]) -> int | None:
    """How many jobs Hydra's own sweeper makes of these overrides; ``None`` if it refuses them. A later one counts."""
    values = {}
    for override in overrides:
        swept = override.is_sweep_override()
        if swept and not override.is_discrete_sweep():
            return None
        values[override.get_key_element()] = sum(1 for _ in override.sweep_string_iterator()) if swept else 1
    return math.prod(values.values())


def _json_value(value: Any) -> Any:
    """Turn a parsed override's value into plain JSON values."""
    text = getattr(value, "text", None)  # a quoted string
    if text is not None:
        return text
    if isinstance(value, dict):
        return {str(_json_value(key)): _json_value(item) for key, item in value.items()}
    return [_json_value(item) for item in value] if isinstance(value, list) else value
