"""Every block of these pages runs, and shows what it says it shows."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.docs.blocks import is_block, length, parse
from tests.docs.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGE_S = 600.0  # the suite's own bound is for one quick test
# But the one that `python -m benchmarks` writes, with the commands that it has run.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "benchmarks.md")]


def parameters() -> list[object]:
    """The pages, and whether all their blocks are run: that is long where the page says so."""
    found: list[object] = []
    for page in PAGES:
        name, (short, long) = str(page.relative_to(ROOT)), length(page)
        found += [pytest.param(page, False, id=name)] * short
        found += [pytest.param(page, True, id=f"{name}, all", marks=pytest.mark.long)] * long
    return found


@pytest.mark.parametrize(("page", "long"), parameters())
def test_a_page_does_what_it_says(page: Path, long: bool, tmp_path: Path, programs: Path, simulator: Simulator) -> None:
    if long:  # each of its commands has a bound of its own
        faulthandler.dump_traceback_later(PAGE_S, exit=True)
    folder = tmp_path / "page"
    folder.mkdir()
    ran, skipped = Page(page, folder, programs, simulator.url).run(long)
    blocks = [example for example in parse(page).examples() if is_block(example)]
    assert ran or skipped or not blocks, "no block ran"
