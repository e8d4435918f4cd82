"""``infermesh sql --all`` and ``--runs``, and ``infermesh diff``: commands over several runs."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run
from infermesh.cli.print_rows import chosen_format, write_query
from infermesh.errors import StoreError
from infermesh.hints import command, counted, nearest, one_line
from infermesh.query.diff import SIDES, RunDiff, StageDiff, StageTotals
from infermesh.query.finding import runs_in
from infermesh.query.union import RunUnion
from infermesh.store.connection import damage
from infermesh.store.folders import run_folders
from infermesh.store.schema import DATABASE

_MOST_LEFT_OUT = 10  # runs that are named
# A terminal has no room for keys and whole answers, so it gets the first column that differs, or the error.
_FOR_TERMINAL = (
    "SELECT stage, row_id_a AS row, differs, "
    + ", ".join(
        f"coalesce(answer_{side} ->> ('$.\"' || split_part(differs, ', ', 1) || '\"'), answer_{side} ->> 'error') "
        f"AS {side}"
        for side in SIDES
    )
    + " FROM ({})"
)


def sql_across(
    query: str,
    patterns: Sequence[str],
    format: str | None,
    *,
    record: bool,
    run: str | None,
    every: bool,
    outputs: Path,
) -> None:
    """Run a query over many runs' tables and write its rows to stdout."""
    chosen = chosen_format(format, record)
    if run is not None or (every and patterns):
        fail("--run asks one run, --runs and --all ask many: give one of the three", code=2)
    folders = run_folders(outputs) if every else [folder for pattern in patterns for folder in _matching(pattern)]
    folders = list({folder.resolve(): folder for folder in reversed(folders)}.values())
    if not folders:
        fail(f"there is no run below {outputs}/" if every else f"no run matches {', '.join(patterns)}")
    ask_runs(query, folders, chosen)


def ask_runs(query: str, folders: Sequence[Path], format: str) -> None:
    """Run a query over these runs' tables; runs that cannot be asked are named on stderr."""
    with RunUnion(folders, DATABASE) as union:
        try:
            union.prepare(query)
            said = _say_left_out(union.left_out)
            if not union.runs:
                fail(f"none of {counted(len(folders), 'run')} can be asked")
            try:
                write_query(union.connection, query, format)
            except duckdb.CatalogException:  # now with all views, so that the message can name the nearest table
                union.make_views()
                _say_left_out(union.left_out[said:])
                write_query(union.connection, query, format)
        except duckdb.Error as error:
            fail(f"{damage(error) or one_line(error, 2000)} (in {counted(len(union.runs), 'run')}){union.about(error)}")


def _say_left_out(lines: Sequence[str]) -> int:
    """Name the runs that are left out; return how many they are."""
    for line in lines[:_MOST_LEFT_OUT]:
        print(f"left out: {line}", file=sys.stderr)
    if len(lines) > _MOST_LEFT_OUT:
        print(f"left out: {len(lines) - _MOST_LEFT_OUT} more", file=sys.stderr)
    return len(lines)


def _matching(pattern: str) -> list[Path]:
    """The runs that a glob of folders stands for: folders that are runs, and all runs below the others."""
    found: list[Path] = []
    for match in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        path = Path(match)
        if path.name == DATABASE:
            path = path.parent
        if (path / DATABASE).is_file():
            found.append(Path(os.path.relpath(path.resolve())) if path.is_symlink() else path)
        elif path.is_dir() and not path.is_symlink():
            found += run_folders(path)
    return found


def diff_runs(run_a: str, run_b: str, stage: str | None, limit: int, format: str | None) -> None:
    """Compare two runs; the summary goes to stderr, and the rows that differ go to stdout."""
    chosen = chosen_format(format)
    first = find_run(run_a, lambda job: _diff_command(job, run_b))
    second = find_run(run_b, lambda job: command("diff", first, job))
    try:
        with RunDiff(first / DATABASE, second / DATABASE) as diff:
            stages = _chosen_stages(diff, stage, first, second)
            found = [diff.compare(name) for name in stages]
            _print_summary(first, second, found)
            if stage is None:
                _say_uncompared(diff)
            if chosen == "table" and not any(each.different or each.other_status for each in found):
                print("no row differs", file=sys.stderr)
                return
            rows = diff.differing(stages, limit)
            write_query(diff.connection, _FOR_TERMINAL.format(rows) if chosen == "table" else rows, chosen)
    except StoreError as error:
        fail(str(error))
    except duckdb.Error as error:
        fail(str(damage(error) or one_line(error, 2000)))


def _diff_command(job: Path, other: str) -> str:
    """Compare a sweep's last job with the run that was named, or its first job with the last."""
    group = runs_in(other)
    return command("diff", job, other) if group is None else command("diff", group[1][0], job)


def _chosen_stages(diff: RunDiff, stage: str | None, first: Path, second: Path) -> list[str]:
    common = diff.common
    if stage is not None:
        if stage not in common:
            fail(f"--stage {stage}: no stage of both runs.{nearest(stage, common)}")
        return [stage]
    if not common:
        in_a, in_b = (", ".join(diff.stages(side)) or "none" for side in SIDES)
        fail(f"the runs have no stage in common: {first} has {in_a}; {second} has {in_b}")
    return common


def _say_uncompared(diff: RunDiff) -> None:
    for side in SIDES:
        others = [name for name in diff.stages(side) if name not in diff.common]
        if others:
            print(f"only in {side.upper()}: stage {', '.join(others)}", file=sys.stderr)


_Measure = tuple[str, Callable[[StageTotals], int | float | None], str]  # title, value, format
_MEASURES: tuple[_Measure, ...] = (
    ("failed rows", lambda side: side.failures, ",d"),
    ("requests", lambda side: side.requests, ",d"),
    ("retries", lambda side: side.retries, ",d"),
    ("prompt tokens", lambda side: side.prompt_tokens, ",d"),
    ("completion tokens", lambda side: side.completion_tokens, ",d"),
    ("cost, $", lambda side: side.cost_usd, ".4f"),
    ("p50 service, s", lambda side: side.p50_s, ".3f"),
    ("p95 service, s", lambda side: side.p95_s, ".3f"),
    ("rows/s", lambda side: side.rows_per_s, ",.1f"),
)


def _print_summary(first: Path, second: Path, stages: Sequence[StageDiff]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from infermesh.cli.console import SafeConsole

    print(f"A  {first}\nB  {second}", file=sys.stderr)
    for found in stages:
        counts = [
            f"{found.same} same answer",
            f"{found.different} different answer",
            f"{found.other_status} done in one and not in the other" if found.other_status else "",
            f"{found.only_a} only in A" if found.only_a else "",
            f"{found.only_b} only in B" if found.only_b else "",
        ]
        print(
            f"\n{found.stage}: {counted(found.both, 'row')} in both; {', '.join(filter(None, counts))}", file=sys.stderr
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("", "A", "B", "B / A"):
            table.add_column(title, justify="right" if title else "left")
        for title, measure, form in _MEASURES:
            a, b = measure(found.a), measure(found.b)
            shown = ("–" if value is None else format(value, form) for value in (a, b))
            table.add_row(title, *shown, Text(f"{b / a:.2f}" if a and b is not None else "", style="dim"))
        SafeConsole(stderr=True).print(table)
