"""Find the run that a user names, or the runs of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.hints import command
from infermesh.query.finding import group_words, named_run, runs_in
from infermesh.store.folders import job_folders, run_folders, sweep_of
from infermesh.store.schema import DATABASE

__all__ = ["asked_run", "find_run", "say_run", "sweep_command"]

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
            own = sorted(file.stem for file in Path("conf/experiment").glob("*.yaml"))
            fail(f"there is no run below outputs/ yet: infermesh run +experiment={own[0] if own else 'quickstart'}")
        return folders[0]
    if (Path(name) / DATABASE).is_dir():
        place = Path(name) / DATABASE
        fail(f"{place} is a folder: a run keeps its database in a file of that name. Move the folder away")
    if (group := runs_in(name)) is not None:
        example = (instead or (lambda job: str(job)))(group[1][-1])
        fail(f"{group_words(*group)}, and this takes one run: {example}", code=2)
    if (found := named_run(name)) is None:
        fail(f"no run '{name}': expected a run's folder (one that holds {DATABASE}), its id, or an experiment's name")
    return found


def say_run(name: str | None, folder: Path) -> None:
    """Say on stderr which run was found where the name that the user gave does not."""
    if name is not None and Path(name) in (folder, folder / DATABASE):
        return
    why = " (the newest run)" if name is None else ""
    sweep = sweep_of(folder)
    if sweep is not None:
        why += f", a job of a sweep: --run {sweep} asks all {len(job_folders(sweep))}"
    print(f"asked {folder}{why}", file=sys.stderr)


def asked_run(name: str | None, folder: Path, another: str = "--run NAME") -> str:
    """The end of an error over a run that was asked: which one it was; and how to ask another, if nobody named it."""
    return f"(in {folder})" if name is not None else f"(in {folder}, the newest run; {another} asks another)"


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
