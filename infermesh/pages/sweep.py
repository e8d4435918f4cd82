"""A sweep's page: curves over its setting (throughput, latency, failures), the recommendation, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infermesh.pages.charts import Axis, Chart, Mark, Series
from infermesh.pages.page import render

__all__ = ["Picture", "Point", "TableRow", "charts", "number", "places", "sweep_page"]


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one setting. Times in seconds; NaN leaves a gap in the curve."""

    setting: float
    rate: float
    p50_s: float
    p95_s: float
    p99_s: float
    errors: int
    requests: int


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the table: its cells as they are shown. ``chosen``: it is recommended. ``bad``: something failed."""

    cells: Sequence[str]
    chosen: bool = False
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of a sweep's page: points, the recommended setting, names, and a table.

    Attributes
    ----------
    points
        In ascending order of the setting; empty where no number was swept, and there is no curve.
    chosen
        The recommended setting; ``None`` if there is none, or it is no number.
    summary, notes
        The recommendation in words.
    axis
        What the setting is.
    rate
        The unit of the throughput: ``rows/s`` or ``requests/s``.
    heads, rows
        The table: one more row than there are points where a job was not measured.
    key
        How to read the table.
    made_by
        The command; ``None`` if nobody knows it.
    """

    title: str
    points: Sequence[Point]
    chosen: float | None
    summary: str
    notes: Sequence[str]
    axis: str
    rate: str
    heads: Sequence[str]
    rows: Sequence[TableRow]
    key: str
    made_by: str | None = None


def sweep_page(picture: Picture) -> str:
    """The page as HTML, self-contained."""
    return render("sweep.html.jinja", charts(picture), picture=picture)


def number(value: float) -> str:
    """A setting as people write it."""
    return f"{value:,.12g}"


def places(value: float, count: int) -> str:
    """A figure with so many places; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:,.{count}f}"


def charts(picture: Picture) -> list[Chart]:
    """The charts that have data."""
    points = picture.points
    if not points:
        return []
    axis: Axis = "log" if points[0].setting > 0 else "linear"
    marks = [] if picture.chosen is None else [Mark(picture.chosen, f"recommended: {number(picture.chosen)}")]

    def chart(name: str, title: str, finding: str, unit: str, series: Sequence[Series], **more: Any) -> Chart:
        x = [point.setting for point in points]
        return Chart(name, title, finding, x, picture.axis, unit, series, axis, marks=marks, points=True, **more)

    found = []
    if any(point.rate > 0 for point in points):
        best = max(points, key=lambda point: point.rate)
        finding = f"Most with {number(best.setting)}: {places(best.rate, 1)} {picture.rate}."
        lines = [Series(picture.rate, "blue", [point.rate for point in points])]
        found.append(chart("rate", "Throughput", finding, picture.rate, lines))
    if any(math.isfinite(point.p50_s) for point in points):
        known = [point for point in points if math.isfinite(point.p95_s)]
        least = min(known, key=lambda point: point.p95_s) if known else points[0]
        finding = f"The lowest p95 is {places(least.p95_s, 3)} seconds, with {number(least.setting)}."
        lines = [
            Series("p99", "purple", [point.p99_s for point in points], (2, 3)),
            Series("p95", "orange", [point.p95_s for point in points], (6, 3)),
            Series("p50", "blue", [point.p50_s for point in points]),
        ]
        note = "From the moment a request is asked for to its answer."
        found.append(chart("latency", "Latency", finding, "seconds", lines, note=note))
    if any(point.errors for point in points):
        shares = [point.errors / point.requests for point in points]
        worst = max(range(len(points)), key=lambda place: shares[place])
        finding = f"Most with {number(points[worst].setting)}: {shares[worst]:.1%} of the requests."
        found.append(chart("failed", "Failed requests", finding, "%", [Series("failed", "red", shares)]))
    return found
