"""The page of a sweep of runs: its curve, if it has one, and a row for each job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infermesh.bench.sweeps import Advice, MeasuredJob, is_number, setting, value_text
from infermesh.hints import one_line
from infermesh.pages.page import write
from infermesh.pages.sweep import Picture, Point, TableRow, places, sweep_page
from infermesh.redaction import redact

__all__ = ["SWEEP_PAGE", "picture_of", "write_page"]

SWEEP_PAGE = "sweep.html"  # its name in the sweep's folder


def picture_of(
    title: str, jobs: Sequence[MeasuredJob], keys: Sequence[str], advice: Advice, made_by: str | None = None
) -> Picture:
    """Make the picture of a sweep. It has a curve if one number was swept, and measured at two settings or more.

    Parameters
    ----------
    made_by
        The command that made the sweep.
    """
    drawn = [
        (job.record.values[keys[0]], job.figures)
        for job in jobs
        if len(keys) == 1 and job.figures is not None and job.figures.requests
    ]
    if len(drawn) < 2 or not all(is_number(value) for value, _ in drawn):
        drawn = []
    points = [
        Point(
            value,
            figures.rows_per_s,
            figures.p50_s,
            figures.p95_s,
            figures.p99_s,
            figures.request_errors,
            figures.requests,
        )
        for value, figures in sorted(drawn, key=lambda pair: pair[0])
    ]
    chosen = advice.job.record.values[keys[0]] if advice.job is not None and points else None
    found = "No setting can be recommended." if advice.job is None else f"Recommended: {setting(advice.job, keys)}."
    last = [key.rpartition(".")[2] for key in keys]
    heads = ("job", *(last if len({*last}) == len(last) else keys), *_HEADS)
    rows = [_table_row(job, keys, advice.job) for job in jobs]
    axis = keys[0] if points else ""
    return Picture(
        title, points, chosen, found, advice.notes, axis, "rows/s", heads, rows, _KEY, made_by and redact(made_by)
    )


_HEADS = ("rows/s", "tokens/s", "p50 s", "p95 s", "p99 s", "q_p95 s", "cost $", "failed rows", "status")
_KEY = (
    "✓ recommended; – not measured. p50, p95 and p99 are the seconds that a request takes in all, q_p95 the wait on "
    "this side. sweep.parquet has more figures."
)


def _table_row(job: MeasuredJob, keys: Sequence[str], chosen: MeasuredJob | None) -> TableRow:
    figures = job.figures
    values = [one_line(value_text(job.record.values.get(key)), 60) for key in keys]
    if figures is None:
        measured = ["–"] * (len(_HEADS) - 1)
    else:
        rates = [places(figures.rows_per_s, 2), places(figures.tokens_per_s, 0)]
        times = [places(time, 3) for time in (figures.p50_s, figures.p95_s, figures.p99_s, figures.queue_p95_s)]
        cost = "–" if figures.cost_usd is None else places(figures.cost_usd, 4)
        measured = [*rates, *times, cost, f"{'✕ ' if figures.failed else ''}{figures.failed:,}"]
    status = job.status if job.status == "done" else f"✕ {job.status}"
    return TableRow([str(job.record.number), *values, *measured, status], job is chosen, job.status != "done")


def write_page(path: Path, picture: Picture) -> None:
    """Write a sweep's page. Raises ``OSError``."""
    write(path, sweep_page(picture))
