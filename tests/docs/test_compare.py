"""The README's table of tools says what docs/compare.md has a source for."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows(text: str) -> list[list[str]]:
    """The cells of the first table in a text, its head first."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert lines
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [cells[0], *cells[2:]]


def test_each_verdict_has_a_source() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    head, *body = rows(readme[readme.index("| | infermesh |") :])
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", page, flags=re.M)[1:])
    assert head[1:] == list(sections)
    for column, tool in enumerate(head[1:], start=1):
        sourced = rows(sections[tool])[1:]
        assert [(what, verdict) for what, verdict, _ in sourced] == [(row[0], row[column]) for row in body], tool
        assert not [what for what, verdict, source in sourced if not source and set(verdict) - set("– /")], tool
