"""A row on its way through the stages."""

from __future__ import annotations

from infermesh.stages import Prepared
from infermesh.store import StoredRow


class Row:
    """A row on its way through the stages."""

    __slots__ = ("context", "error", "failed", "open", "prepared", "row_id", "states", "waiting")

    def __init__(self, stored: StoredRow) -> None:
        self.row_id = stored.row_id
        self.context = stored.values
        self.error = stored.error
        self.states = stored.states
        self.failed: dict[str, str] = {}
        self.waiting: dict[str, int] = {}
        self.open = 0
        self.prepared: dict[str, Prepared] | None = None  # what was made ready to be looked up among known answers
