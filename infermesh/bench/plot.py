"""A concurrency sweep's curves over its levels, as a page: ``infermesh bench --plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infermesh.bench.measure import Level, Recommendation
from infermesh.errors import ConfigError
from infermesh.pages.page import write
from infermesh.pages.sweep import Picture, Point, TableRow, places, sweep_page

__all__ = ["check_plot", "draw", "picture_of"]

_HEADS = ("c", "requests/s", "p50 s", "p95 s", "p99 s", "svc_p95 s", "q_p95 s", "failed")
_KEY = (
    "✓ recommended; ✕ with failed requests; – nothing was answered. c is the number of requests in flight, svc_p95 the "
    "time at the server, q_p95 the wait on this side."
)


def check_plot(path: Path) -> None:
    """Check ``--plot`` before anything is measured.

    Raises
    ------
    ConfigError
        The file's ending is none of a page.
    """
    ending = path.suffix.lower()
    if ending in (".svg", ".png"):
        raise ConfigError(
            f"--plot {path}: expected a .html file. Each chart on the page has a button that saves it as PNG; "
            "--output-json has the figures for a chart of your own"
        )
    if ending not in (".html", ".htm"):
        raise ConfigError(f"--plot {path}: expected a .html file")


def picture_of(title: str, levels: Sequence[Level], recommendation: Recommendation) -> Picture:
    """Make the picture of a concurrency sweep."""
    chosen = recommendation.concurrency
    found = "No level can be recommended." if chosen is None else f"Recommended max_parallel_requests: {chosen}."
    points = [
        Point(level.concurrency, level.rps, level.p50_s, level.p95_s, level.p99_s, level.errors, level.requests)
        for level in levels
    ]
    rows = [_row(level, chosen) for level in levels]
    notes = recommendation.notes
    return Picture(title, points, chosen, found, notes, "requests in flight", "requests/s", _HEADS, rows, _KEY)


def draw(path: Path, picture: Picture) -> None:
    """Write the page. Raises ``OSError``."""
    write(path, sweep_page(picture))


def _row(level: Level, chosen: int | None) -> TableRow:
    times = (level.p50_s, level.p95_s, level.p99_s, level.svc_p95_s, level.queue_p95_s)
    failed = f"{'✕ ' if level.errors else ''}{level.errors:,}/{level.requests:,}"
    cells = [f"{level.concurrency:,}", places(level.rps, 2), *(places(time, 3) for time in times), failed]
    return TableRow(cells, level.concurrency == chosen, bool(level.errors))
