"""``infermesh pause``, ``continue`` and ``set``: hands on a live run, through its socket."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infermesh.cli.common import fail
from infermesh.cli.query import live_run
from infermesh.errors import StoreError
from infermesh.query.reader import ask_hands


def pause_run(run: str | None) -> None:
    """Let a live run send no request until it is told to go on."""
    _ask(live_run(run), {"op": "pause"})


def continue_run(run: str | None) -> None:
    """Let a paused run go on."""
    _ask(live_run(run), {"op": "continue"})


def set_in_run(words: Sequence[str], *, keep: bool) -> None:
    """Change keys of a live run. The first word may name the run; the others are ``KEY=VALUE``."""
    run, changes = (None, [*words]) if "=" in words[0] else (words[0], [*words[1:]])
    if not changes:
        fail(
            "what is to be set? infermesh set RUN KEY=VALUE …, such as stages.answers.max_parallel_requests=128", code=2
        )
    _ask(live_run(run), {"op": "set", "changes": changes, "keep": keep})


def retry_live(folder: Path, stage: str, where: str) -> None:
    """Have a live run send failed rows of a stage again."""
    _ask(folder, {"op": "retry", "stage": stage, "where": where})


def _ask(folder: Path, request: Mapping[str, Any]) -> None:
    try:
        said = ask_hands(folder, request)
    except StoreError as error:
        fail(str(error))
    for line in said:
        print(f"{folder}: {line}", file=sys.stderr)
