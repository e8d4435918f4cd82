"""Charts as data: what is drawn, in Python; ``assets/page.js`` hands it to uPlot. One description for all pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infermesh.pages.words import clean

__all__ = ["COLOURS", "Axis", "Chart", "Mark", "Series"]

# Name → colour on white, colour on near-black. Texts have a contrast of 4.5 to 1, marks of 3 to 1, as WCAG 2.1 AA asks.
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#0d1117"),
    "raised": ("#f6f8fa", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#57606a", "#9ea7b3"),
    "grid": ("#d8dee4", "#30363d"),
    "blue": ("#0969da", "#6cb6ff"),
    "orange": ("#b3500a", "#f0a35e"),
    "purple": ("#8a2b8f", "#d59bf0"),
    "green": ("#1a7f37", "#4cc777"),
    "red": ("#c01f2e", "#ff7b72"),
    "grey": ("#57606a", "#b1bac4"),
    "teal": ("#0f766e", "#4fd1c5"),
}
LINES = ("blue", "orange", "purple", "teal", "green", "grey")  # for series without a meaning of their own
DASHES = ((), (6, 3), (2, 3))

# elapsed: seconds of a run's time. log: a setting above 0, in steps of two. linear: any other setting.
Axis = Literal["elapsed", "log", "linear"]


@dataclass(frozen=True, slots=True)
class Series:
    """A line.

    Attributes
    ----------
    colour
        A name of :data:`COLOURS`.
    dash
        Lengths of stroke and gap in pixels, so that lines differ by more than colour; empty for a solid line.
    values
        One for each x; ``None`` or NaN leaves a gap.
    """

    label: str
    colour: str
    values: Sequence[float | None]
    dash: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at an x, with words beside it."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its heading, and the finding in one sentence for those who do not see the lines.

    Attributes
    ----------
    name
        Names the chart on its page: letters, digits and hyphens.
    unit
        Of the y axis, such as ``seconds``; ``%`` shows shares as percent.
    band
        The lines number this and that, with the area between them filled: the upper one first. ``None``: none.
    points
        Draw each value as a point, too: for a few values that were measured, as in a sweep.
    note
        A sentence on how to read it; empty for none.
    """

    name: str
    title: str
    finding: str
    x: Sequence[float]
    x_label: str
    unit: str
    series: Sequence[Series]
    axis: Axis = "elapsed"
    band: tuple[int, int] | None = None
    marks: Sequence[Mark] = field(default_factory=tuple)
    points: bool = False
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """What ``page.js`` reads. Numbers have five digits, more than a screen shows."""
        return {
            "name": self.name,
            "title": clean(self.title),
            "axis": self.axis,
            "xLabel": clean(self.x_label),
            "unit": self.unit,
            "x": [float(f"{value:.9g}") for value in self.x],
            "series": [
                {
                    "label": clean(line.label),
                    "colour": line.colour,
                    "dash": line.dash,
                    "values": list(map(_short, line.values)),
                }
                for line in self.series
            ],
            "band": self.band,
            "marks": [{"at": mark.at, "label": clean(mark.label)} for mark in self.marks],
            "points": self.points,
        }


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
