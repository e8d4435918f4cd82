"""``infermesh run -m``: each job into its folder, what is complete passed over, and a table at the end.

Jobs may run in other processes, as Hydra's launcher decides. So each job leaves a record in the sweep's folder, and the
table is made of the records and of the jobs' databases.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from infermesh.bench.plot import draw
from infermesh.bench.sweeps import (
    RULE,
    Advice,
    JobRecord,
    MeasuredJob,
    advise,
    decides_speed_only,
    is_complete,
    measure,
    measured_stage,
    picture_of,
    setting,
    write_table,
)
from infermesh.cli.common import print_error
from infermesh.cli.progress import make_observer
from infermesh.config.declaration import Declaration, declare
from infermesh.errors import ConfigError, StoreError
from infermesh.query.figures import read_stored
from infermesh.runs.control import Control
from infermesh.runs.progress import PlainLines, duration, short
from infermesh.runs.stats import RunStats
from infermesh.store.folders import discard
from infermesh.store.schema import DATABASE

ANNOUNCE = "++hydra.callbacks.infermesh={_target_:infermesh.cli.hydra_callback.Announcer}"
_RECORDS = ".jobs"
_MULTIRUN = re.compile(r"\+*hydra\.mode=multirun", re.IGNORECASE)
_PLAIN_VALUE = re.compile(r"[\w./:+%@-]+")

current: Sweep | None = None  # the one that this process has started


def is_multirun(argv: Sequence[str]) -> bool:
    """Whether Hydra will run several jobs."""
    return any(argument in ("-m", "--multirun") or _MULTIRUN.fullmatch(argument) for argument in argv)


class Sweep:
    """A multirun: what is swept, where its jobs leave their records. Travels to the jobs' processes.

    Parameters
    ----------
    argv
        What the user typed behind ``infermesh run``.
    """

    def __init__(self, argv: Sequence[str], env_file: Path | None) -> None:
        self._argv = list(argv)
        self._env_file = env_file
        self.id = uuid.uuid4().hex[:12]
        self.keys: list[str] = []
        self.folder: Path | None = None
        self.parallel = False
        self.interrupted = False

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """While inside, the callback finds this sweep; an interrupt between two jobs ends it here."""
        global current
        current = self
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
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
            current = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin(self, config: Any) -> None:
        """The jobs are about to start."""
        self.folder = Path(config.hydra.sweep.dir)
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        for override in _parsed([*params, *config.hydra.overrides.task]):
            if override.is_sweep_override():
                self.keys.append(override.key_or_group)
        self.parallel = not str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher")
        if self.parallel and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)
            signal.signal(signal.SIGTERM, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        """Ctrl-C while jobs run in other processes: they see the file and drain. A second one ends this process."""
        self.interrupted = True
        self.stop_file.parent.mkdir(parents=True, exist_ok=True)
        self.stop_file.touch()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("stopping: the jobs that run are drained, no further one starts; Ctrl-C again ends them", file=sys.stderr)

    @property
    def records(self) -> Path:
        """The folder of the jobs' records."""
        assert self.folder is not None
        return self.folder / _RECORDS

    @property
    def stop_file(self) -> Path:
        """Its existence tells jobs to drain, and not to start."""
        return self.records / f"stop-{self.id}"

    def conclude(self) -> int:
        """Print the table and what next, write ``sweep.parquet`` and ``sweep.html``; the exit code of the worst job."""
        if self.folder is None:  # Hydra was asked for something else
            return 130 if self.interrupted else 0
        self.stop_file.unlink(missing_ok=True)
        records = [record for file in self.records.glob("*.json") if (record := _read(file, self.id)) is not None]
        jobs = measure(records, self.keys)
        codes = {job.record.code for job in jobs} | ({130} if self.interrupted else set())
        code = next((code for code in (1, 130, 4, 3) if code in codes), 0)
        if not jobs:
            return code
        if 1 in codes:
            (self.folder / "multirun.yaml").unlink(missing_ok=True)  # it may hold a refused key
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
            self._draw(self.folder / "sweep.html", jobs, advice)
        if code and any(job.record.code != 1 for job in jobs):
            print(f"  go on     {self.command()}   (does only what is left)", file=sys.stderr)
        return code

    def _draw(self, path: Path, jobs: Sequence[MeasuredJob], advice: Advice) -> None:
        """Write the curves where there are any to draw; say so where they cannot be drawn."""
        picture = picture_of(f"{self.folder}: {self._scope()}", jobs, self.keys, advice)
        if picture is None:
            return
        try:
            draw(path, picture)
            print(f"  plot      {path}", file=sys.stderr)
        except ConfigError as error:
            print(f"  plot      none: {error}", file=sys.stderr)

    def _scope(self) -> str:
        stage = measured_stage(self.keys)
        return "rows/s and latency of the whole run" if stage is None else f"rows/s and latency of stage {stage}"

    def command(self) -> str:
        """The command that goes on with this sweep in its folder."""
        folder = str(self.folder)
        value = folder if _PLAIN_VALUE.fullmatch(folder) else "'" + folder.replace("'", "\\'") + "'"
        argv = [argument for argument in self._argv if not argument.lstrip("+").startswith("hydra.sweep.dir=")]
        env_file = [] if self._env_file is None else ["--env-file", str(self._env_file)]
        return shlex.join(["infermesh", "run", *env_file, *argv, f"hydra.sweep.dir={value}"])


class SweepJob:
    """One job: passed over where it is complete, refused where its folder is another's, else run."""

    def __init__(self, sweep: Sweep, number: int, folder: Path, overrides: list[str]) -> None:
        self._sweep = sweep
        self._number = number
        self._folder = folder
        self._overrides = overrides
        parsed = {override.key_or_group: override.value() for override in _parsed(overrides)}
        self._values = {key: _plain(parsed.get(key)) for key in sweep.keys}

    def run(self, mapping: dict[str, Any], roots: list[Path], run_job: Callable[..., int]) -> int:
        """Do it and leave a record; its exit code. Interrupted in this process, it ends the sweep."""
        shown = " ".join(override.lstrip("+") for override in self._overrides)
        print(f"job {self._number}: {shown}", file=sys.stderr)
        passed_over = False
        if self._sweep.stop_file.exists():
            code = 130
        else:
            self._record(None)
            try:
                job = declare(self._measurable(mapping), roots, self._overrides)
            except ConfigError as error:
                print_error(error)
                discard(self._folder)
                code = 1
            else:
                code, passed_over = self._do(job, run_job)
        self._record(code, passed_over)
        if code == 130 and not self._sweep.parallel:
            raise SystemExit(130)
        return code

    def _do(self, job: Declaration, run_job: Callable[..., int]) -> tuple[int, bool]:
        """The job's exit code, and whether it was complete already."""
        if differs := self._anothers():
            print(f"error: {differs}", file=sys.stderr)
            return 1, False
        if is_complete(job, self._folder):
            print(f"  complete already, passed over: {self._folder}", file=sys.stderr)
            return (3 if self._failed_rows() else 0), True
        return self._execute(job, run_job), False

    def _execute(self, job: Declaration, run_job: Callable[..., int]) -> int:
        control = Control()
        observer = make_observer()
        elsewhere = self._sweep.parallel and threading.current_thread() is threading.main_thread()
        if self._sweep.parallel:
            observer = _Labelled(self._number, control, self._sweep.stop_file)
            if elsewhere:  # a terminal's Ctrl-C reaches every process; the one that started them speaks for all
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return run_job(job, self._folder, observer=observer, control=control, brief=True)
        finally:
            if elsewhere:
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _measurable(self, mapping: dict[str, Any]) -> dict[str, Any]:
        """A setting is measured by requests that are sent: where speed is swept, nothing is reused."""
        reuse = mapping.get("reuse", "none")
        if reuse == "none" or not any(decides_speed_only(key) for key in self._sweep.keys):
            return mapping
        if self._number == 0:
            print(
                f"note: reuse is none for the jobs, not {reuse}: what is swept is measured by sending", file=sys.stderr
            )
        return {**mapping, "reuse": "none"}

    def _anothers(self) -> str | None:
        """What tells the run in the folder from this job; ``None`` where it is this one's, or there is none."""
        if not (self._folder / DATABASE).exists():
            return None
        try:
            stored = read_stored(self._folder / DATABASE)
        except StoreError:  # running it says so
            return None
        if stored is None or stored.overrides is None:
            return None
        before = {override.key_or_group: _plain(override.value()) for override in _parsed(stored.overrides)}
        different = [
            f"{key}={_shown(before[key]) if key in before else '(not set)'} there, {key}={_shown(value)} here"
            for key, value in self._values.items()
            if before.get(key) != value or key not in before
        ]
        if not different:
            return None
        return (
            f"{self._folder} holds the run of another job: {'; '.join(different)}. Give the same values in the same "
            f"order, or another hydra.sweep.dir."
        )

    def _failed_rows(self) -> bool:
        stored = read_stored(self._folder / DATABASE)
        return stored is not None and stored.status == "failed_rows"

    def _record(self, code: int | None, passed_over: bool = False) -> None:
        self._sweep.records.mkdir(parents=True, exist_ok=True)
        target = self._sweep.records / f"{self._number}.json"
        record = {
            "sweep": self._sweep.id,
            "job": self._number,
            "folder": str(self._folder),
            "values": self._values,
            "overrides": self._overrides,
            "code": code,
            "passed_over": passed_over,
        }
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(orjson.dumps(record))
        temporary.replace(target)


class _Labelled(PlainLines):
    """Lines that say which job speaks; looks for the sign to drain on each tick."""

    def __init__(self, number: int, control: Control, stop_file: Path) -> None:
        super().__init__()
        self._number = number
        self._control = control
        self._stop_file = stop_file

    def note(self, text: str) -> None:
        """Say something once."""
        super().note(f"job {self._number} | {text}")

    def tick(self, stats: RunStats) -> None:
        """Print where a line is due."""
        super().tick(stats)
        if not self._control.stopping and self._stop_file.exists():
            self._control.stop()


def _parsed(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return list(OverridesParser.create().parse_overrides(list(overrides)))


def _plain(value: Any) -> Any:
    """A parsed override's value as JSON knows it."""
    text = getattr(value, "text", None)  # a quoted string
    if text is not None:
        return text
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _read(file: Path, sweep: str) -> JobRecord | None:
    """A record of this call; ``None`` for one of an earlier call whose job this one has not got to."""
    record = orjson.loads(file.read_bytes())
    if record["sweep"] != sweep:
        return None
    return JobRecord(
        record["job"],
        Path(record["folder"]),
        record["values"],
        record["overrides"],
        record["code"],
        record["passed_over"],
    )


def print_table(jobs: Sequence[MeasuredJob], keys: Sequence[str]) -> None:
    """One row a job, on stderr."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stage = measured_stage(keys)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
    scope = "the whole run" if stage is None else f"stage {stage}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    has_cost = any(job.figures is not None and job.figures.cost_usd is not None for job in jobs)
    table.add_column("job", justify="right", no_wrap=True)
    for heading in _headings(keys):
        table.add_column(heading, justify="right")
    for heading in ("rows/s", "tok/s", "p50 s", "p95 s", "p99 s", "q_p95 s", "errors", *(["cost"] if has_cost else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status")
    for job in jobs:
        values = [_shown(job.record.values.get(key)) for key in keys]
        status = f"{job.status} (earlier)" if job.record.passed_over else job.status
        style = {"done": "", "failed rows": "yellow"}.get(job.status, "red")
        table.add_row(str(job.record.number), *values, *_cells(job, has_cost), status, style=style)
    total = sum(job.figures.elapsed_s for job in jobs if job.figures is not None)
    swept = ", ".join(keys) or "no key"
    print(f"\nsweep over {swept}\n{len(jobs)} jobs, figures of {scope}, {duration(total)} measured", file=sys.stderr)
    console.print(table)


def _headings(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or all of it where two would be the same; folded where it is long."""
    last = [key.rpartition(".")[2] for key in keys]
    names = [leaf if last.count(leaf) == 1 else key for leaf, key in zip(last, keys, strict=True)]
    folded = []
    for name in names:
        lines = [""]
        for part in re.findall(r"[^_.]+[_.]?", name):
            if lines[-1] and len(lines[-1]) + len(part) > 12:
                lines.append("")
            lines[-1] += part
        folded.append("\n".join(lines))
    return folded


def _cells(job: MeasuredJob, has_cost: bool) -> list[str]:
    figures = job.figures
    if figures is None:
        return ["–"] * (8 if has_cost else 7)
    seconds = (figures.p50_s, figures.p95_s, figures.p99_s, figures.queue_p95_s)
    cells = [
        "–" if figures.rows_per_s != figures.rows_per_s else f"{figures.rows_per_s:.1f}",
        "–" if figures.tokens_per_s != figures.tokens_per_s else short(figures.tokens_per_s),
        *("–" if value != value else f"{value:.3f}" for value in seconds),
        str(figures.failed),
    ]
    if has_cost:
        cells.append("–" if figures.cost_usd is None else f"${figures.cost_usd:.4f}")
    return cells
