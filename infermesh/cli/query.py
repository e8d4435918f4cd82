"""``infermesh sql`` and ``stop``, for finished and live runs."""

from __future__ import annotations

import sys
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.cli.compare import ask_runs
from infermesh.cli.find_run import asked_run, find_run, say_run
from infermesh.cli.print_rows import chosen_format, write_query
from infermesh.errors import StoreError
from infermesh.hints import command, counted
from infermesh.query.finding import group_words, runs_in
from infermesh.query.reader import RunReader, is_live, request_stop
from infermesh.query.summary import describe
from infermesh.store.folders import OUTPUTS, run_folders
from infermesh.store.sql_words import refusal


def run_sql(
    query: str, run: str | None, format: str | None, timeout: float | None = None, *, record: bool = False
) -> None:
    """Run a query on a run's database, or on those of a sweep, and write its rows to stdout."""
    chosen = chosen_format(format, record)
    if (group := runs_in(run)) is not None:
        print(f"{group_words(*group)}: asked together, as --runs does", file=sys.stderr)
        ask_runs(query, group[1], chosen)
        return
    folder = find_run(run)
    with _open(folder) as reader:
        try:
            with reader.asked(query, timeout=timeout) as (connection, asked):
                write_query(connection, asked, chosen)
                say_run(run, folder)
        except StoreError as error:
            fail(f"{refusal(error, 2000)} {asked_run(run, folder)}")


def _open(folder: Path) -> RunReader:
    try:
        return RunReader(folder)
    except StoreError as error:
        fail(str(error))


def stop_run(run: str | None, wait: bool) -> None:
    """Ask a live run to drain; with ``wait``, wait for its end and say how it ended."""
    folder = live_run(run)
    asking = request_stop(folder)
    try:
        process = next(asking)
        if not wait:
            print(f"{folder}: asked to stop (process {process})", file=sys.stderr)
            return
        print(f"{folder}: stopping (process {process}); rows already sent are waited for", file=sys.stderr)
        for _ in asking:
            pass
    except StoreError as error:
        fail(str(error))
    info = describe(folder)
    print(f"{folder}: {info.status}: {info.done} done, {info.failed} failed, {info.pending} pending", file=sys.stderr)
    if info.unfinished or info.failed:
        print(f"  resume: {command('resume', folder)}", file=sys.stderr)


def live_run(run: str | None) -> Path:
    """The run that a user names; for a sweep or ``None`` the only live one."""
    group = runs_in(run)
    if run is not None and group is None:
        return find_run(run)
    place, folders = (OUTPUTS, run_folders()) if group is None else group
    live = [folder for folder in folders if is_live(folder)]
    if not live:
        fail(f"no run is going on below {place}/")
    if len(live) > 1:
        fail(f"{counted(len(live), 'run is', 'runs are')} going on, say which one: {', '.join(map(str, live))}", code=2)
    return live[0]
