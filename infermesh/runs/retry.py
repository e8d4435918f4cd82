"""What a retry may send: the chosen rows of a stage, what changes with them, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Retry:
    """The rows and stages of a session that does chosen rows again.

    Attributes
    ----------
    stage, readers
        The stage whose rows are done again, and the stages of its wave that read it: they look at these rows again,
        and send those whose request changes.
    edited
        Stages whose declaration has changed since their answers: their other rows are left for a resume.
    rows
        Origin → the row_ids that may be sent, ascending: the chosen ones, and rows that a sql stage makes of the new
        answers.
    """

    stage: str
    readers: Collection[str]
    edited: Collection[str]
    origin: str
    rows: dict[str, Sequence[int]] = field(default_factory=dict)

    def only(self, origin: str) -> Sequence[int]:
        """The rows of an origin that may be sent."""
        return self.rows.get(origin, ())

    def scope(self, origin: str) -> Collection[str] | None:
        """The stages over an origin that may send its rows; ``None`` for all."""
        return {self.stage, *self.readers} if origin == self.origin else None

    def may_send(self, stage: str, origin: str) -> bool:
        """Whether rows of a stage, over an origin, may be sent."""
        scope = self.scope(origin)
        return scope is None or stage in scope

    def signatures(self, now: Mapping[str, str]) -> dict[str, str]:
        """The signatures to store at the end: an edited stage stays stale, as its other rows were not looked at."""
        return {**now, **dict.fromkeys(self.edited, "")}


def left_open(counts: Mapping[str, Mapping[str, int]], expected: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    """Stage → its pending rows, without those that failed again and keep their former answer (``expected``)."""
    pending = {name: found.get("pending", 0) - expected.get(name, (0, ""))[0] for name, found in counts.items()}
    return {name: rows for name, rows in pending.items() if rows}
