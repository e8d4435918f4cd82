"""The messages that the page of troubleshooting quotes are those that the package says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.M)


@pytest.fixture(scope="module")
def said() -> str:
    """All texts of the package; a placeholder ends one, and strings that stand side by side are one."""
    return "\n".join(
        node.value
        for file in sorted((ROOT / "infermesh").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) >= 30
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("message", QUOTED)
def test_the_fixed_words_of_a_message_are_in_the_package(message: str, said: str) -> None:
    missing = [words for words in (part.strip() for part in message.split("…")) if words not in said]
    assert not missing, f"docs/troubleshooting.md quotes words that no message has: {missing}"
