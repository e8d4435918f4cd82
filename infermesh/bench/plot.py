"""A sweep as two curves over concurrency, throughput above and latency below: a page of its own, or a picture."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infermesh.bench.measure import Level, Recommendation
from infermesh.errors import ConfigError

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 70, 20, 34, 44
_COLOURS = {"throughput": "#1f6fb2", "p50": "#7a7a7a", "p95": "#c4541a", "p99": "#8a2b8f"}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; max-width: {width}px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }}
svg text {{ font: 12px system-ui, sans-serif; fill: #333; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{charts}
<table><tr>{head}</tr>
{rows}
</table>
</html>
"""


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one setting; times in seconds, NaN where there is nothing to show."""

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
    """Curves over one setting: the points in its order, which one is chosen, and what things are called."""

    title: str
    points: Sequence[Point]
    chosen: float | None
    summary: str
    axis: str
    column: str
    rate: str
    unit: str


Curve = tuple[str, Callable[[Point], float]]
_THROUGHPUT: tuple[Curve, ...] = (("throughput", lambda point: point.rate),)
_LATENCY: tuple[Curve, ...] = (
    ("p50", lambda point: point.p50_s),
    ("p95", lambda point: point.p95_s),
    ("p99", lambda point: point.p99_s),
)


def check_plot(path: Path) -> None:
    """Fail before anything is measured. Raises ``ConfigError``: the ending is unknown, or matplotlib is not there."""
    if path.suffix.lower() == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ConfigError(
                "--plot: a .png needs matplotlib: pip install 'infermesh[plot]'. A .html needs nothing."
            ) from None
    elif path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--plot {path}: expected a .html or .png file")


def write_plot(path: Path, title: str, levels: Sequence[Level], recommendation: Recommendation) -> None:
    """Write the curves; ``path`` has been checked."""
    picture = _picture(title, levels, recommendation)
    if path.suffix.lower() == ".png":
        _write_png(path, picture)
    else:
        path.write_text(render(picture), encoding="utf-8")


def page(title: str, levels: Sequence[Level], recommendation: Recommendation) -> str:
    """A page that needs nothing from elsewhere."""
    return render(_picture(title, levels, recommendation))


def _picture(title: str, levels: Sequence[Level], recommendation: Recommendation) -> Picture:
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
    summary = " ".join((found, *(f"{note}." for note in recommendation.notes)))
    return Picture(title, points, chosen, summary, "requests in flight", "c", "requests per second", "requests/s")


def render(picture: Picture) -> str:
    """The picture as a page that needs nothing from elsewhere."""
    columns = (picture.column, picture.unit, "p50 s", "p95 s", "p99 s", "svc_p95 s", "q_p95 s", "errors")
    cells = [
        (
            f"{point.setting:g}",
            _figure(point.rate, 2),
            *(_figure(value, 3) for value in (point.p50_s, point.p95_s, point.p99_s)),
            *(_figure(value, 3) for value in (point.svc_p95_s, point.queue_p95_s)),
            f"{point.errors}/{point.requests}",
        )
        for point in picture.points
    ]
    return _PAGE.format(
        title=html.escape(picture.title),
        width=_WIDTH,
        summary=html.escape(picture.summary),
        charts=_chart(picture.rate, picture, _THROUGHPUT) + _chart("seconds", picture, _LATENCY),
        head="".join(f"<th>{html.escape(column)}</th>" for column in columns),
        rows="\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells),
    )


def _figure(value: float, places: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{places}f}"


def _positions(points: Sequence[Point]) -> Callable[[float], float]:
    """Setting → pixels from the left: on a logarithmic axis, a linear one where a setting is not above 0."""
    settings = [point.setting for point in points]
    scale = math.log2 if min(settings) > 0 else float
    low, high = scale(min(settings)), scale(max(settings))

    def x(setting: float) -> float:
        share = (scale(setting) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    return x


def _chart(unit: str, picture: Picture, curves: Sequence[Curve]) -> str:
    """One panel: the setting from left to right, values from 0."""
    points, chosen, x = picture.points, picture.chosen, _positions(picture.points)
    values = [value(point) for _, value in curves for point in points]
    top = max((value for value in values if not math.isnan(value)), default=1.0) * 1.08 or 1.0

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    label = html.escape(picture.axis)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{unit} by {label}">']
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e3e3e3"/>'
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    if chosen is not None:
        parts.append(
            f'<line x1="{x(chosen):.1f}" x2="{x(chosen):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#2a8f4d" '
            'stroke-dasharray="4 4"/>'
        )
    parts += [
        f'<text x="{x(c):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{c:g}</text>'
        for c in (point.setting for point in points)
    ]
    for number, (name, value_of) in enumerate(curves):
        marks = [(x(point.setting), y(value_of(point))) for point in points if not math.isnan(value_of(point))]
        line = " ".join(f"{left:.1f},{down:.1f}" for left, down in marks)
        colour = _COLOURS[name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{left:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for left, down in marks]
        parts.append(f'<text x="{_LEFT + 110 * number}" y="{_TOP - 14}" style="fill:{colour}">● {name}, {unit}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{label}</text></svg>\n')
    return "".join(parts)


def _write_png(path: Path, picture: Picture) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 1, sharex=True, figsize=(8, 7), constrained_layout=True)
    settings = [point.setting for point in picture.points]
    for axes, curves, unit in zip(panels, (_THROUGHPUT, _LATENCY), (picture.rate, "seconds"), strict=True):
        for name, value_of in curves:
            values = [value_of(point) for point in picture.points]
            axes.plot(settings, values, marker="o", label=name, color=_COLOURS[name])
        if picture.chosen is not None:
            axes.axvline(picture.chosen, linestyle="--", color="#2a8f4d")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(unit)
        axes.legend()
    panels[0].set_title(picture.title)
    panels[1].set_xlabel(picture.axis)
    panels[1].set_xticks(settings, [f"{setting:g}" for setting in settings])
    figure.savefig(path)
    pyplot.close(figure)
