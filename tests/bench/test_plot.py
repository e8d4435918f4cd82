"""The picture of a sweep in its three formats: what it shows, and that it needs nothing from elsewhere."""

from __future__ import annotations

import math
import re
import struct
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from infermesh.bench.measure import Level, recommend
from infermesh.bench.plot import Picture, Point, check_plot, draw, picture_of
from infermesh.errors import ConfigError

HOSTILE = "</h1></svg><script>alert(1)</script> & \"q\" 'x' {{ 7 * 7 }}"
EMPTY = math.nan


def level(concurrency: int, rps: float, p95: float, errors: int = 0) -> Level:
    return Level(concurrency, 100, errors, 10.0, rps, p95 * 0.9, p95, p95 * 1.1, p95, 0.0, 0.1)


def picture(*levels: Level, title: str = "generate: any") -> Picture:
    return picture_of(title, levels, recommend(levels))


USUAL = picture(level(1, 10, 0.1), level(8, 40, 0.1), level(16, 40, 0.2))
FAILING = picture(level(1, 10, 0.1), level(8, 40, 0.1), level(16, 3, 0.2, 60), level(32, 0, EMPTY, 100))


class Page(HTMLParser):
    """The elements of a page, their attributes, and the text of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass


def page(tmp_path: Path, drawn: Picture) -> str:
    draw(tmp_path / "p.html", drawn)
    return (tmp_path / "p.html").read_text(encoding="utf-8")


def texts(tmp_path: Path, drawn: Picture) -> list[str]:
    """What can be read in the SVG."""
    draw(tmp_path / "p.svg", drawn)
    tree = ElementTree.parse(tmp_path / "p.svg")
    return [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_axes_say_what_they_show_and_the_recommended_setting_is_marked(tmp_path: Path) -> None:
    found = texts(tmp_path, USUAL)
    assert {"generate: any", "requests per second", "latency in seconds", "requests in flight"} <= set(found)
    assert {"p50", "p95", "p99", "1", "8", "16"} <= set(found)
    assert "recommended: 8" in found
    assert "failed requests" not in found


def test_failures_are_shown_where_there_are_any(tmp_path: Path) -> None:
    assert "failed requests" in texts(tmp_path, FAILING)
    found = "".join(Page(page(tmp_path, FAILING)).texts["td"])
    assert "✕ 60/100" in found
    assert "✕ 100/100" in found
    assert "0.00–––" in found  # nothing was answered at c=32


def test_where_every_request_failed_only_failures_are_shown(tmp_path: Path) -> None:
    found = texts(tmp_path, picture(level(1, 0, EMPTY, 100), level(8, 0, EMPTY, 100)))
    assert "failed requests" in found
    assert not {"requests per second", "latency in seconds"} & set(found)
    assert not any(text.startswith("recommended") for text in found)


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script(tmp_path: Path) -> None:
    text = page(tmp_path, FAILING)
    elements = Page(text).elements
    assert not {"script", "link", "img", "image", "iframe", "use"} & {tag for tag, _ in elements}
    assert not [name for _, attributes in elements for name in attributes if name in ("src", "href", "xlink:href")]
    assert not re.search(r"url\(|@import", text)
    assert re.findall(r"https?://[^\"]+", text.replace("http://www.w3.org/", "")) == []


def test_light_and_dark_give_every_colour_that_the_curves_ask_for(tmp_path: Path) -> None:
    text = page(tmp_path, FAILING)
    light, dark = re.findall(r":root \{(.*?)\}", text)
    asked = set(re.findall(r"var\((--\w+)\)", text))
    assert len(asked) >= 8
    for sheet in (light, dark):
        assert asked <= set(re.findall(r"(--\w+):", sheet))
    assert "prefers-color-scheme: dark" in text


def test_a_phone_gets_curves_of_its_own_width(tmp_path: Path) -> None:
    wide, narrow = (int(a["width"] or 0) for tag, a in Page(page(tmp_path, FAILING)).elements if tag == "svg")
    assert 600 < wide < 760
    assert narrow <= 368  # of 400 pixels, without the margins


def test_pictures_have_colours_of_their_own(tmp_path: Path) -> None:
    draw(tmp_path / "p.svg", USUAL)
    assert "var(" not in (tmp_path / "p.svg").read_text()
    draw(tmp_path / "P.PNG", USUAL)
    head = (tmp_path / "P.PNG").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) > (1200, 600)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    drawn = replace(USUAL, title=HOSTILE, axis=HOSTILE, column=f"a_{HOSTILE}", summary=HOSTILE, notes=[HOSTILE])
    read = Page(page(tmp_path, drawn))
    assert not {"script", "alert"} & {tag for tag, _ in read.elements}
    assert read.texts["h1"] == read.texts["p"][:1] == read.texts["li"] == [HOSTILE]
    assert HOSTILE in read.texts["wbr"]  # where the column's name may be broken
    assert HOSTILE in read.texts["text"]
    assert texts(tmp_path, drawn).count(HOSTILE) == 2


def test_what_is_no_text_is_replaced(tmp_path: Path) -> None:
    drawn = replace(USUAL, title="a\x1b[31m\x00b\udcff")
    assert texts(tmp_path, drawn)[-1] == "a�[31m�b�"
    assert "<h1>a�[31m�b�</h1>" in page(tmp_path, drawn)
    draw(tmp_path / "p.png", drawn)


@pytest.mark.parametrize(
    "settings", [(0, 1, 2), (-1, 0), (0.1, 0.5), (7,), (0,), (1, 2_000_000), (100, 101, 102), range(1, 60)]
)
def test_any_numbers_are_settings(tmp_path: Path, settings: Any) -> None:
    points = [Point(setting, 10.0, 0.1, 0.2, EMPTY, 0.1, 0.0, 0, 10) for setting in settings]
    text = page(tmp_path, replace(USUAL, points=points, chosen=settings[0]))
    assert not re.search(r"NaN|Infinity", text)
    assert f"recommended: {settings[0]:,}</text>" in text
    assert f"{settings[-1]:,}</th>" in text


def test_an_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.html, \.svg or \.png"):
        check_plot(tmp_path / "bench.pdf")


@pytest.mark.parametrize("name", ["p.html", "p.svg", "p.png"])
def test_without_the_extra_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    for function in (check_plot, lambda path: draw(path, USUAL)):
        with pytest.raises(ConfigError, match=r"vl-convert-python: pip install 'infermesh\[plot\]'$"):
            function(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
