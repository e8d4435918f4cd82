"""What a page says, as a browser's parser reads it, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "wbr", "br", "hr", "input", "img", "link"}


class Read(HTMLParser):
    """The elements of a page, their attributes, and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    @property
    def policy(self) -> str:
        """The content security policy."""
        (found,) = [a["content"] for t, a in self.elements if t == "meta" and "http-equiv" in a]
        return found or ""

    @property
    def charts(self) -> dict[str, Any]:
        """Name → what is drawn."""
        (data,) = [text for text in self.texts["script"] if text.startswith("[")]
        return {chart["name"]: chart for chart in json.loads(data)}

    def said(self) -> str:
        """All texts but scripts and styles, with single blanks."""
        told = (text for tag, texts in self.texts.items() if tag not in ("script", "style") for text in texts)
        return re.sub(r"\s+", " ", " ".join(told))


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def assert_closed(text: str) -> Read:
    """The page loads nothing, and its policy lets its own two scripts and its style through, and nothing else."""
    read = Read(text)
    scripts = [script for script in read.texts["script"] if not script.startswith("[")]
    assert len(scripts) == 2
    (style,) = read.texts["style"]
    rules = dict(rule.strip().split(" ", 1) for rule in read.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [digest(script) for script in scripts]
    assert rules["style-src"].split() == [digest(style)]
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in read.elements}
    for tag, attributes in read.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "style", "srcdoc", "action"), (tag, name)
            assert name != "href" or (value or "").startswith("#"), (tag, value)
    assert not re.search(r"url\(|@import", style)
    return read
