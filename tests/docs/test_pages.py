"""Every block of these pages runs, and shows what it says it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.docs.blocks import is_block, length, parse
from tests.docs.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages whose blocks are not for a user of a run: each says of itself how its figures are made.
ELSEWHERE = {"docs/architecture.md", "docs/benchmarks.md", "docs/reliability.md"}


def parameters() -> list[object]:
    """The pages, and whether all their blocks are run: that is long where the page says so."""
    found: list[object] = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if name not in ELSEWHERE:
            short, long = length(page)
            found += [pytest.param(page, False, id=name)] * short
            found += [pytest.param(page, True, id=f"{name}, all", marks=pytest.mark.long)] * long
    return found


@pytest.mark.parametrize(("page", "long"), parameters())
def test_a_page_does_what_it_says(page: Path, long: bool, tmp_path: Path, programs: Path, simulator: Simulator) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    ran, skipped = Page(page, folder, programs, simulator.url).run(long)
    blocks = [example for example in parse(page).examples() if is_block(example)]
    assert ran or skipped or not blocks, "no block ran"
