"""Every block of these pages runs, and shows what it says it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infermesh.simulator import Simulator
from tests.docs.commands import serving
from tests.docs.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# The pages whose every block runs today; each page that is carried over is added.
PAGES = [ROOT / "docs" / name for name in ("index.md", "tutorial.md", "python.md", "troubleshooting.md")]
PAGES += sorted((ROOT / "docs" / "howto").glob("*.md"))


def parameters() -> list[object]:
    """The pages; those that say so are long."""
    long = "<!-- test: long -->"
    return [
        pytest.param(page, marks=[pytest.mark.long] * (long in page.read_text()), id=str(page.relative_to(ROOT)))
        for page in PAGES
    ]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("commands")) as folder:
        yield folder


@pytest.mark.parametrize("page", parameters())
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, programs: Path, simulator: Simulator) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    ran, skipped = Page(page, folder, programs, simulator.url).run()
    assert ran or skipped or page.name == "index.md", "no block ran"
