"""A sweep as two curves over concurrency, throughput above and latency below: a page of its own, or a picture."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from infermesh.bench import Level, Recommendation
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
Curve = tuple[str, Callable[[Level], float]]
_THROUGHPUT: tuple[Curve, ...] = (("throughput", lambda level: level.rps),)
_LATENCY: tuple[Curve, ...] = (
    ("p50", lambda level: level.p50_s),
    ("p95", lambda level: level.p95_s),
    ("p99", lambda level: level.p99_s),
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
    if path.suffix.lower() == ".png":
        _write_png(path, title, levels, recommendation)
    else:
        path.write_text(page(title, levels, recommendation), encoding="utf-8")


def page(title: str, levels: Sequence[Level], recommendation: Recommendation) -> str:
    """A page that needs nothing from elsewhere."""
    chosen = recommendation.concurrency
    found = "No level can be recommended." if chosen is None else f"Recommended max_parallel_requests: {chosen}."
    columns = ("c", "requests/s", "p50 s", "p95 s", "p99 s", "svc_p95 s", "q_p95 s", "errors")
    cells = [
        (
            str(level.concurrency),
            f"{level.rps:.2f}",
            *(f"{value:.3f}" for value in (level.p50_s, level.p95_s, level.p99_s, level.svc_p95_s, level.queue_p95_s)),
            f"{level.errors}/{level.requests}",
        )
        for level in levels
    ]
    return _PAGE.format(
        title=html.escape(title),
        width=_WIDTH,
        summary=html.escape(" ".join((found, *(f"{note}." for note in recommendation.notes)))),
        charts=_chart("requests per second", levels, _THROUGHPUT, chosen) + _chart("seconds", levels, _LATENCY, chosen),
        head="".join(f"<th>{column}</th>" for column in columns),
        rows="\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells),
    )


def _chart(unit: str, levels: Sequence[Level], curves: Sequence[Curve], chosen: int | None) -> str:
    """One panel: concurrency on a logarithmic axis, values from 0."""
    values = [value(level) for _, value in curves for level in levels]
    top = max((value for value in values if not math.isnan(value)), default=1.0) * 1.08 or 1.0
    low, high = (math.log2(pick(level.concurrency for level in levels)) for pick in (min, max))

    def x(concurrency: int) -> float:
        share = (math.log2(concurrency) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{unit} by concurrency">']
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
        f'<text x="{x(c):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{c}</text>'
        for c in (level.concurrency for level in levels)
    ]
    for number, (name, value_of) in enumerate(curves):
        points = [(x(level.concurrency), y(value_of(level))) for level in levels if not math.isnan(value_of(level))]
        line = " ".join(f"{left:.1f},{down:.1f}" for left, down in points)
        colour = _COLOURS[name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{left:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for left, down in points]
        parts.append(f'<text x="{_LEFT + 110 * number}" y="{_TOP - 14}" style="fill:{colour}">● {name}, {unit}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">requests in flight</text></svg>\n')
    return "".join(parts)


def _write_png(path: Path, title: str, levels: Sequence[Level], recommendation: Recommendation) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 1, sharex=True, figsize=(8, 7), constrained_layout=True)
    for axes, curves, unit in zip(panels, (_THROUGHPUT, _LATENCY), ("requests per second", "seconds"), strict=True):
        for name, value_of in curves:
            axes.plot(
                [level.concurrency for level in levels],
                [value_of(level) for level in levels],
                marker="o",
                label=name,
                color=_COLOURS[name],
            )
        if recommendation.concurrency is not None:
            axes.axvline(recommendation.concurrency, linestyle="--", color="#2a8f4d")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(unit)
        axes.legend()
    panels[0].set_title(title)
    panels[1].set_xlabel("requests in flight")
    panels[1].set_xticks([level.concurrency for level in levels], [str(level.concurrency) for level in levels])
    figure.savefig(path)
    pyplot.close(figure)
