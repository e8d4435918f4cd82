"""The result of a session: counts, failures, totals, exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infermesh.query.in_batches import InBatches
from infermesh.query.sinks import SinkReport
from infermesh.store.schema import RunStatus

EXIT_CODES: dict[str, int] = {"done": 0, "crashed": 1, "failed_rows": 3, "stopped": 4, "waiting": 5, "interrupted": 130}


@dataclass(frozen=True, slots=True)
class StageTotals:
    """What a stage has come to, over all sessions; and its speed in this one.

    ``cost_usd`` is ``None`` where no price is known, ``rows_per_s`` where it settled nothing in this session.
    """

    reused: int
    tokens: int
    cost_usd: float | None
    rows_per_s: float | None


@dataclass(slots=True)
class RunOutcome:
    """How a session of a run ended.

    Attributes
    ----------
    status
        ``done``, ``failed_rows``, ``interrupted`` or ``stopped``; see :attr:`infermesh.Run.status`.
    counts
        Stage → status → rows, ``pending`` included, over all sessions.
    failures
        ``(stage, error_type, rows, example)``, most frequent first.
    totals
        Requests, tokens and cost in US dollars, over all sessions.
    elapsed_s
        Duration of this session.
    kept
        Row states whose request is unchanged, so that the row's own stored answer was kept.
    reused
        Row states that took the answer of a retired row or of an earlier run instead of sending the request.
    reason
        The guard that stopped the session; ``None`` if none did.
    files
        What was written to the declared sinks.
    report
        The page over the run; ``None`` if none was written.
    invalid
        ``(stage, rows, example)`` of answers that are done and do not satisfy their stage's response format.
    stages
        Stage → further figures of it.
    batches
        What of the run went through batch APIs; ``None``: nothing did.
    """

    folder: Path
    experiment: str
    status: RunStatus
    counts: dict[str, dict[str, int]]
    failures: list[tuple[str, str, int, str]]
    totals: dict[str, Any]
    elapsed_s: float
    kept: int = 0
    reused: int = 0
    reason: str | None = None
    files: SinkReport = field(default_factory=SinkReport)
    invalid: list[tuple[str, int, str]] = field(default_factory=list)
    report: Path | None = None
    batches: InBatches | None = None
    stages: dict[str, StageTotals] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done, 3 failed rows, 4 stopped by a guard, 5 batches awaited, 130 interrupted; 1 a sink failed."""
        if self.files.errors:
            return 1
        return EXIT_CODES[self.status]
