"""``infermesh batches`` and ``stop --cancel-batches``."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import orjson

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run
from infermesh.cli.query import stop_run
from infermesh.cli.run import stored_declaration
from infermesh.errors import StoreError
from infermesh.hints import command, counted
from infermesh.query.reader import RunReader, is_live
from infermesh.runs.batches.cancel import cancel_batches

_COLUMNS = (
    "deployment, batch_id, state, provider_state, requests, answered, failed, unserved, made_at, submitted_at, "
    "ended_at, error"
)


def show_batches(run: str | None, *, json: bool) -> None:
    """Print a line for each batch, the newest first."""
    folder = find_run(run)
    try:
        with RunReader(folder) as reader:
            there = reader.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'batches'").fetchone()
            rows: list[Any] = []
            if there is not None:
                rows = reader.execute(f"SELECT {_COLUMNS} FROM batches ORDER BY made_at DESC").fetchall()
    except StoreError as error:
        fail(str(error))
    names = [name.strip() for name in _COLUMNS.split(",")]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    if json:
        sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
        return
    if not found:
        print(f"{folder}: no batches (deployments.X.batch.enabled is not set)", file=sys.stderr)
    for each in found:
        print(_line(each))
    if any(each["state"] in ("creating", "submitted") for each in found):
        print(f"collect them: {command('resume', folder)}", file=sys.stderr)
        print(f"end them: {command('stop', folder, '--cancel-batches')}", file=sys.stderr)


def _line(each: dict[str, Any]) -> str:
    made = f"{each['submitted_at'] or each['made_at']:%Y-%m-%d %H:%M:%S}"
    state = each["state"] if each["state"] != "submitted" else each["provider_state"] or "submitted"
    words = counted(each["requests"], "request")
    if each["state"] == "collected":
        words += f": {each['answered']} answered, {each['failed']} failed"
        words += f", {each['unserved']} without an answer" if each["unserved"] else ""
    why = f": {each['error']}" if each["error"] else ""
    return f"{made}  {each['deployment']:<12} {each['batch_id'] or '-':<32} {state:<12} {words}{why}"


def cancel_batches_of(run: str | None, wait: bool) -> None:
    """Stop a run if it is going on, then end its batches at their providers."""
    if not wait:
        fail("--cancel-batches waits until the run has ended: leave out --no-wait", code=2)
    folder = find_run(run)
    if is_live(folder):
        stop_run(str(folder), True)
    found = asyncio.run(cancel_batches(stored_declaration(folder), folder, os.environ))
    for label, batch_id, problem in found:
        print(f"{label}: {batch_id}: {problem or 'asked to end'}", file=sys.stderr)
    if not found:
        print(f"{folder}: no batch of it is at a provider", file=sys.stderr)
        return
    print(f"  collect what they have answered: {command('resume', folder)}", file=sys.stderr)
    if any(problem for _, _, problem in found):
        fail("not every batch could be ended")
