"""``infermesh status`` and ``runs``: what there is, how far it is, what failed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from infermesh.cli.common import fail
from infermesh.cli.find_run import find_run, sweep_command
from infermesh.errors import StoreError
from infermesh.hints import command, counted, nearest, one_line
from infermesh.query.finding import group_words, not_begun, runs_in
from infermesh.query.glance import first_query_across
from infermesh.query.in_batches import InBatches
from infermesh.query.reader import RunReader
from infermesh.query.summary import STATES, RunDetails, RunInfo, describe, details, runs_below
from infermesh.query.union import RunUnion
from infermesh.store.folders import OUTPUTS, sweep_of
from infermesh.store.schema import DATABASE

_SORTS: dict[str, Callable[[RunInfo], Any]] = {  # name → what to sort by, largest first
    "written": lambda info: 0,  # as they come
    "started": lambda info: info.started_at or datetime.min,
    "cost": lambda info: -1.0 if info.cost_usd is None else info.cost_usd,
    "done": lambda info: info.done,
    "failed": lambda info: info.failed,
    "pending": lambda info: info.pending,
}


def show_status(run: str | None, experiment: str | None, states: Sequence[str], *, json: bool) -> None:
    """Print a run's status, the counts of its stages and its most frequent errors; or the jobs of a sweep."""
    _check_states(states)
    if (group := runs_in(run)) is not None:
        infos = [info for info in map(describe, group[1]) if _matches(info, experiment, states)]
        if json:
            _print_json([info.as_json() for info in infos])
        else:
            _print_group(*group, infos)
        return
    info = _chosen(run, experiment, states)
    found = None
    if info.status != "empty" and info.answers:
        try:
            with RunReader(info.folder) as reader:
                found = details(reader)
        except StoreError as error:
            info.problem, info.answers = str(error), False
    if json:
        _print_json(info.as_json() | ({} if found is None else found.as_json()))
    else:
        _print_status(info, found)
    if not info.answers and info.status != "running" and info.problem is not None:
        fail(info.problem)


def list_runs(
    outputs: Path, experiment: str | None, states: Sequence[str], sort: str, limit: int | None, *, json: bool
) -> None:
    """Print the runs below a folder, one a line."""
    _check_states(states)
    if sort not in _SORTS:
        fail(f"--sort {sort}: no such order.{nearest(sort, list(_SORTS))}", code=2)
    found = runs_below(outputs, experiment=experiment, states=states)
    if sort != "written":
        found = iter(sorted(found, key=_SORTS[sort], reverse=True))
    listed = list(itertools.islice(found, limit))
    if json:
        _print_json([info.as_json() for info in listed])
    elif not listed:
        print(f"no run below {outputs}/{_filter_words(experiment, states)}", file=sys.stderr)
    for info in [] if json else listed:
        print(_run_line(info))


def _chosen(run: str | None, experiment: str | None, states: Sequence[str]) -> RunInfo:
    """The run that is named, or the newest that the filters leave."""
    if run is not None or (experiment is None and not states):
        info = describe(find_run(run))
        if not _matches(info, experiment, states):
            fail(f"{info.folder} is {info.experiment}, {info.status}: it is no run{_filter_words(experiment, states)}")
        return info
    newest = next(runs_below(OUTPUTS, experiment=experiment, states=states), None)
    if newest is None:
        fail(f"no run below {OUTPUTS}/{_filter_words(experiment, states)}")
    return newest


def _matches(info: RunInfo, experiment: str | None, states: Sequence[str]) -> bool:
    return (experiment is None or info.experiment == experiment) and (not states or info.status in states)


def _check_states(states: Sequence[str]) -> None:
    for state in states:
        if state not in STATES:
            fail(f"--state {state}: no such state.{nearest(state, list(STATES))}", code=2)


def _filter_words(experiment: str | None, states: Sequence[str]) -> str:
    words = [f"experiment {experiment}" if experiment else "", f"state {' or '.join(states)}" if states else ""]
    named = " and ".join(filter(None, words))
    return f" of {named}" if named else ""


def _print_json(value: object) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
    sys.stdout.buffer.flush()


def _print_status(info: RunInfo, found: RunDetails | None) -> None:
    print(f"{info.experiment}  {info.status}  {info.folder}")
    if found is None:
        if info.status == "running":
            print(
                "a process has opened its database and does not answer: it is loading the source, or ending. Try again"
            )
        return
    for stage, counts in found.stages.items():
        total = sum(counts.values())
        words = ", ".join(f"{counts[key]} {key}" for key in ("done", "error", "skipped", "pending") if key in counts)
        print(f"  {stage}: {words} of {total}" if total or "pending" not in counts else f"  {stage}: not asked yet")
    cost = "" if found.cost_usd is None else f", ${found.cost_usd:.4f}"
    tokens = found.prompt_tokens + found.completion_tokens
    print(f"  {counted(found.requests, 'request')}, {counted(tokens, 'token')}{cost}")
    for stage, kind, rows, example in found.failures:
        print(f"  failed: {rows} × {stage}: {kind}: {one_line(example or '', 160)}")
    for stage, rows, example in found.invalid:
        print(f"  invalid: {rows} × {stage}: answers without 'parsed': {one_line(example, 160)}")
    for failed in found.failed_requests:
        print(
            f"  requests that failed: {failed.requests} × {failed.stage} at {failed.deployment}: {failed.kind}: "
            f"{one_line(failed.message or '', 160)} (the last one at {failed.last_at:%H:%M:%S} UTC)"
        )
    if found.batches is not None:
        for line in batch_lines(found.batches):
            print(f"  batches: {line}")
    for stage, rows in found.waiting.items():
        print(f"  {counted(rows, f'row of {stage} waits', f'rows of {stage} wait')} for another try")
    if (sweep := sweep_of(info.folder)) is not None:
        print(f"  sweep: {command('status', sweep)}")
    if info.status == "running":
        print(f"  stop: {command('stop', info.folder)}")
    elif info.unfinished or info.failed:
        print(f"  resume: {command('resume', info.folder)}")


def batch_lines(found: InBatches) -> Iterator[str]:
    """What is out, and what came back, a line each."""
    for label, (batches, requests) in found.out.items():
        yield f"{counted(batches, 'batch', 'batches')} of {counted(requests, 'request')} at {label}, not back yet"
    if found.answered:
        saved = "" if not found.saved_usd else f", about ${found.saved_usd:.4f} less than live"
        yield f"{counted(found.answered, 'request')} answered{saved}"


def _print_group(folder: Path, runs: Sequence[Path], infos: Sequence[RunInfo]) -> None:
    """A line for each run in a folder: what was set for it and not for the others, and how it stands."""
    print(group_words(folder, list(runs)))
    settings, query = _compared(runs)
    rows = [[str(info.folder.relative_to(folder)), *settings.get(info.folder, ())] for info in infos]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    for info, row in zip(infos, rows, strict=True):
        cells = itertools.zip_longest(row, widths, fillvalue="")
        print("  " + "  ".join(f"{text:<{width}}" for text, width in cells) + f"  {_state_words(info)}")
    print(f"  answers: {command('sql', '--runs', folder, query)}")
    at_work = any(info.status == "running" for info in infos)
    left = any(info.unfinished for info in infos) or (not_begun(folder, list(runs)) and not at_work)
    if left and (again := sweep_command(folder)) is not None:
        print(f"  continue: {again}")


def _compared(runs: Sequence[Path]) -> tuple[dict[Path, list[str]], str]:
    """Run → ``key=value`` of each setting that differs between the runs; and a query over the answers of all."""
    with RunUnion(runs, DATABASE) as union:
        labels = union.labels
        settings = {
            run.folder: [f"{label.name}={one_line(run.shown(label.key), 60)}" for label in labels] for run in union.runs
        }
        return settings, first_query_across(union) if union.runs else "from progress"


def _run_line(info: RunInfo) -> str:
    started = info.started_at.strftime("%Y-%m-%d %H:%M:%S") if info.started_at else "-" * 19
    return f"{started}  {info.experiment:<16} {_state_words(info)}  {info.folder}"


def _state_words(info: RunInfo) -> str:
    cost = "" if info.cost_usd is None else f"  ${info.cost_usd:.4f}"
    return f"{info.status:<12} {info.done} done, {info.failed} failed, {info.pending} pending{cost}"
