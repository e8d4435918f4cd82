"""The documentation tells every key, table, column and exit code, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from infermesh.config.schema import (
    RESERVED_TABLES,
    STAGE_KINDS,
    Experiment,
    GuardsConfig,
    SinkConfig,
    SourceConfig,
    StoreConfig,
)
from infermesh.runs.outcome import EXIT_CODES
from infermesh.store.schema import AFTER_OUTPUTS, BEFORE_OUTPUTS, COMMON_DDL

DOCS = Path(__file__).resolve().parents[2] / "docs"


def told() -> str:
    """What the reference says: configuration.md and the page on pipelines."""
    return "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("configuration.md", "pipelines.md"))


@pytest.mark.parametrize(
    "model", [SourceConfig, GuardsConfig, SinkConfig, StoreConfig, Experiment, *STAGE_KINDS.values()]
)
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    text = told()
    assert [key for key in model.model_fields if not re.search(rf"`(?:\w+\.)*{key}(?:\.\w+)?`|### {key}", text)] == []


def test_every_table_column_and_error_is_explained() -> None:
    text = told()
    columns = re.findall(r"(\w+) (?:VARCHAR|BIGINT|INTEGER|JSON|TIMESTAMP|DOUBLE)", " ".join(COMMON_DDL))
    assert columns
    named = {*columns, *(column.name for column in (*BEFORE_OUTPUTS, *AFTER_OUTPUTS)), *RESERVED_TABLES}
    assert sorted(name for name in named if f"`{name}`" not in text) == []
    assert [code for code in EXIT_CODES.values() if f"| {code} |" not in text] == []


PAGES = sorted(
    str(page.relative_to(DOCS.parent))
    for folder in ("docs", "examples", "changelog.d", ".github")
    for page in (DOCS.parent / folder).rglob("*.md")
) + sorted(page.name for page in DOCS.parent.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = DOCS.parent / page
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", file.read_text(encoding="utf-8")):
        there = file.parent / target if target else file
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"
