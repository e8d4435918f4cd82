"""Find the run that a user names, or the runs of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.hints import command
from infermesh.query.summary import describe
from infermesh.store.folders import OUTPUTS, is_sweep, job_folders, run_folders, sweep_of
from infermesh.store.schema import DATABASE

__all__ = ["find_run", "group_words", "runs_in", "say_run", "sweep_command"]

Instead = Callable[[Path], str]


def find_run(name: str | None, instead: Instead | None = None) -> Path:
    """Find a run's folder, or exit with an error.

    Parameters
    ----------
    name
        A run's folder, its database file, its id, or an experiment's name (its newest run). ``None``: the newest run.
    instead
        Takes a job's folder, and gives the command that does for it what cannot be done for its whole sweep.
    """
    if name is None:
        folders = run_folders()
        if not folders:
            fail("there is no run below outputs/ yet: infermesh run +experiment=quickstart")
        return folders[0]
    path = Path(name)
    if path.name == DATABASE and path.is_file():
        return path.parent
    if (path / DATABASE).is_file():
        return (
            path.parent / path.readlink() if path.is_symlink() else path
        )  # show the run's folder, not the link "latest"
    if (path / DATABASE).is_dir():
        fail(f"{path / DATABASE} is a folder: a run keeps its database in a file of that name. Move the folder away")
    if (group := runs_in(name)) is not None:
        example = (instead or (lambda job: str(job)))(group[1][-1])
        fail(f"{group_words(*group)}, and this takes one run: {example}", code=2)
    for folder in run_folders():
        if folder.name == name or describe(folder).run_id == name:
            return folder
    latest = OUTPUTS / name / "latest"
    if (latest / DATABASE).is_file():
        return find_run(str(latest))
    fail(f"no run '{name}': expected a run's folder (one that holds {DATABASE}), its id, or an experiment's name")


def say_run(name: str | None, folder: Path) -> None:
    """Say on stderr which run was found where the name that the user gave does not."""
    if name is not None and Path(name) in (folder, folder / DATABASE):
        return
    why = " (the newest run)" if name is None else ""
    sweep = sweep_of(folder)
    if sweep is not None:
        why += f", a job of a sweep: --run {sweep} asks all {len(job_folders(sweep))}"
    print(f"asked {folder}{why}", file=sys.stderr)


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
    what = "a sweep of {} jobs" if is_sweep(folder) else "a folder of {} runs"
    return f"{folder} is {what.format(len(runs))}"


def sweep_command(folder: Path) -> str | None:
    """The command that goes on with a sweep, from what Hydra keeps of it; ``None`` if that is not there."""
    import yaml

    try:
        kept = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]["overrides"]
        task, hydra = list(kept["task"] or ()), list(kept["hydra"] or ())
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    ours = ("hydra.mode", "hydra.callbacks", "hydra.sweep.dir")
    others = [item for item in hydra if not item.lstrip("+").startswith(ours)]
    return command("run", "-m", *task, *others, f"hydra.sweep.dir={folder}")
