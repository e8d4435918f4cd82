"""What a session of a run ended with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infermesh.query.sinks import SinkReport

EXIT_CODES = {"done": 0, "failed_rows": 3, "stopped": 4, "interrupted": 130}


@dataclass(slots=True)
class RunOutcome:
    """How a session of a run ended. ``failures`` is ``(stage, error_type, rows, example)``.

    ``kept`` and ``reused`` count row states whose request was not sent because its answer was there: its row's own, or
    that of a row that has gone or of an earlier run. ``reason`` says why a session ended before its time. ``files`` is
    what became of the sinks.
    """

    folder: Path
    experiment: str
    status: str
    counts: dict[str, dict[str, int]]
    failures: list[tuple[str, str, int, str]]
    totals: dict[str, Any]
    elapsed_s: float
    kept: int = 0
    reused: int = 0
    reason: str | None = None
    files: SinkReport = field(default_factory=SinkReport)

    @property
    def exit_code(self) -> int:
        """0 complete, 3 finished with failed rows, 4 stopped by a guard, 130 interrupted; 1 where a sink failed."""
        if self.files.errors:
            return 1
        return EXIT_CODES[self.status]
