"""A sweep's curves over its setting: throughput, latency, failures; written as an HTML page, an SVG or a PNG."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infermesh.bench import vega
from infermesh.bench.measure import Level, Recommendation
from infermesh.errors import ConfigError

_ENDINGS = (".html", ".htm", ".svg", ".png")
_WIDE, _NARROW = 640, 270  # width of the plot in pixels, without axes. The narrow one fits a phone
_FONT = "Arial, Helvetica, Liberation Sans, sans-serif"  # metric-compatible: labels fit whichever the viewer has
_PERCENTILES = ("p50", "p95", "p99")
_NOT_XML = re.compile("[^ -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one setting. Times in seconds; NaN leaves a gap in the curve."""

    setting: float
    rate: float
    p50_s: float
    p95_s: float
    p99_s: float
    svc_p95_s: float
    queue_p95_s: float
    errors: int
    requests: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of a picture: points, the recommended setting, and names.

    Attributes
    ----------
    points
        In ascending order of the setting.
    chosen
        The recommended setting; ``None`` if there is none.
    summary, notes
        The recommendation in words.
    axis, rate
        Titles of the axes of the setting and of throughput.
    column, unit
        The same, short, for the table's columns.
    """

    title: str
    points: Sequence[Point]
    chosen: float | None
    summary: str
    notes: Sequence[str]
    axis: str
    column: str
    rate: str
    unit: str


def check_plot(path: Path) -> None:
    """Check ``--plot`` before anything is measured.

    Raises
    ------
    ConfigError
        The file's ending is unknown, or the extra ``plot`` is not installed.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"--plot {path}: expected a .html, .svg or .png file")
    try:
        vega.require()
    except ConfigError as error:
        raise ConfigError(f"--plot {path}: {error}") from None


def picture_of(title: str, levels: Sequence[Level], recommendation: Recommendation) -> Picture:
    """Make the picture of a concurrency sweep."""
    chosen = recommendation.concurrency
    found = "No level can be recommended." if chosen is None else f"Recommended max_parallel_requests: {chosen}."
    points = [
        Point(
            level.concurrency,
            level.rps,
            level.p50_s,
            level.p95_s,
            level.p99_s,
            level.svc_p95_s,
            level.queue_p95_s,
            level.errors,
            level.requests,
        )
        for level in levels
    ]
    names = ("requests in flight", "c", "requests per second", "requests/s")
    return Picture(title, points, chosen, found, recommendation.notes, *names)


def draw(path: Path, picture: Picture) -> None:
    """Write the picture in the format of the path's ending. Call :func:`check_plot` first.

    Raises
    ------
    ConfigError
        The extra ``plot`` is not installed, or the picture cannot be drawn; nothing is written.
    """
    picture = _printable(picture)
    ending = path.suffix.lower()
    if ending == ".png":
        path.write_bytes(vega.png(_spec(picture, _WIDE, vega.LIGHT, picture.title)))
    elif ending == ".svg":
        path.write_text(vega.svg(_spec(picture, _WIDE, vega.LIGHT, picture.title)), encoding="utf-8")
    else:
        path.write_text(_page(picture), encoding="utf-8")


def _printable(picture: Picture) -> Picture:
    """Replace characters that XML forbids: names from a command line may hold control characters or undecoded bytes."""

    def clean(text: str) -> str:
        return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)

    return replace(
        picture,
        title=clean(picture.title),
        summary=clean(picture.summary),
        notes=[clean(note) for note in picture.notes],
        axis=clean(picture.axis),
        column=clean(picture.column),
    )


def _page(picture: Picture) -> str:
    """A self-contained page, without scripts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("infermesh.bench"), autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"setting": _number, "places": _fixed}
    return pages.get_template("sweep.html.jinja").render(
        picture=picture,
        colours=vega.COLOURS,
        wide=vega.svg(_spec(picture, _WIDE, vega.VARIABLES)),
        narrow=vega.svg(_spec(picture, _NARROW, vega.VARIABLES)),
    )


def _number(value: float) -> str:
    return f"{value:,.12g}"


def _fixed(value: float, places: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{places}f}"


def _spec(picture: Picture, width: int, colours: Mapping[str, str], title: str | None = None) -> dict[str, Any]:
    """The picture in Vega-Lite: panels above one another with the same x axis."""
    x = _x(picture.points)
    panels = _panels(picture, colours)
    for panel in panels:
        panel |= {"width": width, "encoding": {"x": x | {"title": None}}}
        if picture.chosen is not None:
            panel["layer"].insert(0, _chosen_rule(picture.chosen, colours))
    panels[-1]["encoding"] = {"x": x | {"title": picture.axis}}
    if picture.chosen is not None:
        panels[0]["layer"].append(_chosen_label(picture.chosen, colours))
    return {
        "data": {"values": [_row(point) for point in picture.points]},
        "vconcat": panels,
        "spacing": 18,
        "resolve": {"scale": {"color": "independent", "shape": "independent"}},
        "config": _config(width, colours),
        "background": None if title is None else colours["paper"],
        **({} if title is None else {"title": {"text": title, "anchor": "start", "limit": width, "offset": 12}}),
    }


def _panels(picture: Picture, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """The panels that have data."""
    panels = []
    if any(point.rate > 0 for point in picture.points):
        panels.append(_rate(picture.rate, colours))
    if any(math.isfinite(point.p50_s) for point in picture.points):
        panels.append(_latency(colours))
    if any(point.errors for point in picture.points):
        panels.append(_failures(colours))
    return panels


def _row(point: Point) -> dict[str, float | None]:
    """A point as a data row of the specification; what is not finite is ``null``."""
    latencies = dict(zip(_PERCENTILES, (point.p50_s, point.p95_s, point.p99_s), strict=True))
    row = {"setting": point.setting, "rate": point.rate, "failed": point.errors / point.requests, **latencies}
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def _x(points: Sequence[Point]) -> dict[str, Any]:
    """The x axis: logarithmic, or linear if a setting is 0 or below."""
    settings = [point.setting for point in points]
    low, high = min(settings), max(settings)
    if low > 0:
        room = (high / low) ** 0.05 if high > low else 2
        scale: dict[str, Any] = {"type": "log", "base": 2, "domain": [low / room, high * room]}
    else:
        room = (high - low) * 0.05 if high > low else 1
        scale = {"type": "linear", "domain": [low - room, high + room], "zero": False}
    scale |= {"nice": False, "padding": 0}  # else bars get room at the edges that lines do not
    axis = {"values": settings, "format": ",.12~g", "labelOverlap": "greedy", "labelSeparation": 6, "grid": False}
    return {"field": "setting", "type": "quantitative", "scale": scale, "axis": axis}


def _y(field: str, title: str, **axis: Any) -> dict[str, Any]:
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": True, "nice": True},
        "axis": {"tickCount": 5, "minExtent": 38, **axis},
    }


def _rate(title: str, colours: Mapping[str, str]) -> dict[str, Any]:
    mark = {"type": "line", "color": colours["rate"], "point": {"color": colours["rate"], "size": 50}}
    return {"height": 190, "layer": [{"mark": mark, "encoding": {"y": _y("rate", title)}}]}


def _latency(colours: Mapping[str, str]) -> dict[str, Any]:
    """A line for each percentile, which differ in colour and in point shape."""
    kind = {"field": "percentile", "type": "nominal", "legend": {"orient": "top", "title": None, "symbolSize": 60}}
    hues = {"domain": _PERCENTILES, "range": [colours[name] for name in _PERCENTILES]}
    shapes = {"domain": _PERCENTILES, "range": ["circle", "square", "triangle-up"]}
    encoding = {"y": _y("seconds", "latency in seconds"), "color": kind | {"scale": hues}}
    points = {"type": "point", "filled": True, "opacity": 1, "size": 50}
    return {
        "height": 190,
        "transform": [{"fold": _PERCENTILES, "as": ["percentile", "seconds"]}],
        "layer": [
            {"mark": "line", "encoding": encoding},
            {"mark": points, "encoding": encoding | {"shape": kind | {"scale": shapes}}},
        ],
    }


def _failures(colours: Mapping[str, str]) -> dict[str, Any]:
    mark = {"type": "bar", "color": colours["failed"], "width": 8}
    share = _y("failed", "failed requests", format="~%", tickCount=3)
    return {"height": 90, "layer": [{"mark": mark, "encoding": {"y": share}}]}


def _chosen_rule(setting: float, colours: Mapping[str, str]) -> dict[str, Any]:
    mark = {"type": "rule", "strokeDash": [4, 4], "strokeWidth": 1.5, "color": colours["chosen"]}
    return {"data": {"values": [{"setting": setting}]}, "mark": mark}


def _chosen_label(setting: float, colours: Mapping[str, str]) -> dict[str, Any]:
    """The label of the recommended setting, above the panel, where it covers no curve."""
    place = {"y": -8, "baseline": "bottom", "fontWeight": "bold", "color": colours["chosen"]}
    return {
        "data": {"values": [{"setting": setting}]},
        "mark": {"type": "text", "text": f"recommended: {_number(setting)}", **place},
    }


def _config(width: int, colours: Mapping[str, str]) -> dict[str, Any]:
    texts = {"labelColor": colours["muted"], "titleColor": colours["ink"], "labelFontSize": 12, "titleFontSize": 12}
    lines = dict.fromkeys(("gridColor", "domainColor", "tickColor"), colours["grid"])
    return {
        "font": _FONT,
        "view": {"stroke": None},
        "axis": texts | lines | {"titleFontWeight": "normal"},
        "axisX": {"titleLimit": width},
        "legend": texts,
        "text": {"fontSize": 12},
        "title": {"color": colours["ink"], "fontSize": 14},
    }
