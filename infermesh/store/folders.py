"""The folders of runs below ``outputs/``: finding, creating, linking and removing them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

OUTPUTS = Path("outputs")
DATABASE = "run.duckdb"
LATEST = "latest"
CONFIG_FOLDER = ".hydra"
LOG = "run.log"
JOBS = ".jobs"  # in a sweep's folder: a record of each of its jobs


def run_folders(outputs: Path = OUTPUTS) -> list[Path]:
    """The folders of all runs at or below ``outputs``, most recently written first (:func:`written_at`).

    Each run is listed once, under a path without symbolic links if it has one: ``latest`` is not another run.
    """
    by_real_path: dict[str, Path] = {}
    for real, folder in _with_database(outputs):
        by_real_path.setdefault(real, folder)
    return sorted(by_real_path.values(), key=written_at, reverse=True)


def _with_database(top: Path) -> Iterator[tuple[str, Path]]:
    """``(real path, path)`` of the folders at or below ``top`` that hold a database: those behind links come last.

    ``outputs`` and folders in it may be links to another disk, as is common on clusters. A link to a folder above
    ``top`` is not followed: it leads to everything else on the disk.
    """
    real_top = os.path.realpath(top)
    seen: set[str] = set()
    links = [str(top)]
    while links:
        start = links.pop(0)
        real_start = os.path.realpath(start)
        if real_start in seen or Path(real_start) in Path(real_top).parents:
            continue
        for place, folders, files in os.walk(start):
            real = real_start + place.removeprefix(start)  # walk follows no links, so this need not be looked up
            seen.add(real)
            if DATABASE in files:
                yield real, Path(place)
                if place != str(top):
                    folders.clear()  # no runs are in a run's folder; a link there may lead to a large data set
            links += [path for name in sorted(folders) if os.path.islink(path := os.path.join(place, name))]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, whose jobs are in it."""
    return (folder / JOBS).is_dir() or (folder / "multirun.yaml").is_file()


def sweep_of(folder: Path) -> Path | None:
    """The sweep that a run is a job of; ``None`` if it is none."""
    return folder.parent if is_sweep(folder.parent) else None


def job_folders(folder: Path) -> list[Path]:
    """The runs at or below a folder, by name: a sweep's jobs in their order."""
    return sorted(run_folders(folder), key=lambda found: [(len(part), part) for part in found.parts])


def written_at(folder: Path) -> float:
    """When a run was last written to, in seconds since the epoch; 0 if it has no database.

    DuckDB writes to the ``.wal`` file beside the database, and merges it into the database from time to time.
    """
    times = []
    for name in (DATABASE, f"{DATABASE}.wal"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def outputs_of(folder: Path) -> Path:
    """The folder of all runs: the nearest folder above ``folder`` called ``outputs``, else ``./outputs``."""
    return next((parent for parent in folder.absolute().parents if parent.name == "outputs"), Path.cwd() / "outputs")


def point_latest(folder: Path, experiment: str) -> None:
    """Point ``outputs/<experiment>/latest`` to a run, if its folder is in ``<experiment>/``, or one level deeper.

    A sweep's jobs are one level deeper. On a file system without symbolic links, nothing happens.
    """
    home = next((parent for parent in list(folder.absolute().parents)[:2] if parent.name == experiment), None)
    if home is None:
        return
    temporary = home / f".{LATEST}-{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.symlink_to(folder.absolute().relative_to(home))
        temporary.replace(home / LATEST)


def resolve_latest(folder: Path) -> Path:
    """Resolve ``latest`` in a path, so that the path keeps its meaning when the next run moves the link."""
    if LATEST not in folder.parts:
        return folder
    real = folder.resolve()
    return real.relative_to(Path.cwd()) if not folder.is_absolute() and real.is_relative_to(Path.cwd()) else real


def claim_folder(folder: Path) -> Path:
    """Create ``folder``, or ``folder-2`` and so on if it exists: folders are named by the second."""
    for number in itertools.count(2):
        taken = folder if number == 2 else folder.with_name(f"{folder.name}-{number - 1}")
        with contextlib.suppress(FileExistsError):
            taken.mkdir(parents=True)
            return taken
    raise AssertionError("unreachable")


def discard(folder: Path, also: Collection[str] = (), *, with_parent: bool = True) -> None:
    """Remove the folder of a run that never started.

    Parameters
    ----------
    also
        A folder that holds anything but the config, the log and the files named here is kept.
    with_parent
        Remove the parent folder too if it is then empty: an experiment's folder without a run. A checkpoint is beside
        a user's output, in a folder that is the user's.
    """
    if folder.is_dir() and all(item.name in {CONFIG_FOLDER, LOG, *also} for item in folder.iterdir()):
        shutil.rmtree(folder)
        if with_parent:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
