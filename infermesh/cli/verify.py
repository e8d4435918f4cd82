"""``infermesh verify``: what must hold of a run, checked."""

from __future__ import annotations

from pathlib import Path

import typer

from infermesh.cli.common import print_error
from infermesh.cli.find_run import find_run, runs_in
from infermesh.errors import StoreError
from infermesh.query.verify import verify


def verify_run(run: str | None) -> None:
    """Print a line for each thing that was checked, of a sweep in each job; exit with 1 if one is wrong."""
    group = runs_in(run)
    folders = [find_run(run)] if group is None else group[1]
    wrong = [folder for folder in folders if not _verify(folder)]
    if wrong:
        raise typer.Exit(1)


def _verify(folder: Path) -> bool:
    print(folder)
    wrong = 0
    try:
        for finding in verify(folder):
            wrong += not finding.ok
            print(f"  {'ok   ' if finding.ok else 'WRONG'}  {finding.about}: {finding.words}")
    except StoreError as error:
        print_error(error)
        return False
    return not wrong
