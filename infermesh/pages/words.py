"""Values as people read them on a page: durations, costs, times, and texts without what would disturb a page."""

from __future__ import annotations

import re
from datetime import datetime

__all__ = ["clean", "duration", "moment", "money"]

# What XML forbids, and the marks that reorder a line of text beyond the element that they stand in.
_UNFIT = re.compile("[^\t\n\r -\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """A text for a page: what no page can hold, or would reorder what stands around it, is U+FFFD."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(text))


def duration(seconds: float | None) -> str:
    """A duration for people: ``4 ms``, ``0.27 s``, ``41 s``, ``3 min 20 s``, ``5 h 02 min``."""
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms" if seconds >= 1e-4 else "0 s"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def money(dollars: float | None) -> str:
    """A cost for people: four places below ten dollars, two above."""
    if dollars is None:
        return "unknown"
    return f"${dollars:,.4f}" if abs(dollars) < 10 else f"${dollars:,.2f}"


def moment(at: datetime | None) -> str:
    """A time in UTC, 24 hours."""
    return "–" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"
