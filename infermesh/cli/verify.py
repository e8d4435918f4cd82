"""``infermesh verify``: what must hold of a run, checked."""

from __future__ import annotations

import typer

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run
from infermesh.errors import StoreError
from infermesh.query.verify import verify


def verify_run(run: str | None) -> None:
    """Print a line for each thing that was checked; exit with 1 if one is wrong."""
    folder = find_run(run)
    print(folder)
    wrong = 0
    try:
        for finding in verify(folder):
            wrong += not finding.ok
            print(f"  {'ok   ' if finding.ok else 'WRONG'}  {finding.about}: {finding.words}")
    except StoreError as error:
        fail(str(error))
    if wrong:
        raise typer.Exit(1)
