"""What holds of every page: it is closed, texts stay texts, and the charts' library is the one that was vendored."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from infermesh.pages.charts import COLOURS, Chart, Series
from infermesh.pages.page import write
from infermesh.pages.svg import Node, graph, histogram
from infermesh.pages.sweep import Picture, Point, TableRow, sweep_page
from infermesh.pages.words import clean, duration, money
from tests.pages.reading import Read, assert_closed

HOSTILE = "</script></title><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u2028 {{ 7 * 7 }} & \"q\" 'x'"


def picture(title: str = "any") -> Picture:
    points = [Point(1, 10.0, 0.1, 0.2, 0.3, 0, 10), Point(8, 40.0, 0.1, 0.2, 0.3, 2, 10)]
    rows = [TableRow(["1", "10"]), TableRow([title, "40"], chosen=True, bad=True)]
    return Picture(title, points, 8, title, [title], title, "rows/s", [title, "rows/s"], rows, title, title)


def test_a_page_is_closed() -> None:
    read = assert_closed(sweep_page(picture()))
    assert list(read.charts) == ["rate", "latency", "failed"]


def test_hostile_texts_are_texts_wherever_they_stand() -> None:
    read = assert_closed(sweep_page(picture(HOSTILE)))
    assert read.texts["title"] == read.texts["bdi"] == read.texts["strong"] == [HOSTILE]
    assert read.texts["li"] == read.texts["pre"] == [HOSTILE]
    assert read.charts["rate"]["xLabel"] == HOSTILE
    assert len(read.comments) == 1  # the licence
    assert "49" not in read.said()


def test_what_no_page_can_hold_is_replaced(tmp_path: Path) -> None:
    text = sweep_page(picture("a\x1b[31m\x00b\udcff\u202ec"))
    write(tmp_path / "p.html", text)
    read = Read((tmp_path / "p.html").read_bytes().decode("utf-8"))
    assert read.texts["bdi"] == ["a\ufffd[31m\ufffdb\ufffd\ufffdc"]
    assert read.charts["rate"]["xLabel"] == "a\ufffd[31m\ufffdb\ufffd\ufffdc"
    assert clean("a\tb\n\u05d0\U0001f600") == "a\tb\n\u05d0\U0001f600"


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "p.html", "old")
    (tmp_path / ".p.html.part").mkdir()  # in the way of the new one
    with pytest.raises(OSError, match=r"p\.html"):
        write(tmp_path / "p.html", "new")
    assert (tmp_path / "p.html").read_text() == "old"


def test_values_that_are_no_numbers_leave_gaps() -> None:
    chart = Chart("n", "t", "f", [1, 2, 3], "x", "s", [Series("l", "blue", [1 / 3, None, float("nan")])])
    assert chart.as_json()["series"][0]["values"] == [0.33333, None, None]


def test_every_colour_that_is_asked_for_is_there_by_day_and_by_night() -> None:
    (style,) = Read(sweep_page(picture())).texts["style"]
    asked = {part.split(")")[0] for part in style.split("var(--")[1:]}
    assert asked <= COLOURS.keys()
    light, dark = style.split(":root {")[1].split("}")[0], style.split(":root:not(.printed) {")[1].split("}")[0]
    for name, (day, night) in COLOURS.items():
        assert f"--{name}: {day};" in light
        assert f"--{name}: {night};" in dark


def luminance(colour: str) -> float:
    """Relative luminance, by WCAG 2.1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", sorted(COLOURS.keys() - {"paper", "raised", "grid"}))
@pytest.mark.parametrize("shade", [0, 1])
def test_texts_and_lines_can_be_told_from_the_paper(name: str, shade: int) -> None:
    for paper in ("paper", "raised"):
        first, second = sorted((luminance(COLOURS[name][shade]), luminance(COLOURS[paper][shade])))
        assert (second + 0.05) / (first + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("uPlot.iife.min.js", "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"),
        ("uPlot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
        ("diff.min.js", "b51a9d2885f2c090dc97b981027395f7e7e6558a46c75ae3747db267913a89ab"),
        ("editor.min.js", "e1cf19983bb0b098b6b26879a4064f41ff32de2622ed873172f8d59beaeba6bc"),
    ],
)
def test_the_library_is_as_its_maker_published_it(name: str, sha256: str) -> None:
    """uPlot of npm: ``npm pack uplot@1.6.32``, dist/. For another, replace files and hashes, and look at a page.

    The other two are made by ``tools/editor/build.sh``.
    """
    assert hashlib.sha256(files("infermesh.pages").joinpath("assets", name).read_bytes()).hexdigest() == sha256


def test_the_graph_has_a_box_for_each_stage_and_an_arrow_for_each_reading() -> None:
    nodes = [Node(name, "generate", ["1 done"], "good") for name in ("source", "a", "b", "c", HOSTILE)]
    edges = {"source": [], "a": ["source"], "b": ["a"], "c": ["a", "b", "c"], HOSTILE: ["gone", "c"]}
    for across in (True, False):
        read = Read(str(graph(nodes, edges, HOSTILE, across=across)))
        tags = [tag for tag, _ in read.elements]
        assert tags.count("rect") == 5
        assert sum(attributes.get("class") == "edge" for _, attributes in read.elements) == 5
        assert "script" not in tags
        (svg,) = [attributes for tag, attributes in read.elements if tag == "svg"]
        assert svg["aria-label"] == HOSTILE
        wide, high = int(svg["width"] or 0), int(svg["height"] or 0)
        for tag, at in read.elements:
            if tag == "rect":
                assert float(at["x"] or 0) + float(at["width"] or 0) <= wide
                assert float(at["y"] or 0) + float(at["height"] or 0) <= high


def test_stages_that_read_each_other_do_not_hang_it() -> None:
    nodes = [Node(name, "", [""]) for name in "ab"]
    assert "<svg" in graph(nodes, {"a": ["b"], "b": ["a"]}, "", across=True)


def test_a_histogram_has_a_bar_for_each_count() -> None:
    read = Read(str(histogram([(0.0, 0.1, 5), (0.1, 0.2, 0), (0.2, 0.3, 10)], "x")))
    heights = [float(at["height"] or 0) for tag, at in read.elements if at.get("class") == "bar"]
    assert heights == [75.0, 150.0]
    assert read.texts["title"] == ["0 to 0.1 s: 5", "0.2 to 0.3 s: 10"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((None, "–"), (0, "0 s"), (0.0042, "4.2 ms"), (0.27, "0.27 s"), (41.4, "41 s")),
        *((200, "3 min 20 s"), (18120, "5 h 02 min"), (1e6, "277 h 46 min")),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_costs() -> None:
    assert [money(cost) for cost in (None, 0.0138, 229.918)] == ["unknown", "$0.0138", "$229.92"]
