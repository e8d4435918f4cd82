"""Where runs are: their folders below ``outputs/``, and finding, making and linking them."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from infermesh.store.schema import DATABASE

OUTPUTS = Path("outputs")


def run_folders(outputs: Path = OUTPUTS) -> list[Path]:
    """Every run's folder below ``outputs``, newest first, by when its database was last written."""
    if not outputs.is_dir():
        return []
    databases = [
        path for path in outputs.rglob(DATABASE) if not any(part.is_symlink() for part in (path.parent, *path.parents))
    ]
    return [path.parent for path in sorted(databases, key=lambda path: path.stat().st_mtime, reverse=True)]


def outputs_of(folder: Path) -> Path:
    """The folder that holds all runs: the one called ``outputs`` above a run's, else that of the working directory."""
    return next((parent for parent in folder.absolute().parents if parent.name == "outputs"), Path.cwd() / "outputs")


def point_latest(folder: Path, experiment: str) -> None:
    """``outputs/<experiment>/latest`` → the run, where it lies below such a folder (a sweep's jobs one level deeper).

    A file system without symbolic links goes without.
    """
    home = next((parent for parent in list(folder.absolute().parents)[:2] if parent.name == experiment), None)
    if home is None:
        return
    temporary = home / f".latest-{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.symlink_to(folder.absolute().relative_to(home))
        temporary.replace(home / "latest")


def databases(outputs: Path) -> list[Path]:
    """Every run's database below a folder, the newest first by when it was last written."""
    found = [path for path in outputs.rglob(DATABASE) if not path.parent.is_symlink()]
    return sorted(found, key=written_at, reverse=True)


def written_at(database: Path) -> float:
    """When it was last written; what was not checkpointed stands in the log beside it."""
    times = []
    for path in (database, database.with_name(f"{database.name}.wal")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def all_databases(folder: Path) -> list[Path]:
    paths = {path.resolve() for path in folder.resolve().rglob(DATABASE)}
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def fixed(folder: Path) -> Path:
    """The folder that a path over ``latest`` means now: the link moves when a run starts."""
    if "latest" not in folder.parts:
        return folder
    real = folder.resolve()
    return real.relative_to(Path.cwd()) if not folder.is_absolute() and real.is_relative_to(Path.cwd()) else real


def made(folder: Path) -> Path:
    """Make ``folder``, or ``folder-2`` and so on where it is taken: two runs may start within a second."""
    for number in itertools.count(2):
        taken = folder if number == 2 else folder.with_name(f"{folder.name}-{number - 1}")
        with contextlib.suppress(FileExistsError):
            taken.mkdir(parents=True)
            return taken
    raise AssertionError("unreachable")
