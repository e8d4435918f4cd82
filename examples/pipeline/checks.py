"""Checks on answers, as functions over a row."""

from __future__ import annotations

import re
from typing import Any


def grounding(row: dict[str, Any]) -> dict[str, Any]:
    """How much of an answer stands in its article: the share of its words of four letters and more."""
    words = set(re.findall(r"\w{4,}", row["answers"]["text"].lower()))
    known = set(re.findall(r"\w{4,}", row["body"].lower()))
    share = len(words & known) / len(words) if words else 0.0
    return {"share": share, "grounded": share >= 0.8}
