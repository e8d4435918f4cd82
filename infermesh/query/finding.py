"""The run that a name stands for: a folder, an id, an experiment; or the runs of a sweep."""

from __future__ import annotations

from pathlib import Path

from infermesh.exact_json import loads
from infermesh.hints import counted
from infermesh.query.summary import describe
from infermesh.store.folders import JOBS, LATEST, OUTPUTS, is_sweep, job_folders, run_folders, sweep_of
from infermesh.store.schema import DATABASE

__all__ = ["group_words", "named_run", "not_begun", "runs_in"]


def named_run(name: str) -> Path | None:
    """The folder of the run that a name stands for; ``None`` if there is none.

    Parameters
    ----------
    name
        A run's folder, its database file, its id, or an experiment's name (its newest run).
    """
    path = Path(name)
    if path.name == DATABASE and path.is_file():
        return path.parent
    if (path / DATABASE).is_file():
        return path.parent / path.readlink() if path.is_symlink() else path  # the run's folder, not the link "latest"
    for folder in run_folders():
        if folder.name == name or describe(folder).run_id == name:
            return folder
    latest = OUTPUTS / name / LATEST
    return named_run(str(latest)) if (latest / DATABASE).is_file() else None


def runs_in(name: str | None) -> tuple[Path, list[Path]] | None:
    """The folder that a user names and the runs in it, if it is no run itself: a sweep, or a folder of runs.

    A sweep is also known by the time that it is named by. ``None``: it is a run, or there is none in it.
    """
    if name is None:
        return None
    path = Path(name)
    if not path.is_dir():
        path = next((sweep for folder in run_folders() if (sweep := sweep_of(folder)) and sweep.name == name), path)
    if not path.is_dir() or (path / DATABASE).exists():
        return None
    found = job_folders(path)
    return (path, found) if found else None


def group_words(folder: Path, runs: list[Path]) -> str:
    """What a folder of runs is, in words."""
    if not is_sweep(folder):
        return f"{folder} is a folder of {counted(len(runs), 'run')}"
    missing = not_begun(folder, runs)
    begun = f", {len(runs)} of them begun" if missing else ""
    return f"{folder} is a sweep of {counted(len(runs) + missing, 'job')}{begun}"


def not_begun(folder: Path, runs: list[Path]) -> int:
    """How many jobs of a sweep have no run yet, by the newest record of its jobs; 0 where nobody knows."""
    records = sorted((folder / JOBS).glob("*.json"), key=lambda file: file.stat().st_mtime)
    total = loads(records[-1].read_bytes()).get("of") if records else None
    return max((total or 0) - len(runs), 0)
