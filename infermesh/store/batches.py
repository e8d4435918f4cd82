"""The tables ``batches`` and ``batch_rows``: what was given to providers' batch APIs, and what came back.

A batch is committed here before its provider hears of it, and each step before the next is taken. So after a kill it is
known what the provider may have: see ``STATES``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from infermesh.store.connection import connect
from infermesh.store.schema import ATTEMPTS_LOG, DATABASE, literal, quoted

__all__ = ["BATCHES", "BATCH_ROWS", "BatchBook", "StoredBatch", "StoredLine", "batches_at_providers", "has_batches"]

BATCHES, BATCH_ROWS = "batches", "batch_rows"
# intent: nothing was sent. uploaded: its file was. creating: the request that makes it was sent; whether it did is not
# known. submitted: it has an id. collected: its results are here, in batches/. gone: no batch was made, or none of its
# lines was worked on.
STATES = ("intent", "uploaded", "creating", "submitted", "collected", "gone")
_DDL = (
    f"CREATE TABLE IF NOT EXISTS {BATCHES} (token VARCHAR, deployment VARCHAR, operation VARCHAR, state VARCHAR, "
    "batch_id VARCHAR, file_id VARCHAR, provider_state VARCHAR, requests INTEGER, bytes BIGINT, prompt_tokens BIGINT, "
    "made_at TIMESTAMP, submitted_at TIMESTAMP, ended_at TIMESTAMP, gave_up BOOLEAN, answered INTEGER, failed INTEGER, "
    "unserved INTEGER, error VARCHAR)",
    f"CREATE TABLE IF NOT EXISTS {BATCH_ROWS} (token VARCHAR, line INTEGER, custom_id VARCHAR, stage VARCHAR, "
    "row_id BIGINT, request INTEGER, request_hash UBIGINT, tries INTEGER, outcome VARCHAR)",
)
OUTCOMES = ("waiting", "answered", "failed", "unserved", "used")


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A row of ``batches``."""

    token: str
    deployment: str
    operation: str
    state: str
    batch_id: str | None
    file_id: str | None
    requests: int
    prompt_tokens: int
    made_at: datetime
    submitted_at: datetime | None
    ended_at: datetime | None
    gave_up: bool


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A row of ``batch_rows``: which request of which row a line is.

    Attributes
    ----------
    request
        From 0: its place among the requests of the row at the stage. An answer that is asked for again is another one.
    request_hash
        Of the payload.
    tries
        How often the same was sent before.
    outcome
        One of ``OUTCOMES``; ``used``: the row has been settled since.
    """

    line: int
    stage: str
    row_id: int
    request: int
    request_hash: int
    tries: int
    outcome: str


def has_batches(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether a run has ever made a batch."""
    query = "SELECT 1 FROM duckdb_tables() WHERE table_name = ?"
    return connection.execute(query, [BATCHES]).fetchone() is not None


class BatchBook:
    """Reads and writes the two tables. Each method is one transaction, and blocks; one thread at a time.

    Parameters
    ----------
    connection
        One of its own, to a database that is open for writing. The tables are made where they are missing.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        for ddl in _DDL:
            connection.execute(ddl)

    def add(
        self,
        batch: StoredBatch,
        size: int,
        stages: Sequence[str],
        row_ids: array[int],
        requests: Iterable[int],
        hashes: array[int],
        tries: Iterable[int],
    ) -> None:
        """Commit a batch before anything of it is sent. The sequences have an entry a line."""
        connection = self._connection
        connection.begin()
        try:
            connection.execute(
                f"INSERT INTO {BATCHES} (token, deployment, operation, state, requests, bytes, prompt_tokens, made_at, "
                "gave_up) VALUES (?, ?, ?, 'intent', ?, ?, ?, ?, false)",
                [
                    batch.token,
                    batch.deployment,
                    batch.operation,
                    batch.requests,
                    size,
                    batch.prompt_tokens,
                    batch.made_at,
                ],
            )
            connection.execute(
                f"INSERT INTO {BATCH_ROWS} SELECT $token, line, $mark || '-' || line || '-' || row_id || '-' || "
                "printf('%016x', hash), stage, row_id, request, hash, tries, 'waiting' FROM (SELECT "
                "unnest(range(len($rows))) AS line, unnest($stages::VARCHAR[]) AS stage, unnest($rows::BIGINT[]) AS "
                "row_id, unnest($requests::INTEGER[]) AS request, unnest($hashes::UBIGINT[]) AS hash, "
                "unnest($tries::INTEGER[]) AS tries)",
                {
                    "token": batch.token,
                    "mark": batch.token[:8],
                    "stages": list(stages),
                    "rows": row_ids.tolist(),
                    "requests": list(requests),
                    "hashes": hashes.tolist(),
                    "tries": list(tries),
                },
            )
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def note(self, token: str, **values: Any) -> None:
        """Set columns of a batch."""
        assignments = ", ".join(f"{quoted(name)} = ?" for name in values)
        self._connection.execute(f"UPDATE {BATCHES} SET {assignments} WHERE token = ?", [*values.values(), token])

    def collected(self, token: str, outcomes: Sequence[str], **values: Any) -> None:
        """Commit what became of each line, in their order, and that the batch is over."""
        connection = self._connection
        connection.begin()
        try:
            connection.execute(
                f"UPDATE {BATCH_ROWS} SET outcome = found.outcome FROM (SELECT unnest(range(len($found))) AS line, "
                f"unnest($found::VARCHAR[]) AS outcome) found WHERE token = $token AND {BATCH_ROWS}.line = found.line",
                {"token": token, "found": list(outcomes)},
            )
            self.note(token, **values)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def drop(self, token: str) -> None:
        """Forget a batch that its provider has never heard of: its rows are pending as if it had not been."""
        connection = self._connection
        connection.begin()
        try:
            connection.execute(f"DELETE FROM {BATCH_ROWS} WHERE token = ?", [token])
            connection.execute(f"DELETE FROM {BATCHES} WHERE token = ?", [token])
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def forget_untold(self) -> None:
        """Take from ``attempts_log`` what batches brought for rows that a kill has kept from being settled with it.

        A row tells of its batches when it settles, in the commit that settles it or the one before.
        """
        tables = {name for (name,) in self._connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        stages = f"SELECT DISTINCT stage FROM {ATTEMPTS_LOG} WHERE service_tier = 'batch'"
        for (stage,) in self._connection.execute(stages).fetchall():
            if stage in tables:
                self._connection.execute(
                    f"DELETE FROM {ATTEMPTS_LOG} WHERE service_tier = 'batch' AND stage = {literal(stage)} AND row_id "
                    f"NOT IN (SELECT row_id FROM {quoted(stage)})"
                )

    def open(self) -> list[StoredBatch]:
        """The batches that matter to a session: all but those that are gone, the oldest first."""
        return self._batches("state <> 'gone' ORDER BY made_at")

    def _batches(self, condition: str) -> list[StoredBatch]:
        names = (
            "token, deployment, operation, state, batch_id, file_id, requests, prompt_tokens, made_at, submitted_at, "
            "ended_at, gave_up"
        )
        found = self._connection.execute(f"SELECT {names} FROM {BATCHES} WHERE {condition}").fetchall()
        return [StoredBatch(*row) for row in found]

    def lines(self, token: str) -> list[StoredLine]:
        """The lines of a batch, in their order. One whose row was settled since the batch came back is ``used``."""
        connection = self._connection
        stages = connection.execute(f"SELECT DISTINCT stage FROM {BATCH_ROWS} WHERE token = ?", [token]).fetchall()
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        settled = " UNION ALL ".join(
            f"SELECT {literal(name)} AS stage, row_id, finished_at FROM {quoted(name)}"
            for (name,) in stages
            if name in tables
        )
        used = "false"
        if settled:
            used = (
                "EXISTS (FROM settled s WHERE s.stage = r.stage AND s.row_id = r.row_id AND s.finished_at >= "
                f"(SELECT ended_at FROM {BATCHES} WHERE token = $token))"
            )
        found = connection.execute(
            f"{f'WITH settled AS ({settled})' if settled else ''} SELECT line, stage, row_id, request, request_hash, "
            f"tries, CASE WHEN outcome <> 'waiting' AND {used} THEN 'used' ELSE outcome END FROM {BATCH_ROWS} r "
            "WHERE token = $token ORDER BY line",
            {"token": token},
        ).fetchall()
        return [StoredLine(*row) for row in found]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def batches_at_providers(folder: Path) -> list[tuple[str, str]]:
    """Deployment and id of each batch of a finished run that is not back."""
    with connect(folder / DATABASE, read_only=True) as connection:
        if not has_batches(connection):
            return []
        query = f"SELECT deployment, batch_id FROM {BATCHES} WHERE state = 'submitted' ORDER BY made_at"
        return connection.execute(query).fetchall()
