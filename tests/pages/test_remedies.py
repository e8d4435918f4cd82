"""What to do about each kind of error."""

from __future__ import annotations

import re
from pathlib import Path

from infermesh.pages.remedies import _REMEDIES, remedy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_each_kind_of_error_that_is_documented_has_one() -> None:
    table = PAGE.read_text().partition("\n## error_type\n")[2].partition("\n## ")[0]
    kinds = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert {"timeout", "worker_died"} < kinds
    # A skipped row is mended where its stage failed; of what is none of these kinds the message says all there is.
    assert kinds - set(_REMEDIES) == {"upstream", "request"}
    assert set(_REMEDIES) <= kinds
    assert remedy("request") != remedy("timeout")
