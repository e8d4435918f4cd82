"""Finding runs: by folder, by id, the newest, the newest unfinished."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from infermesh.cli.app import fail
from infermesh.errors import StoreError, StoreInUseError
from infermesh.execution import DATABASE
from infermesh.store.reader import RunReader, open_run

OUTPUTS = Path("outputs")


@dataclass(slots=True)
class RunInfo:
    """One run as ``infermesh runs`` lists it.

    ``status`` is ``running`` while a process holds it; ``answers`` is false where that one cannot be asked.
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

    @property
    def unfinished(self) -> bool:
        """Whether rows are left and no process is at them."""
        return self.status in ("interrupted", "stopped", "crashed", "killed")


def run_folders(outputs: Path = OUTPUTS) -> list[Path]:
    """Every run's folder below ``outputs``, newest first, by when its database was last written."""
    if not outputs.is_dir():
        return []
    databases = [
        path for path in outputs.rglob(DATABASE) if not any(part.is_symlink() for part in (path.parent, *path.parents))
    ]
    return [path.parent for path in sorted(databases, key=lambda path: path.stat().st_mtime, reverse=True)]


def describe(folder: Path) -> RunInfo:
    """Read a run's summary. A run whose process was killed counts as ``killed``."""
    info = RunInfo(folder)
    try:
        with open_run(folder) as reader:
            _fill(info, reader)
    except StoreError as error:
        info.status = "running" if isinstance(error, StoreInUseError) else "damaged"
        info.answers = False
        info.experiment = folder.parent.name  # as run folders are laid out; the database cannot be asked
    return info


def _fill(info: RunInfo, reader: RunReader) -> None:
    tables = {name for (name,) in reader.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    row = None
    if "run" in tables:
        row = reader.execute("SELECT run_id, experiment, status, started_at FROM run").fetchone()
    if row is None:
        info.status = "empty"
        return
    info.run_id, info.experiment, info.status, info.started_at = row
    if info.status == "running" and not reader.live:
        info.status = "killed"  # nobody holds the file, so nobody is at it
    counts = dict(reader.execute("SELECT status, sum(rows)::BIGINT FROM progress GROUP BY ALL").fetchall())
    info.done, info.failed = counts.get("done", 0), counts.get("error", 0)
    info.pending = counts.get("pending", 0)
    cost = reader.execute("SELECT sum(cost_usd) FROM attempts").fetchone()
    info.cost_usd = cost[0] if cost else None


def find_run(name: str | None) -> Path:
    """The folder of the run that a user names: a folder, its database, a run id; the newest for ``None``."""
    if name is None:
        folders = run_folders()
        if not folders:
            fail("there is no run below outputs/ yet: infermesh run +experiment=quickstart")
        return folders[0]
    path = Path(name)
    if path.name == DATABASE and path.is_file():
        return path.parent
    if (path / DATABASE).is_file():
        return path.parent / path.readlink() if path.is_symlink() else path  # say which run "latest" is
    for folder in run_folders():
        if folder.name == name or describe(folder).run_id == name:
            return folder
    latest = OUTPUTS / name / "latest"
    if (latest / DATABASE).is_file():
        return find_run(str(latest))
    fail(f"no run '{name}': expected a run's folder (one that holds {DATABASE}), its id, or an experiment's name")


def newest_unfinished() -> Path | None:
    """The newest run that has rows left and is not going on."""
    return next((folder for folder in run_folders() if describe(folder).unfinished), None)
