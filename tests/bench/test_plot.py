"""The page of a concurrency sweep: what it shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infermesh.bench.measure import Level, recommend
from infermesh.bench.plot import check_plot, draw, picture_of
from infermesh.errors import ConfigError
from infermesh.pages.sweep import Picture, Point
from tests.pages.reading import Read, assert_closed

EMPTY = math.nan


def level(concurrency: int, rps: float, p95: float, errors: int = 0) -> Level:
    return Level(concurrency, 100, errors, 10.0, rps, p95 * 0.9, p95, p95 * 1.1, p95, 0.0, 0.1)


def picture(*levels: Level, title: str = "generate: any") -> Picture:
    return picture_of(title, levels, recommend(levels))


USUAL = picture(level(1, 10, 0.1), level(8, 40, 0.1), level(16, 40, 0.2))
FAILING = picture(level(1, 10, 0.1), level(8, 40, 0.1), level(16, 3, 0.2, 60), level(32, 0, EMPTY, 100))


def page(tmp_path: Path, drawn: Picture) -> Read:
    draw(tmp_path / "p.html", drawn)
    return assert_closed((tmp_path / "p.html").read_text(encoding="utf-8"))


def test_axes_say_what_they_show_and_the_recommended_setting_is_marked(tmp_path: Path) -> None:
    read = page(tmp_path, USUAL)
    assert read.texts["bdi"] == ["generate: any"]
    rate, latency = read.charts["rate"], read.charts["latency"]
    assert (rate["xLabel"], rate["unit"], rate["axis"]) == ("requests in flight", "requests/s", "log")
    assert (rate["x"], rate["series"][0]["values"]) == ([1, 8, 16], [10, 40, 40])
    assert rate["marks"] == [{"at": 8, "label": "recommended: 8"}]
    assert {line["label"]: line["values"] for line in latency["series"]} == {
        "p50": [0.09, 0.09, 0.18],
        "p95": [0.1, 0.1, 0.2],
        "p99": [0.11, 0.11, 0.22],
    }
    assert "failed" not in read.charts
    assert "Most with 8: 40.0 requests/s." in read.said()


def test_failures_are_shown_where_there_are_any(tmp_path: Path) -> None:
    read = page(tmp_path, FAILING)
    assert read.charts["failed"]["series"][0]["values"] == [0, 0, 0.6, 1]
    found = "".join(read.texts["td"])
    assert "✕ 60/100" in found
    assert "✕ 100/100" in found
    assert "0.00–––" in found  # nothing was answered at c=32
    assert read.charts["latency"]["series"][0]["values"][-1] is None


def test_where_every_request_failed_only_failures_are_shown(tmp_path: Path) -> None:
    read = page(tmp_path, picture(level(1, 0, EMPTY, 100), level(8, 0, EMPTY, 100)))
    assert list(read.charts) == ["failed"]
    assert read.charts["failed"]["marks"] == []
    assert "No level can be recommended." in read.said()


@pytest.mark.parametrize(
    "settings", [(0, 1, 2), (-1, 0), (0.1, 0.5), (7,), (0,), (1, 2_000_000), (100, 101, 102), range(1, 60)]
)
def test_any_numbers_are_settings(tmp_path: Path, settings: Any) -> None:
    points = [Point(setting, 10.0, 0.1, 0.2, EMPTY, 0, 10) for setting in settings]
    chart = page(tmp_path, replace(USUAL, points=points, chosen=settings[0])).charts["latency"]
    assert chart["x"] == list(settings)
    assert chart["axis"] == ("log" if min(settings) > 0 else "linear")
    assert chart["marks"][0]["label"] == f"recommended: {settings[0]:,}"
    assert set(chart["series"][0]["values"]) == {None}


def test_another_ending_is_refused() -> None:
    for name in ("bench.svg", "bench.PNG"):
        with pytest.raises(ConfigError, match=r"a \.html file. Each chart on the page has a button that saves"):
            check_plot(Path(name))
    with pytest.raises(ConfigError, match=r"--plot bench\.pdf: expected a \.html file$"):
        check_plot(Path("bench.pdf"))
    check_plot(Path("bench.html"))
