"""How fast a run was, read from its database: rows and tokens per second, latencies, errors, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.query.percentile import percentile
from infermesh.store.connection import connect, in_words, open_duckdb
from infermesh.store.schema import Column, literal, quoted

# One request with its retries: the attempts of a row, from number 1 on. A later session begins with 1 again.
_REQUESTS = f"""
WITH counted AS (
    SELECT *, sum(CASE WHEN attempt = 1 THEN 1 ELSE 0 END) OVER (PARTITION BY stage, row_id ORDER BY started_at, attempt
        ROWS UNBOUNDED PRECEDING) AS request
    FROM attempts WHERE $stage IS NULL OR stage = $stage
), requests AS (
    SELECT sum(queue_s + service_s) AS latency, sum(queue_s) AS queued, sum(service_s) AS served,
        arg_max(error_type IS NULL, attempt) AS answered
    FROM counted GROUP BY stage, row_id, request
)
SELECT count(*), count(*) FILTER (NOT answered), {percentile("latency", 0.5)} FILTER (answered),
    {percentile("latency", 0.95)} FILTER (answered), {percentile("latency", 0.99)} FILTER (answered),
    {percentile("queued", 0.95)} FILTER (answered), {percentile("served", 0.95)} FILTER (answered)
FROM requests"""
_TOKENS = """
SELECT coalesce(sum(prompt_tokens), 0)::BIGINT, coalesce(sum(completion_tokens), 0)::BIGINT
FROM attempts WHERE $stage IS NULL OR stage = $stage"""
# How long the sessions took, and how long the stage (or any stage) was at work in them: from the first request of a
# session to its last answer.
_SPANS = """
WITH starts AS (
    SELECT session, started_at, elapsed_s, lead(started_at) OVER (ORDER BY session) AS until FROM sessions
), spans AS (
    SELECT session, elapsed_s, s.started_at AS began,
        min(a.started_at - to_microseconds((a.queue_s * 1e6)::BIGINT)) AS first,
        max(a.started_at + to_microseconds((a.service_s * 1e6)::BIGINT)) AS last
    FROM starts s LEFT JOIN attempts a ON a.started_at >= s.started_at AND (s.until IS NULL OR a.started_at < s.until)
        AND ($stage IS NULL OR a.stage = $stage)
    GROUP BY ALL
)
SELECT sum(coalesce(elapsed_s, epoch(last - began))), sum(epoch(last - greatest(first, began))) FROM spans"""


@dataclass(frozen=True, slots=True)
class Figures:
    """A run, or one of its stages, in numbers.

    Times are in seconds and add up all sessions. Percentiles are nearest-rank; NaN if nothing was answered.

    Attributes
    ----------
    rows
        Rows that are done: in the stage, or in every stage of the run. Rows of a sql stage count too.
    failed, pending
        Rows that failed in the stage, or in any stage; rows that have no state yet.
    elapsed_s
        For a run, the time of its sessions; for a stage, the time from its first request to its last answer.
    requests, request_errors
        Requests, each with all its attempts; those that ended in an error.
    p50_s, p95_s, p99_s
        From the moment a request was asked for to its answer, with all attempts and all waiting on this side.
    queue_p95_s, service_p95_s
        The waiting on this side alone; the time at the server alone.
    cost_usd
        Of the whole run, also where the figures are a stage's; ``None`` if no price is known.
    """

    run_id: str
    status: str
    rows: int
    failed: int
    pending: int
    elapsed_s: float
    requests: int
    request_errors: int
    prompt_tokens: int
    completion_tokens: int
    p50_s: float
    p95_s: float
    p99_s: float
    queue_p95_s: float
    service_p95_s: float
    cost_usd: float | None

    @property
    def rows_per_s(self) -> float:
        """Rows done per second."""
        return self.rows / self.elapsed_s if self.elapsed_s > 0 else math.nan

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, prompts and answers together."""
        return (self.prompt_tokens + self.completion_tokens) / self.elapsed_s if self.elapsed_s > 0 else math.nan


def read_figures(path: Path, stage: str | None = None) -> Figures | None:
    """The figures of a run or of one of its stages; ``None`` if the database holds no run.

    Raises
    ------
    StoreError
        Another process holds the database, or it is damaged.
    """
    with connect(path, read_only=True) as connection, in_words(path):
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if not {"run", "sessions"} <= tables:  # the run ended before its source was loaded, or is of schema 1
            return None
        run = connection.execute("SELECT run_id, status FROM run").fetchone()
        if run is None:
            return None
        run_id, status = run
        done, failed, pending = _states(connection, stage)
        parameters = {"stage": stage}
        requests, errors, *seconds = _one(connection, _REQUESTS, parameters)
        p50, p95, p99, queue_p95, service_p95 = (math.nan if value is None else value for value in seconds)
        sessions, at_work = _one(connection, _SPANS, parameters)
        prompt_tokens, completion_tokens = _one(connection, _TOKENS, parameters)
        (cost,) = _one(connection, "SELECT sum(cost_usd) FROM attempts", {})
    return Figures(
        run_id=run_id,
        status=status,
        rows=done,
        failed=failed,
        pending=pending,
        elapsed_s=(sessions if stage is None else at_work) or 0.0,
        requests=requests,
        request_errors=errors,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        queue_p95_s=queue_p95,
        service_p95_s=service_p95,
        cost_usd=cost,
    )


def _one(connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, Any]) -> tuple[Any, ...]:
    row = connection.execute(sql, parameters).fetchone()
    assert row is not None
    return row


def _states(connection: duckdb.DuckDBPyConnection, stage: str | None) -> tuple[int, int, int]:
    """How many rows are done, failed and pending, in a stage or in the whole run; there a row's worst state counts."""
    if stage is not None:
        counts = dict(connection.execute("SELECT status, rows FROM progress WHERE stage = ?", [stage]).fetchall())
        return counts.get("done", 0), counts.get("error", 0), counts.get("pending", 0)
    views = connection.execute(
        "SELECT c.table_name, list(DISTINCT p.stage) FROM progress p JOIN duckdb_columns() c "
        "ON c.column_name = p.stage || '_status' WHERE c.table_name IN (SELECT view_name FROM duckdb_views()) "
        "GROUP BY ALL"
    ).fetchall()
    done = failed = pending = 0
    for view, stages in views:  # one view for the source's rows, one for each sql stage's
        listed = f"[{', '.join(quoted(f'{name}_status') for name in stages)}]"
        here = _one(
            connection,
            f"SELECT count(*) FILTER (NOT failed AND NOT pending), count(*) FILTER (failed), "
            f"count(*) FILTER (pending AND NOT failed) FROM (SELECT coalesce(list_contains({listed}, 'error'), false) "
            f"AS failed, len(list_filter({listed}, lambda state: state IS NULL)) > 0 AS pending FROM {quoted(view)})",
            {},
        )
        done, failed, pending = done + here[0], failed + here[1], pending + here[2]
    return done, failed, pending


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The declaration that a run was last started with, as far as its database knows it."""

    status: str
    config_hash: str
    source_fingerprint: str
    signatures: dict[str, str]
    overrides: list[str] | None


def read_stored(path: Path) -> StoredRun | None:
    """Read a run's declaration; ``None`` if the database holds no run. Raises ``StoreError``."""
    with connect(path, read_only=True) as connection, in_words(path):
        try:
            row = connection.execute(
                "SELECT status, config_hash, source_fingerprint, signatures, overrides FROM run"
            ).fetchone()
        except (duckdb.CatalogException, duckdb.BinderException):  # no run, or one of schema 1
            return None
    if row is None:
        return None
    status, config_hash, fingerprint, signatures, overrides = row
    return StoredRun(
        status,
        config_hash,
        fingerprint,
        orjson.loads(signatures or "{}"),
        None if overrides is None else orjson.loads(overrides),
    )


def write_parquet(path: Path, columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> None:
    """Write a small table into a Parquet file."""
    with open_duckdb() as connection:
        connection.execute(f"CREATE TABLE written ({', '.join(column.ddl for column in columns)})")
        if rows:
            connection.executemany(f"INSERT INTO written VALUES ({', '.join('?' * len(columns))})", rows)
        connection.execute(f"COPY written TO {literal(str(path))} (FORMAT parquet)")
