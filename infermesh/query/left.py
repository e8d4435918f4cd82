"""The run that an experiment was left in, before a new one begins."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import duckdb

from infermesh.errors import StoreError
from infermesh.hints import command
from infermesh.store.connection import connect
from infermesh.store.folders import written_at
from infermesh.store.schema import DATABASE, UNFINISHED, status_now

__all__ = ["left_unfinished"]

_COUNTING_S = 1.0  # a new run does not wait longer for the numbers of an old one
_SAID = {"crashed": "crashed", "stopped": "stopped by itself"}


def left_unfinished(folder: Path) -> str | None:
    """The line that tells of the experiment's newest run, if it is unfinished and nobody runs it; else ``None``.

    A run that is live is passed over, and one that cannot be opened: nothing is waited for.

    Parameters
    ----------
    folder
        That of the new run. The others are beside it.
    """
    try:
        others = [each for each in folder.parent.iterdir() if each != folder and not each.is_symlink()]
    except OSError:
        return None
    newest = max((each for each in others if (each / DATABASE).is_file()), key=written_at, default=None)
    if newest is None:
        return None
    try:
        with contextlib.closing(connect(newest / DATABASE, read_only=True)) as connection:
            return _words(newest, connection)
    except (StoreError, duckdb.Error):
        return None


def _words(folder: Path, connection: duckdb.DuckDBPyConnection) -> str | None:
    status = status_now(*(connection.execute("SELECT status FROM run").fetchone() or ("done",)), held=False)
    if status not in UNFINISHED:
        return None
    timer = threading.Timer(_COUNTING_S, connection.interrupt)
    timer.start()
    try:
        (pending,) = connection.execute("SELECT sum(rows)::BIGINT FROM progress WHERE status = 'pending'").fetchall()[0]
        pending = f"{pending or 0:,}"
    except duckdb.InterruptException:
        pending = "many"
    finally:
        timer.cancel()
    if pending == "0":
        return None
    said = f"{folder} was {status}" if status not in _SAID else f"{folder} {_SAID[status]}"
    return f"{said}, with row states pending: {pending}. This is a new run; to go on there: {command('resume', folder)}"
