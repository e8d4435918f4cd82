"""A run's page: state, numbers, stages, charts over time, deployments, failures, a sample of rows, config, command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from infermesh.hints import command, counted
from infermesh.pages.charts import DASHES, LINES, Chart, Mark, Series
from infermesh.pages.page import render, write
from infermesh.pages.remedies import remedy
from infermesh.pages.stages import edges, nodes
from infermesh.pages.svg import graph, histogram
from infermesh.pages.words import duration, money
from infermesh.query.over_time import Timeline
from infermesh.query.overview import Failures, Overview, SampledRows, read_overview
from infermesh.redaction import redact
from infermesh.store.folders import sweep_of
from infermesh.store.schema import literal

__all__ = [
    "REPORT",
    "bins",
    "charts",
    "failures",
    "graphs",
    "run_page",
    "state_of",
    "totals",
    "values_of",
    "write_report",
]

REPORT = "report.html"  # its name in a run's folder
MOST_BYTES = 3_000_000
_MOST_STAGES = 6  # lines of a chart
_MOST_CONFIG = 200_000  # characters
# The sample, from as it was read to less and less: rows, characters of a value. The first that fits is taken.
_SHRUNK = ((24, 2100), (24, 600), (12, 300), (5, 200), (0, 0))
STATES = {  # status → what it is called, its sign and its class
    "done": ("complete", "✓", "good"),
    "failed_rows": ("finished, with failed rows", "✕", "bad"),
    "running": ("running", "▶", "busy"),
    "interrupted": ("interrupted", "…", "open"),
    "stopped": ("stopped by a guard", "✕", "bad"),
    "waiting": ("waits for its batches", "…", "open"),
    "crashed": ("crashed", "✕", "bad"),
    "damaged": ("damaged", "✕", "bad"),
    "killed": ("killed", "✕", "bad"),
    "empty": ("empty: it ended before its source was loaded", "…", "open"),
}


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Write the page of the run in ``folder``, live or not.

    Parameters
    ----------
    target
        The file; ``None`` is ``report.html`` in the folder.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    StoreError
        The run cannot be read.
    OSError
        The file cannot be written.
    """
    path = folder / REPORT if target is None else target
    write(path, run_page(read_overview(folder)))
    return path


def run_page(overview: Overview) -> str:
    """The page, below three million bytes: where rows are too long for that, fewer are shown, and less of each."""
    drawn = charts(overview)
    parts = values_of(overview)
    page = ""
    for rows, characters in _SHRUNK:
        samples = [_shown(sample, rows, characters) for sample in overview.samples]
        page = render("run.html.jinja", drawn, **parts, samples=samples, shrunk=(rows, characters) != _SHRUNK[0])
        if len(page.encode("utf-8", "replace")) < MOST_BYTES:
            break
    return page


def values_of(overview: Overview) -> dict[str, Any]:
    """What the templates name of a run, without its charts and its sample of rows."""
    config = yaml.safe_dump(overview.config, sort_keys=False, allow_unicode=True, width=100)
    return {
        "run": overview,
        "state": state_of(overview.status),
        "totals": totals(overview),
        "reason": overview.sessions[-1].reason if overview.sessions else None,
        "graphs": graphs(overview),
        "bins": bins(overview),
        "failures": failures(overview),
        "made_at": datetime.now(UTC),
        "refusals": [(each, remedy(each.kind)) for each in overview.failed_requests],
        "resume": command("resume", overview.folder),
        "status_command": command("status", overview.folder),
        "made_by": None if overview.overrides is None else redact(command("run", *overview.overrides)),
        "sweep": sweep_of(overview.folder),
        "config": redact(config[:_MOST_CONFIG]),
        "config_cut": max(0, len(config) - _MOST_CONFIG),
        "all_rows": command("sql", "--run", overview.folder, "select * from results order by row_id limit 20"),
    }


def state_of(status: str) -> tuple[str, str, str]:
    """What a status is called, its sign, and its class."""
    return STATES.get(status, (status, "?", "open"))


def graphs(overview: Overview) -> list[Markup]:
    """The stages as a picture: for a screen, and for a phone."""
    read = edges(overview)
    label = "The stages and what they read: " + "; ".join(
        f"{name} reads {', '.join(others)}" for name, others in read.items() if others
    )
    boxes = nodes(overview)
    return [graph(boxes, read, label, across=across) for across in (True, False)]


def bins(overview: Overview) -> Markup | None:
    """How long answers took, as a picture; ``None`` where there is nothing to tell."""
    return histogram(overview.service_bins, "How many answers took how long") if overview.service_bins else None


def totals(overview: Overview) -> dict[str, Any]:
    """The numbers at the top. A row counts as failed in each stage in which it has failed."""
    counts: dict[str, int] = {}
    for of in overview.details.stages.values():
        for status, rows in of.items():
            counts[status] = counts.get(status, 0) + rows
    seconds = sum(session.length_s for session in overview.sessions)
    tokens = overview.details.prompt_tokens + overview.details.completion_tokens
    return {
        "done": counts.get("done", 0),
        "failed": counts.get("error", 0),
        "pending": counts.get("pending", 0),
        "skipped": counts.get("skipped", 0),
        "seconds": seconds if overview.sessions else None,
        "tokens": tokens,
        "rate": f"{overview.details.requests / seconds:,.1f} requests/s" if seconds > 0 else "",
        "token_rate": f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 else "",
    }


def failures(overview: Overview) -> list[tuple[Any, ...]]:
    """Stage, kind, rows, the messages, what to do, and the command that tries them again; the most frequent first."""
    kinds: dict[tuple[str, str], list[Failures]] = {}
    for each in overview.failures:
        kinds.setdefault((each.stage, each.kind), []).append(each)
    found = []
    for (stage, kind), messages in kinds.items():
        where = f'"error_type = {literal(kind)}"'  # quoted as people quote it
        if any(sign in kind for sign in '"$`\\!'):
            where = shlex.quote(f"error_type = {literal(kind)}")
        retry = f"{command('retry', overview.folder, '--stage', stage)} --where {where}"
        found.append((stage, kind, sum(each.count for each in messages), messages, remedy(kind), retry))
    return sorted(found, key=lambda group: -group[2])


def _shown(sample: SampledRows, rows: int, characters: int) -> SampledRows:
    """The first so many rows, at even distances again, and values cut to so many characters."""
    step = max(1, -(-len(sample.rows) // rows)) if rows else 1
    kept = [
        tuple(
            f"{value[:characters]} …" if isinstance(value, str) and len(value) > characters + 30 else value
            for value in row
        )
        for row in sample.rows[::step][:rows]
    ]
    return replace(sample, rows=kept)


def charts(overview: Overview) -> list[Chart]:
    """The charts over a run's time that have something to show."""
    timeline = overview.timeline
    if not timeline.middle_s:
        return []
    starts = [Mark(session.began_s, f"session {session.number}") for session in overview.sessions[1:]]
    x = timeline.middle_s
    step = f"Each value is of {duration(timeline.step_s)}."

    def chart(
        name: str, title: str, finding: str, unit: str, series: Sequence[Series], note: str = "", **more: Any
    ) -> Chart:
        return Chart(name, title, finding, x, "time of the run", unit, series, marks=starts, note=note, **more)

    found = [chart("rows", "Rows answered", _rows_finding(timeline), "rows/s", _stage_lines(overview), step)]
    if any(timeline.failed):
        refused = sum(value or 0.0 for value in timeline.refused) * timeline.step_s
        failed = sum(value or 0.0 for value in timeline.failed) * timeline.step_s
        lines = [Series("failed", "red", timeline.failed)]
        lines += [Series("of them 429", "orange", timeline.refused, (6, 3))] if refused else []
        finding = f"{counted(round(failed), 'request')} failed, {round(refused):,} of them with status 429."
        found.append(chart("failed", "Failed requests", finding, "requests/s", lines))
    late = "Requests that have not ended are not in it yet." if overview.live else ""
    found.append(
        chart(
            "flight",
            "In flight and waiting",
            f"Up to {counted(round(_most(timeline.in_flight)), 'request was', 'requests were')} in flight, and up to "
            f"{_most(timeline.waiting):,.0f} waited on this side.",
            "requests",
            [
                Series("in flight", "blue", timeline.in_flight),
                Series("waiting here", "orange", timeline.waiting, (6, 3)),
            ],
            late,
        )
    )
    for name, title, upper, middle in (
        ("service", "Time at the server", timeline.service_p95, timeline.service_p50),
        ("queue", "Wait on this side", timeline.queue_p95, timeline.queue_p50),
    ):
        if _most(upper) < 0.001:  # nothing to see
            continue
        finding = f"p50 is mostly {duration(_middle(middle))}; p95 is at most {duration(_most(upper))}."
        lines = [Series("p95", "orange", upper, (6, 3)), Series("p50", "blue", middle)]
        found.append(chart(name, title, finding, "seconds", lines, band=(0, 1)))
    if any(timeline.prompt_tokens) or any(timeline.completion_tokens):
        details = overview.details
        finding = f"{counted(details.prompt_tokens, 'token')} in prompts, {details.completion_tokens:,} in answers."
        lines = [
            Series("prompts", "blue", timeline.prompt_tokens),
            Series("answers", "purple", timeline.completion_tokens, (6, 3)),
        ]
        found.append(chart("tokens", "Tokens", finding, "tokens/s", lines))
    if any(cost is not None for cost in timeline.cost_usd):
        finding = f"{money(overview.details.cost_usd)} in all."
        found.append(
            chart("cost", "Cost since the start", finding, "US dollars", [Series("cost", "green", timeline.cost_usd)])
        )
    return found


def _rows_finding(timeline: Timeline) -> str:
    length = timeline.step_s * len(timeline.middle_s)
    each = {stage: sum(value or 0.0 for value in line) * timeline.step_s for stage, line in timeline.rows.items()}
    words = "; ".join(
        f"{stage} {rows / length:,.4g} a second"
        for stage, rows in sorted(each.items(), key=lambda pair: -pair[1])[:_MOST_STAGES]
    )
    return f"On average over {duration(length)}: {words}."


def _stage_lines(overview: Overview) -> list[Series]:
    """A line for each stage, in their order; where there are many, one for those with the fewest rows together."""
    by_rows = sorted(overview.timeline.rows.items(), key=lambda pair: -sum(value or 0.0 for value in pair[1]))
    order = {stage: place for place, stage in enumerate(overview.details.stages)}
    by_rows[:_MOST_STAGES] = sorted(by_rows[:_MOST_STAGES], key=lambda pair: order.get(pair[0], len(order)))
    lines = [
        Series(stage, LINES[place % len(LINES)], values, DASHES[place % len(DASHES)])
        for place, (stage, values) in enumerate(by_rows[:_MOST_STAGES])
    ]
    if rest := [values for _, values in by_rows[_MOST_STAGES:]]:
        together = [sum(value or 0.0 for value in step) for step in zip_longest(*rest)]
        lines.append(Series(f"{len(rest)} other stages", "grey", together, (2, 3)))
    return lines


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _middle(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None
