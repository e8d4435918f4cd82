"""``infermesh sql``, ``status``, ``runs`` and ``stop``, for finished and live runs."""

from __future__ import annotations

import sys
from pathlib import Path

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run
from infermesh.cli.print_rows import chosen_format, write_query
from infermesh.errors import StoreError
from infermesh.hints import command, one_line
from infermesh.query.reader import RunReader, is_live, request_stop
from infermesh.query.summary import RunInfo, describe
from infermesh.store.folders import run_folders
from infermesh.store.schema import quoted
from infermesh.store.sql_words import refusal


def run_sql(query: str, run: str | None, format: str | None, timeout: float | None = None) -> None:
    """Run a query on a run's database and write its rows to stdout."""
    chosen = chosen_format(format)
    folder = find_run(run)
    with _open(folder) as reader:
        try:
            with reader.asked(query, timeout=timeout) as (connection, asked):
                write_query(connection, asked, chosen)
        except StoreError as error:
            fail(f"{refusal(error, 2000)} (in {folder})")


def _open(folder: Path) -> RunReader:
    try:
        return RunReader(folder)
    except StoreError as error:
        fail(str(error))


def show_status(run: str | None) -> None:
    """Print a run's status, the counts of its stages and its most frequent errors."""
    folder = find_run(run)
    info = describe(folder)
    print(f"{info.experiment}  {info.status}  {folder}")
    if info.status == "empty" or not info.answers:
        if info.status == "running":
            print(
                "a process has opened its database and does not answer: it is loading the source, or ending. Try again"
            )
        elif info.problem is not None:
            fail(info.problem)
        return
    with _open(folder) as reader:
        stages: dict[str, dict[str, int]] = {}
        for stage, status, rows in reader.rows("SELECT * FROM progress"):
            stages.setdefault(stage, {})[status] = rows
        for stage, counts in stages.items():
            total = sum(counts.values())
            words = ", ".join(
                f"{counts[key]} {key}" for key in ("done", "error", "skipped", "pending") if key in counts
            )
            print(f"  {stage}: {words} of {total}" if total or "pending" not in counts else f"  {stage}: not asked yet")
        for requests, asked, answered, cost_usd in reader.rows(
            "SELECT count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_usd) FROM attempts"
        ):
            cost = "" if cost_usd is None else f", ${cost_usd:.4f}"
            print(f"  {requests} requests, {(asked or 0) + (answered or 0)} tokens{cost}")
        for stage in (name for name, counts in stages.items() if "error" in counts):
            found = reader.rows(
                f"SELECT error_type, count(*) AS rows, any_value(error) FROM {quoted(stage)} WHERE status = 'error' "
                "GROUP BY ALL ORDER BY rows DESC LIMIT 5"
            )
            for kind, rows, example in found:
                print(f"  failed: {rows} × {stage}: {kind}: {one_line(example or '', 160)}")
    if info.status == "running":
        print(f"  stop: {command('stop', folder)}")
    elif info.unfinished or info.failed:
        print(f"  resume: {command('resume', folder)}")


def list_runs(outputs: Path) -> None:
    """Print the runs below a folder, newest first."""
    folders = run_folders(outputs)
    if not folders:
        print(f"no run below {outputs}/", file=sys.stderr)
        return
    for folder in folders:
        print(_run_line(describe(folder)))


def _run_line(info: RunInfo) -> str:
    started = info.started_at.strftime("%Y-%m-%d %H:%M:%S") if info.started_at else "-" * 19
    cost = "" if info.cost_usd is None else f"  ${info.cost_usd:.4f}"
    counts = f"{info.done} done, {info.failed} failed, {info.pending} pending"
    return f"{started}  {info.experiment:<16} {info.status:<12} {counts}{cost}  {info.folder}"


def stop_run(run: str | None, wait: bool) -> None:
    """Ask a live run to drain; with ``wait``, wait for its end and say how it ended."""
    folder = _live_run(run)
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


def _live_run(run: str | None) -> Path:
    """The run that a user names; for ``None`` the only live one."""
    if run is not None:
        return find_run(run)
    live = [folder for folder in run_folders() if is_live(folder)]
    if not live:
        fail("no run is going on below outputs/")
    if len(live) > 1:
        fail(f"{len(live)} runs are going on, say which one: {', '.join(map(str, live))}", code=2)
    return live[0]
