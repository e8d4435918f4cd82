"""How long a digest came out."""

from __future__ import annotations

from typing import Any

ENOUGH = 20


def score(row: dict[str, Any]) -> dict[str, Any]:
    """Count the digest's words."""
    words = len(row["digests"]["text"].split())
    return {"words": words, "enough": words >= ENOUGH}
