"""The counts of a run while it goes on: what progress displays and guards look at."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class StageStats:
    """Counts of one stage, earlier sessions included; ``in_flight`` is rows with a request out or waiting."""

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    in_flight: int = 0

    @property
    def settled(self) -> int:
        """Rows with a final state."""
        return self.done + self.failed + self.skipped


@dataclass(slots=True)
class RunStats:
    """What the progress display shows. All but ``stages`` is this session's.

    ``settled`` counts row states, ``errors`` those that failed, ``rows`` the rows that have been through all their
    stages. ``kept`` counts states whose request was found unchanged, ``reused`` those taken from rows
    that have gone or from earlier runs.
    """

    stages: dict[str, StageStats]
    started: float = field(default_factory=time.monotonic)
    requests: int = 0
    settled: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    rate_limited: int = 0
    cost_usd: float | None = None
    errors: int = 0
    kept: int = 0
    reused: int = 0


class Observer(Protocol):
    """Who watches a run: the terminal, a log, a test."""

    def note(self, text: str) -> None:
        """Say something once."""
        ...

    def start(self, stats: RunStats) -> None:
        """The first row is about to go."""
        ...

    def tick(self, stats: RunStats) -> None:
        """A few times a second."""
        ...

    def stop(self, stats: RunStats) -> None:
        """No more rows."""
        ...
