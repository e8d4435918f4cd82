"""Find the run that a user names."""

from __future__ import annotations

from pathlib import Path

from infermesh.cli.common import fail
from infermesh.query.summary import describe
from infermesh.store.folders import OUTPUTS, run_folders
from infermesh.store.schema import DATABASE


def find_run(name: str | None) -> Path:
    """Find a run's folder, or exit with an error.

    Parameters
    ----------
    name
        A run's folder, its database file, its id, or an experiment's name (its newest run). ``None``: the newest run.
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
    for folder in run_folders():
        if folder.name == name or describe(folder).run_id == name:
            return folder
    latest = OUTPUTS / name / "latest"
    if (latest / DATABASE).is_file():
        return find_run(str(latest))
    fail(f"no run '{name}': expected a run's folder (one that holds {DATABASE}), its id, or an experiment's name")
