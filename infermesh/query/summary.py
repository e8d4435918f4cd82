"""A run in short: its id, status, rows and cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from infermesh.errors import StoreError, StoreInUseError
from infermesh.query.in_batches import InBatches, in_batches, prices_of
from infermesh.query.reader import RunReader
from infermesh.query.troubles import Failed, failed_requests, waiting_rows
from infermesh.store.folders import run_folders, sweep_of
from infermesh.store.schema import INVALID, SOURCE, UNFINISHED, RunStatus, invalid_answers, literal, quoted, status_now

__all__ = ["STATES", "RunDetails", "RunInfo", "counts", "describe", "details", "runs_below", "unfinished_runs"]

STATES = (*get_args(RunStatus), "killed", "empty", "damaged")  # of a run, as `runs` and `status` say it
_ERROR_KINDS = 5  # of a stage
_COUNTED = ("done", "error", "skipped", "pending")


@dataclass(slots=True)
class RunInfo:
    """A run in short.

    Attributes
    ----------
    status
        A :data:`~infermesh.store.schema.RunStatus`; or ``killed`` if its process ended without closing the run,
        ``empty`` if there is no run in the database, ``damaged`` if it cannot be opened.
    done, failed, pending
        Counts of rows over all stages.
    has_work
        Whether rows are pending, or a sql stage has not been asked yet, whose rows nobody can count.
    answers
        Whether the database could be read; if not, all else is unknown.
    problem
        Why it could not; ``None`` if it could.
    """

    folder: Path
    run_id: str = "?"
    experiment: str = "?"
    status: str = "running"
    started_at: datetime | None = None
    done: int = 0
    failed: int = 0
    pending: int = 0
    has_work: bool = False
    cost_usd: float | None = None
    answers: bool = True
    problem: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether it did not come to its end, and no process runs it."""
        return self.status in UNFINISHED

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values; what is unknown is ``None``."""
        sweep = sweep_of(self.folder)
        return {
            "run_id": None if self.run_id == "?" else self.run_id,
            "experiment": None if self.experiment == "?" else self.experiment,
            "status": self.status,
            "started_at": None if self.started_at is None else f"{self.started_at.isoformat()}Z",
            "done": self.done if self.answers else None,
            "failed": self.failed if self.answers else None,
            "pending": self.pending if self.answers else None,
            "cost_usd": self.cost_usd,
            "folder": str(self.folder),
            "sweep": None if sweep is None else str(sweep),
            "problem": self.problem,
        }


@dataclass(slots=True)
class RunDetails:
    """What a run has done so far.

    Attributes
    ----------
    stages
        Stage → status → rows: ``done``, ``error``, ``skipped``, ``pending``.
    requests, prompt_tokens, completion_tokens, cost_usd
        Of all attempts; the cost is ``None`` if no price is known.
    failures
        ``(stage, error_type, rows, example)``: the most frequent errors of each stage, in the stages' order.
    invalid
        ``(stage, rows, example)``: answers that are done, and do not satisfy their stage's response format.
    failed_requests
        Those of the last session, by where and how they failed, the most frequent first.
    waiting
        Stage → rows of a live run that have failed requests, and wait for another try.
    batches
        What went through batch APIs; ``None``: nothing did.
    """

    stages: dict[str, dict[str, int]] = field(default_factory=dict)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    failures: list[tuple[str, str, int, str]] = field(default_factory=list)
    invalid: list[tuple[str, int, str]] = field(default_factory=list)
    failed_requests: list[Failed] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    batches: InBatches | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        names = ("stage", "error_type", "rows", "example")
        return {
            "stages": {name: {key: counts.get(key, 0) for key in _COUNTED} for name, counts in self.stages.items()},
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "failures": [dict(zip(names, failure, strict=True)) for failure in self.failures],
            "invalid": [dict(zip(("stage", "rows", "example"), each, strict=True)) for each in self.invalid],
            "failed_requests": [asdict(failed) for failed in self.failed_requests],
            "waiting": self.waiting,
            "batches": None if self.batches is None else asdict(self.batches),
        }


def describe(folder: Path) -> RunInfo:
    """Sum up the run in ``folder``, live or not."""
    info = RunInfo(folder)
    try:
        with RunReader(folder) as reader:
            _fill(info, reader)
    except StoreError as error:
        info.status = "running" if isinstance(error, StoreInUseError) else "damaged"
        info.answers = False
        info.problem = str(error)
        info.experiment = folder.parent.name  # a guess: that is how runs' folders are laid out
    return info


def _fill(info: RunInfo, reader: RunReader) -> None:
    tables = {name for (name,) in reader.rows("SELECT table_name FROM duckdb_tables()")}
    found = []
    if tables & {"run", SOURCE}:
        found = reader.rows("SELECT run_id, experiment, status, started_at FROM run")
    if not found:
        info.status = "empty"
        return
    info.run_id, info.experiment, stored, info.started_at = found[0]
    info.status = status_now(stored, held=reader.live)
    counts = dict(reader.rows("SELECT status, sum(rows)::BIGINT FROM progress GROUP BY ALL"))
    info.done, info.failed = counts.get("done", 0), counts.get("error", 0)
    info.pending, info.has_work = counts.get("pending", 0), "pending" in counts
    ((info.cost_usd,),) = reader.rows("SELECT sum(cost_usd) FROM attempts")


def counts(reader: RunReader) -> RunDetails:
    """What a run that is no empty one has done so far, in numbers alone: two queries."""
    found = RunDetails()
    for stage, status, rows in reader.rows("SELECT stage, status, rows FROM progress"):
        found.stages.setdefault(stage, {})[status] = rows
    totals = "SELECT count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_usd) FROM attempts"
    ((found.requests, asked, answered, found.cost_usd),) = reader.rows(totals)
    found.prompt_tokens, found.completion_tokens = int(asked or 0), int(answered or 0)
    return found


def details(reader: RunReader) -> RunDetails:
    """What a run that is no empty one has done so far."""
    found = counts(reader)
    for stage in (name for name, counts in found.stages.items() if "error" in counts):
        found.failures += reader.rows(
            f"SELECT {literal(stage)}, error_type, count(*) AS rows, any_value(error) FROM {quoted(stage)} "
            f"WHERE status = 'error' GROUP BY ALL ORDER BY rows DESC, error_type LIMIT {_ERROR_KINDS}"
        )
    named = f"SELECT table_name FROM duckdb_columns() WHERE column_name = {literal(INVALID)}"  # older runs: none
    having = {name for (name,) in reader.rows(named)}
    for stage in (name for name in found.stages if name in having):
        found.invalid += reader.rows(invalid_answers(stage))
    found.failed_requests = failed_requests(reader)
    found.batches = in_batches(reader.rows, lambda label, usage: prices_of(reader.rows)(label, usage))
    if reader.live:
        found.waiting = {stage: rows for stage in found.stages if (rows := waiting_rows(reader, stage))}
    return found


def runs_below(outputs: Path, *, experiment: str | None, states: Collection[str]) -> Iterator[RunInfo]:
    """The runs below a folder, most recently written first.

    Parameters
    ----------
    experiment
        Only this one's; ``None`` for all.
    states
        Only runs in one of these :data:`STATES`; none for all.
    """
    for folder in run_folders(outputs):
        info = describe(folder)
        if (experiment is None or info.experiment == experiment) and (not states or info.status in states):
            yield info


def unfinished_runs() -> Iterator[RunInfo]:
    """The runs below ``outputs/`` that did not come to their end, and that no process runs; the newest first."""
    return (info for info in map(describe, run_folders()) if info.unfinished)
