"""A run in short: its id, status, rows and cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from infermesh.errors import StoreError, StoreInUseError
from infermesh.query.reader import RunReader
from infermesh.store.folders import run_folders
from infermesh.store.schema import SOURCE, UNFINISHED, status_now


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
    cost_usd: float | None = None
    answers: bool = True
    problem: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether rows are pending and no process runs it."""
        return self.status in UNFINISHED


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
    info.pending = counts.get("pending", 0)
    ((info.cost_usd,),) = reader.rows("SELECT sum(cost_usd) FROM attempts")


def newest_unfinished() -> Path | None:
    """The newest run that has pending rows, and that no process runs; ``None`` if there is none."""
    return next((folder for folder in run_folders() if describe(folder).unfinished), None)
