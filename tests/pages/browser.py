"""A real Chromium for the tests of pages: what it met, what axe-core finds, and rows that would run something."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).with_name("axe") / "axe.min.js"
WIDTHS = (1280, 390)
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload='window.hacked = 1'><a href='javascript:window.hacked=1'>x</a></svg>",
    "<!-- ]]> --!> <style>* { display: none }</style><base href='http://example.org/'>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe><link rel=stylesheet href='http://example.org/x.css'>",
    "{{ 7 * 7 }} ${7 * 7} \u2028\u2029 data:text/html,<script>window.hacked=1</script>",
    "\u202eright to left\u202c \u2066 \u05d0\u05d1\u05d2 \ufeff \x00\x1b[31m",
    "\\u003cscript>window.hacked = 1\\u003c/script>",
    "<" * 1_000_000,
]

IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium, or set CHROMIUM"),
]


@dataclass
class Seen:
    """What a browser met on a page."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def watched(page: Any) -> Seen:
    """A page, and what goes wrong on it from now on."""
    seen = Seen(page)
    page.on("console", lambda message: seen.errors.append(message.text))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("dialog", lambda dialog: seen.errors.append(f"a dialog: {dialog.message}"))
    return seen


def assert_nothing_found(page: Any, width: int, about: Any) -> None:
    """axe-core finds nothing on a page, and nothing sticks out of it."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    told = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]]
    assert told == [], (about, told)
    assert len(found["passes"]) > 15
    assert page.evaluate("document.documentElement.scrollWidth") <= width, about
