"""Where runs are: their folders below ``outputs/``, and finding, claiming, linking and discarding them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from infermesh.store.schema import DATABASE

OUTPUTS = Path("outputs")
LATEST = "latest"
CONFIG_FOLDER = ".hydra"
LOG = "run.log"


def run_folders(outputs: Path = OUTPUTS) -> list[Path]:
    """Every run's folder below ``outputs``, and ``outputs`` itself where it is one; the newest first.

    A run counts once, under the name that no link stands in, where it has one: ``latest`` is no run of its own. What is
    newer was written to later, see :func:`written_at`.
    """
    by_place: dict[Path, Path] = {}
    for folder in _with_database(outputs):
        by_place.setdefault(folder.resolve(), folder)
    return sorted(by_place.values(), key=written_at, reverse=True)


def _with_database(top: Path) -> Iterator[Path]:
    """The folders below ``top`` that hold a database: first those that no link leads to, then those behind links.

    ``outputs`` and the folders in it may be links to another disk, as on most clusters.
    """
    seen: set[Path] = set()
    links = [top]
    while links:
        start = links.pop(0)
        if start.resolve() in seen:
            continue
        for place, folders, files in os.walk(start):
            folder = Path(place)
            seen.add(folder.resolve())
            links += sorted(folder / name for name in folders if (folder / name).is_symlink())
            if DATABASE in files:
                yield folder


def written_at(folder: Path) -> float:
    """When a run was last written to, in seconds since the epoch.

    DuckDB writes to the log beside the database, until it takes it over into the database.
    """
    times = []
    for name in (DATABASE, f"{DATABASE}.wal"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def outputs_of(folder: Path) -> Path:
    """The folder that holds all runs: the one called ``outputs`` above a run's, else that of the working directory."""
    return next((parent for parent in folder.absolute().parents if parent.name == "outputs"), Path.cwd() / "outputs")


def point_latest(folder: Path, experiment: str) -> None:
    """Let ``outputs/<experiment>/latest`` point to a run, if it is below such a folder; a sweep's jobs are one deeper.

    Where the file system has no symbolic links, there is no ``latest``.
    """
    home = next((parent for parent in list(folder.absolute().parents)[:2] if parent.name == experiment), None)
    if home is None:
        return
    temporary = home / f".{LATEST}-{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.symlink_to(folder.absolute().relative_to(home))
        temporary.replace(home / LATEST)


def resolve_latest(folder: Path) -> Path:
    """The folder that a path over ``latest`` means now: the link moves when the next run starts."""
    if LATEST not in folder.parts:
        return folder
    real = folder.resolve()
    return real.relative_to(Path.cwd()) if not folder.is_absolute() and real.is_relative_to(Path.cwd()) else real


def claim_folder(folder: Path) -> Path:
    """Make ``folder``, or ``folder-2`` and so on where it is taken: two runs may start within a second."""
    for number in itertools.count(2):
        taken = folder if number == 2 else folder.with_name(f"{folder.name}-{number - 1}")
        with contextlib.suppress(FileExistsError):
            taken.mkdir(parents=True)
            return taken
    raise AssertionError("unreachable")


def discard(folder: Path, also: Collection[str] = ()) -> None:
    """Remove a folder in which nothing ran, and its experiment's folder if that is empty then.

    It stays where it holds anything but the config, the log and the files that the caller names in ``also``.
    """
    if folder.is_dir() and all(item.name in {CONFIG_FOLDER, LOG, *also} for item in folder.iterdir()):
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
