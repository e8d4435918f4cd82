"""The log of requests: each is counted, and queued for ``attempts_log``, a failed one as soon as it has failed.

A request that the row of its answer tells of itself is counted alone: see :func:`infermesh.store.schema.sole_requests`.
"""

from __future__ import annotations

from typing import Any, Protocol

from infermesh.dispatch.failures import ON_FAILURE
from infermesh.errors import RequestError, StoppedError
from infermesh.results import Attempt, RequestMetrics
from infermesh.runs.stats import RunStats, Trouble
from infermesh.store.schema import ATTEMPTS_LOG, attempt_row

__all__ = ["AttemptLog", "RowLog", "RowWriter"]


class RowWriter(Protocol):
    """Takes rows for the database: the writer itself, or what sends them to it. As in ``GroupWriter``."""

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False, size: int = 0) -> None: ...

    def is_behind(self, rows: int, size: int) -> bool: ...


class AttemptLog:
    """Counts requests in a session's ``stats``, and gives them to the writer."""

    def __init__(self, writer: RowWriter, stats: RunStats) -> None:
        self._writer = writer
        self._stats = stats

    def begin(self, stage: str, row_id: int) -> RowLog:
        """The log of a row's requests, which gets those that fail in the present task from now on.

        A request for several rows is logged under the first.
        """
        log = RowLog(self, stage, row_id)
        ON_FAILURE.set(log.failed)
        return log

    def count(self, attempt: Attempt) -> None:
        """Count one request."""
        stats = self._stats
        stats.requests += 1
        stats.retries += attempt.attempt > 1
        if attempt.error_type is not None:
            stats.rate_limited += attempt.status_code == 429
        prompt, completion, cost = attempt.prompt_tokens, attempt.completion_tokens, attempt.cost_usd
        if prompt:
            stats.prompt_tokens += prompt
        if completion:
            stats.completion_tokens += completion
        if cost is not None:
            stats.cost_usd = (stats.cost_usd or 0.0) + cost

    def write(self, stage: str, row_id: int, attempt: Attempt, error: RequestError | None = None) -> None:
        """Count one request, and queue it."""
        self.count(attempt)
        if error is None:
            self._writer.put(ATTEMPTS_LOG, attempt_row(stage, row_id, attempt))
            return
        message = error.message.removeprefix(f"{attempt.deployment}: ")
        self._writer.put(ATTEMPTS_LOG, attempt_row(stage, row_id, attempt, message))
        stats = self._stats
        if not isinstance(error, StoppedError):
            kind = (stage, attempt.deployment, error.kind)
            trouble = stats.troubles.get(kind)
            if trouble is None:
                trouble = stats.troubles[kind] = Trouble(*kind, message, error.retryable)
            trouble.requests += 1


class RowLog:
    """The requests of one row at one stage."""

    __slots__ = ("_log", "_row_id", "_stage", "_written")

    def __init__(self, log: AttemptLog, stage: str, row_id: int) -> None:
        self._log = log
        self._stage = stage
        self._row_id = row_id
        self._written: list[Attempt] | None = None  # few rows have a failed request

    def failed(self, attempt: Attempt, error: RequestError) -> None:
        """Log a request that has failed, whatever becomes of its row."""
        if self._written is None:
            self._written = []
        self._written.append(attempt)
        self._log.write(self._stage, self._row_id, attempt, error)

    def end(self, metrics: RequestMetrics, row_id: int | None = None, *, told: bool = False) -> None:
        """Log the other requests of an answer, or of a failure.

        Parameters
        ----------
        row_id
            Whose they are; ``None``: this row's.
        told
            There is one, and the row tells of it.
        """
        if told:
            self._log.count(metrics.attempts[0])
            return
        written = self._written
        for attempt in metrics.attempts:
            if written is None or not any(attempt is other for other in written):
                self._log.write(self._stage, self._row_id if row_id is None else row_id, attempt)
