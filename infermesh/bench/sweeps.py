"""A sweep's results, read from its jobs' databases: figures, the recommended setting, a table."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from infermesh.bench.measure import Candidate, choose
from infermesh.config.declaration import Declaration
from infermesh.config.short_form import DEPLOYMENT_KEYS
from infermesh.errors import ConfigError, StoreError
from infermesh.exact_json import loads
from infermesh.hints import counted
from infermesh.inputs.sources import resolve_source
from infermesh.query.figures import Figures, read_figures, read_stored, write_parquet
from infermesh.runs.assemble import NOWHERE, assembled
from infermesh.store import Column
from infermesh.store.folders import JOBS
from infermesh.store.schema import DATABASE, status_now

RULE = "the smallest within 5 % of the best rows/s whose p95 is acceptable"
# Keys that change how fast answers come, not what the answers are.
_SECTIONS_OF_SPEED = ("limits.", "store.", "engine.", "simulator.", "deployments.")
_LEAVES_OF_SPEED = frozenset(
    {"max_parallel_requests", "micro_batch_size", "timeout", "routing_strategy", "max_retries"}
)
_MEASURED = ("done", "failed_rows")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job of a sweep.

    Attributes
    ----------
    values
        Swept key → this job's value.
    overrides
        All its overrides.
    code
        Its exit code; ``None`` if it has not ended.
    passed_over
        It was complete before the sweep, so it was not started.
    """

    number: int
    folder: Path
    values: Mapping[str, Any]
    overrides: Sequence[str]
    code: int | None
    passed_over: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredJob:
    """A job, its figures (``None`` if it has no run to measure), and its status in the table."""

    record: JobRecord
    figures: Figures | None
    status: str


def decides_speed_only(key: str) -> bool:
    """Whether a swept key changes the speed of a run only, and not its requests."""
    path = key.lstrip("+~")
    section, _, rest = path.partition(".")
    key = rest.partition(".")[2]
    if ".params." in path or (section in ("deployments", "models") and key == "model"):
        return False
    if section == "models" and key.partition(".")[0] in DEPLOYMENT_KEYS:  # the short form of deployments
        return True
    return path.startswith(_SECTIONS_OF_SPEED) or path.rpartition(".")[2] in _LEAVES_OF_SPEED


def measured_stage(keys: Sequence[str]) -> str | None:
    """The stage that all swept keys belong to (``stages.X.…``); ``None`` if they belong to no stage or to several."""
    found = {match[1] if (match := re.match(r"stages\.([^.]+)\..", key)) else None for key in keys}
    return found.pop() if len(found) == 1 else None


def is_complete(declaration: Declaration, folder: Path) -> bool:
    """Whether the folder's run is complete, with the same declaration, files and source, so that nothing is to be sent.

    A run with failed rows is complete only if ``keep_errors`` is set. The database is only read.
    """
    if not (folder / DATABASE).exists():
        return False
    try:
        stored = read_stored(folder / DATABASE)
        if stored is None or stored.config_hash != declaration.hash:
            return False
        experiment = declaration.experiment
        if stored.status != "done" and not (experiment.keep_errors and stored.status == "failed_rows"):
            return False
        if resolve_source(experiment.source, declaration.roots).fingerprint != stored.source_fingerprint:
            return False
        with assembled(declaration, os.environ, simulator_url=NOWHERE) as (_, graph):
            now = graph.signatures
    except (ConfigError, StoreError):  # not complete; running the job reports the error
        return False
    return all(stored.signatures.get(name) == signature for name, signature in now.items())


def measure(records: Sequence[JobRecord], keys: Sequence[str]) -> list[MeasuredJob]:
    """Read each job's figures: of the stage that the keys belong to, if there is one, else of the whole run."""
    stage = measured_stage(keys)
    found = []
    for record in sorted(records, key=lambda record: record.number):
        figures, status = None, "not run" if record.code in (None, 130) else "error"
        # A job that failed (1) may have left the database of an earlier job in its folder.
        if record.code != 1 and (record.folder / DATABASE).exists():
            try:
                figures = read_figures(record.folder / DATABASE, stage)
            except StoreError:
                status = "in use"
        if figures is not None:
            status = status_now(figures.status, held=False).replace("_", " ")
        found.append(MeasuredJob(record, figures, status))
    return found


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommended job, or ``None`` if there is none, and notes for the user."""

    job: MeasuredJob | None
    notes: tuple[str, ...]


def advise(jobs: Sequence[MeasuredJob], keys: Sequence[str]) -> Advice:
    """Apply :func:`infermesh.bench.measure.choose` to the jobs that have ended, smallest setting first.

    A key that decides what is asked, such as a prompt or a temperature, is never recommended for its speed.
    """
    asking = [key for key in keys if not decides_speed_only(key)]
    if asking:
        verb = "decides" if len(asking) == 1 else "decide"
        return Advice(None, (f"{' and '.join(asking)} {verb} what is answered, so speed recommends no value",))
    numeric = all(is_number(job.record.values.get(key)) for job in jobs for key in keys)
    ended = [job for job in jobs if job.figures is not None and job.record.code in (0, 3) and job.figures.requests]
    if numeric:
        ended.sort(key=lambda job: tuple(job.record.values[key] for key in keys))
    if len(ended) < 2 or not keys:
        return Advice(None, ())
    candidates = [
        Candidate(setting(job, keys), figures.rows_per_s, figures.p95_s, figures.request_errors, figures.requests)
        for job in ended
        if (figures := job.figures) is not None
    ]
    grows = "sweep larger values" if numeric and len(keys) == 1 else None
    found = choose(candidates, unit="rows/s", grows=grows, settings="job")
    notes = list(found.notes)
    if len(ended) < len(jobs):
        notes.append(f"left out: {len(jobs) - len(ended)} of {counted(len(jobs), 'job')}, without an end or a request")
    return Advice(None if found.index is None else ended[found.index], tuple(notes))


def setting(job: MeasuredJob, keys: Sequence[str]) -> str:
    """The swept keys and the job's values as overrides: ``key=value key=value``."""
    return " ".join(f"{key}={value_text(job.record.values.get(key))}" for key in keys)


def write_table(path: Path, jobs: Sequence[MeasuredJob], keys: Sequence[str]) -> None:
    """Write ``sweep.parquet``: a row for each job, with a typed column for each swept key, and all figures."""
    stage = measured_stage(keys)
    columns = [
        *(Column("job", "INTEGER"), Column("run_id", "VARCHAR"), Column("folder", "VARCHAR")),
        *(Column("status", "VARCHAR"), Column("exit_code", "INTEGER"), Column("stage", "VARCHAR")),
        *(Column(key, _type([job.record.values.get(key) for job in jobs])) for key in keys),
        *(Column(name, "BIGINT") for name in _COUNTS),
        *(Column(name, "DOUBLE") for name in _MEASURES),
    ]
    rows = []
    for job in jobs:
        record, figures = job.record, job.figures
        values = [_plain(record.values.get(key)) for key in keys]
        measured = [None if figures is None else _finite(getattr(figures, name)) for name in (*_COUNTS, *_MEASURES)]
        run_id = None if figures is None else figures.run_id
        about = [record.number, run_id, str(record.folder), job.status, record.code, stage]
        rows.append([*about, *values, *measured])
    write_parquet(path, columns, rows)


def figures_scope(keys: Sequence[str]) -> str:
    """What the figures of a sweep over these keys are of, in words."""
    stage = measured_stage(keys)
    return "rows/s and latency of the whole run" if stage is None else f"rows/s and latency of stage {stage}"


def read_record(file: Path) -> tuple[str, JobRecord]:
    """A job's record, and the id of the command that wrote it."""
    record = loads(file.read_bytes())
    job = JobRecord(
        record["job"],
        Path(record["folder"]),
        record["values"],
        record["overrides"],
        record["code"],
        record["passed_over"],
    )
    return record["sweep"], job


def stored_jobs(folder: Path) -> tuple[list[JobRecord], list[str]]:
    """The jobs of the last command over a sweep's folder, and the swept keys; none where nothing was recorded."""
    files = sorted((folder / JOBS).glob("*.json"), key=lambda file: file.stat().st_mtime)
    found = [read_record(file) for file in files]
    records = [record for command, record in found if command == found[-1][0]]
    # A record names its job's folder as seen from where the sweep was started.
    records = [replace(record, folder=folder / record.folder.name) for record in records]
    return records, list(records[0].values) if records else []


_COUNTS = ("rows", "failed", "pending", "requests", "request_errors", "prompt_tokens", "completion_tokens")
_MEASURES = (
    *("elapsed_s", "rows_per_s", "tokens_per_s", "p50_s", "p95_s", "p99_s", "queue_p95_s", "service_p95_s"),
    "cost_usd",
)


def is_number(value: object) -> bool:
    """Whether a swept value is one that a curve can be drawn over."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _type(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int}:
        return "BIGINT"
    return "DOUBLE" if kinds and kinds <= {int, float} else "VARCHAR"


def value_text(value: Any) -> str:
    """A swept value for people: texts as they are, all else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _plain(value: Any) -> str | int | float | None:
    return value if value is None or isinstance(value, str | int | float) else value_text(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
