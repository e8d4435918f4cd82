"""The table that ends a sweep: a row for each job, its settings and its figures, at any width."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from infermesh.bench.sweeps import MeasuredJob, measured_stage, value_text
from infermesh.hints import counted
from infermesh.runs.progress import duration, short

_FIGURES = ("rows/s", "tok/s", "p50 s", "p95 s", "p99 s", "q_p95 s", "errors")
_SPARED = ("q_p95 s", "p99 s", "tok/s", "p50 s")  # left out first where the swept values have no room; in sweep.parquet
_OF_A_FIGURE = 8  # characters, with the space around it
_OF_A_VALUE = 12  # that a swept value should have at least


def print_table(jobs: Sequence[MeasuredJob], keys: Sequence[str]) -> None:
    """Print the sweep's table to stderr, one row for each job; the swept values are told apart at any width."""
    from rich import box
    from rich.table import Table

    from infermesh.cli.console import SafeConsole

    stage = measured_stage(keys)
    console = SafeConsole(stderr=True, width=None if sys.stderr.isatty() else 200)
    scope = "the whole run" if stage is None else f"stage {stage}"
    has_cost = any(job.figures is not None and job.figures.cost_usd is not None for job in jobs)
    headings = [*_FIGURES, *(["cost"] if has_cost else [])]
    statuses = [f"{job.status} (earlier)" if job.record.passed_over else job.status for job in jobs]
    values, headings = _swept_values(jobs, keys, headings, console.width - max(map(len, statuses)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("job", justify="right", no_wrap=True)
    for heading in _headings(keys):
        table.add_column(heading, justify="right", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status")
    for job, swept, status in zip(jobs, values, statuses, strict=True):
        style = {"done": "", "failed rows": "yellow"}.get(job.status, "red")
        cells = _cells(job)
        table.add_row(str(job.record.number), *swept, *(cells[heading] for heading in headings), status, style=style)
    total = sum(job.figures.elapsed_s for job in jobs if job.figures is not None)
    print(
        f"\nsweep over {', '.join(keys) or 'no key'}\n"
        f"{counted(len(jobs), 'job')}, figures of {scope}, {duration(total)} measured",
        file=sys.stderr,
    )
    console.print(table)


def _swept_values(
    jobs: Sequence[MeasuredJob], keys: Sequence[str], figures: Sequence[str], width: int
) -> tuple[list[list[str]], list[str]]:
    """Each job's swept values, cut to the room that there is, and the figures that have room beside them."""
    from infermesh.cli.table import told_apart

    columns = [[value_text(job.record.values.get(key)) for job in jobs] for key in keys]
    headings = [max(map(len, heading.split("\n"))) for heading in _headings(keys)]
    least = [
        max(min(_OF_A_VALUE, max(map(len, column))), heading) for column, heading in zip(columns, headings, strict=True)
    ]
    needed = sum(width + 2 for width in least)
    left = list(figures)
    for figure in _SPARED:
        if width - 8 - _OF_A_FIGURE * len(left) >= needed:
            break
        left.remove(figure)
    more = max(0, width - 8 - _OF_A_FIGURE * len(left) - needed) // max(1, len(keys))
    cut = [told_apart(column, room + more) for column, room in zip(columns, least, strict=True)]
    return [[column[number] for column in cut] for number in range(len(jobs))], left


def _headings(keys: Sequence[str]) -> list[str]:
    """Each key's last part, or all of it if two would be the same. Long headings take several lines."""
    last = [key.rpartition(".")[2] for key in keys]
    names = [leaf if last.count(leaf) == 1 else key for leaf, key in zip(last, keys, strict=True)]
    folded = []
    for name in names:
        lines = [""]
        for part in re.findall(r"[^_.]+[_.]?", name):
            if lines[-1] and len(lines[-1]) + len(part) > 12:
                lines.append("")
            lines[-1] += part
        folded.append("\n".join(lines))
    return folded


def _cells(job: MeasuredJob) -> dict[str, str]:
    figures = job.figures
    if figures is None:
        return dict.fromkeys((*_FIGURES, "cost"), "–")
    found = {
        "rows/s": "–" if figures.rows_per_s != figures.rows_per_s else f"{figures.rows_per_s:.1f}",
        "tok/s": "–" if figures.tokens_per_s != figures.tokens_per_s else short(figures.tokens_per_s),
        "errors": str(figures.failed),
        "cost": "–" if figures.cost_usd is None else f"${figures.cost_usd:.4f}",
    }
    seconds = (figures.p50_s, figures.p95_s, figures.p99_s, figures.queue_p95_s)
    shown = ("–" if value != value else f"{value:.3f}" for value in seconds)
    return found | dict(zip(("p50 s", "p95 s", "p99 s", "q_p95 s"), shown, strict=True))
