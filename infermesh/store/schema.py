"""The tables and views of a run's database. They are public: users write SQL against them.

Times are UTC timestamps, durations seconds, costs US dollars.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import duckdb

from infermesh.results import Attempt
from infermesh.store.folders import DATABASE as DATABASE

SCHEMA_VERSION = 3
# Without this, DuckDB also resolves a table name to a Python variable of the caller. It would search Python's frames
# while it holds a lock of the database, and a user's SQL could name variables of ours.
SETTINGS: dict[str, Any] = {"python_enable_replacements": False}


# What run.status may hold. A reader knows one more, ``killed``: see :func:`status_now`.
RunStatus = Literal[
    "running",  # a process runs it
    "done",  # every row has settled, none with an error
    "failed_rows",  # every row has settled, some with an error
    "interrupted",  # drained by Ctrl-C, SIGTERM or a stop; some rows are pending
    "stopped",  # drained by a guard; some rows are pending
    "waiting",  # all that can be submitted is in batches that are not back; their rows are pending
    "crashed",  # ended by an exception
]
UNFINISHED = ("interrupted", "stopped", "waiting", "crashed", "killed")


def status_now(stored: str, *, held: bool) -> str:
    """A run's status as a reader sees it.

    Parameters
    ----------
    stored
        ``run.status``.
    held
        Whether a process has the database open: then the run is running, whatever the table says. If none has, and the
        table says ``running``, its process was ``killed``.
    """
    if held:
        return "running"
    return "killed" if stored == "running" else stored


def quoted(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def listed(files: Iterable[str]) -> str:
    """Files as a list in SQL, each as a pattern that matches it alone: DuckDB takes each name for a pattern."""
    patterns = ("".join(f"[{sign}]" if sign in "*?[" else sign for sign in file) for file in files)
    return f"[{', '.join(map(literal, patterns))}]"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name and DuckDB type."""

    name: str
    type: str

    @property
    def ddl(self) -> str:
        """The column's definition in CREATE TABLE."""
        return f"{quoted(self.name)} {self.type}"


BEFORE_OUTPUTS = (Column("row_id", "BIGINT"), Column("status", "VARCHAR"))
AFTER_OUTPUTS = (
    Column("error_type", "VARCHAR"),
    Column("error", "VARCHAR"),
    Column("attempts", "INTEGER"),
    Column("deployment", "VARCHAR"),
    Column("model_id", "VARCHAR"),
    Column("request_id", "VARCHAR"),
    Column("request_key", "VARCHAR"),
    Column("prompt_tokens", "INTEGER"),
    Column("completion_tokens", "INTEGER"),
    Column("cost_usd", "DOUBLE"),
    Column("queue_s", "DOUBLE"),
    Column("service_s", "DOUBLE"),
    Column("finished_at", "TIMESTAMP"),
    Column("reused_from", "VARCHAR"),
    Column("sole_request", "BOOLEAN"),
)


INVALID = "invalid"  # of a generate stage: why the answer does not satisfy its response format


def invalid_answers(stage: str, live: str = "true") -> str:
    """A query for the stage, the count and one reason of the answers that do not satisfy the format; no row for none.

    Parameters
    ----------
    live
        An SQL condition on its rows ``s``.
    """
    return (
        f"SELECT {literal(stage)}, count(*), any_value({INVALID}) FROM {quoted(stage)} s WHERE status = 'done' AND "
        f"{INVALID} IS NOT NULL AND {live} HAVING count(*) > 0"
    )


def state_row(
    row_id: int,
    status: str,
    outputs: Sequence[Any],
    error_type: str | None,
    error: str | None,
    attempts: int,
    deployment: str | None,
    model_id: str | None,
    request_id: str | None,
    request_key: str | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    cost_usd: float | None,
    queue_s: float | None,
    service_s: float | None,
    finished_at: datetime | int,
    reused_from: str | None,
    sole_request: bool | None = None,
) -> tuple[Any, ...]:
    """Make a row of a stage's table: the values of ``BEFORE_OUTPUTS``, the stage's outputs and ``AFTER_OUTPUTS``.

    A time is a datetime in UTC without a time zone, or microseconds since the epoch. ``sole_request`` says that the row
    itself tells of its one request: see :func:`sole_requests`.
    """
    return (
        row_id,
        status,
        *outputs,
        error_type,
        stored_text(error),
        attempts,
        deployment,
        model_id,
        request_id,
        request_key,
        prompt_tokens,
        completion_tokens,
        cost_usd,
        queue_s,
        service_s,
        finished_at,
        reused_from,
        sole_request,
    )


_ERROR_CHARACTERS = 500  # of a failed request's message in attempts; a row's own error is there as a whole
ATTEMPTS = (
    Column("stage", "VARCHAR"),
    Column("row_id", "BIGINT"),
    Column("attempt", "INTEGER"),
    Column("deployment", "VARCHAR"),
    Column("started_at", "TIMESTAMP"),
    Column("queue_s", "DOUBLE"),
    Column("service_s", "DOUBLE"),
    Column("status_code", "INTEGER"),
    Column("error_type", "VARCHAR"),
    Column("prompt_tokens", "INTEGER"),
    Column("completion_tokens", "INTEGER"),
    Column("cost_usd", "DOUBLE"),
    Column("request_rows", "INTEGER"),
    Column("error", "VARCHAR"),
    Column("service_tier", "VARCHAR"),
)
_NAMED_ATTEMPTS = [(column.name, column.type) for column in ATTEMPTS]


def attempt_row(stage: str, row_id: int, attempt: Attempt, error: str | None = None) -> tuple[Any, ...]:
    """Make a row of ``attempts_log``: the values of ``ATTEMPTS``."""
    return (
        stage,
        row_id,
        attempt.attempt,
        attempt.deployment,
        microseconds(attempt.started_at),
        attempt.queue_s,
        attempt.service_s,
        attempt.status_code,
        attempt.error_type,
        attempt.prompt_tokens,
        attempt.completion_tokens,
        attempt.cost_usd,
        attempt.rows,
        None if error is None else stored_text(error[:_ERROR_CHARACTERS]),
        stored_text(attempt.service_tier),
    )


def sole_requests(table: str) -> str:
    """A query, in the order of ``ATTEMPTS``, for the requests that the rows of a stage's table tell of themselves.

    Most rows take one request, which is answered: all that ``attempts`` says of it stands in the row already. To write
    it a second time took a sixth of a run's time.
    """
    began = "finished_at - to_microseconds(CAST(round(coalesce(service_s, 0) * 1e6) AS BIGINT))"
    values = {
        "stage": literal(table),
        "attempt": "1",
        "started_at": began,
        "status_code": "200",
        "error_type": "NULL",
        "request_rows": "1",
        "error": "NULL",
        "service_tier": "NULL",
    }
    columns = (f"CAST({values.get(name, quoted(name))} AS {kind}) AS {name}" for name, kind in _NAMED_ATTEMPTS)
    return f"SELECT {', '.join(columns)} FROM {quoted(table)} WHERE sole_request"


def row_instead(
    tables: Mapping[str, Sequence[Column]], table: str, row: tuple[Any, ...], reason: str
) -> tuple[Any, ...]:
    """The row to store for one that has a value which its column cannot hold.

    In a stage's table, the row's error; in ``attempts_log``, the request without what was counted of it.
    """
    if table == ATTEMPTS_LOG:
        return (*row[:5], *(None for _ in ATTEMPTS[5:]))
    outputs = len(tables[table]) - len(BEFORE_OUTPUTS) - len(AFTER_OUTPUTS)
    attempts, deployment = row[len(BEFORE_OUTPUTS) + outputs + 2 :][:2]
    error = ("internal", f"it could not be stored: {reason}")
    nothing = (None,) * 8
    sole = row[-1]  # it was sent, whatever the row says now
    return state_row(
        row[0],
        "error",
        [None] * outputs,
        *error,
        attempts,
        deployment if sole else None,
        *nothing,
        microseconds(time.time()),
        None,
        sole,
    )


def stored_text(text: str | None) -> str | None:
    """A message as a column can hold it: half a surrogate is no UTF-8."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def microseconds(seconds: float) -> int:
    """Seconds since the epoch as the writer takes a time."""
    return round(seconds * 1_000_000)


RUN_DDL = """
CREATE TABLE IF NOT EXISTS run (
    run_id VARCHAR, experiment VARCHAR, status VARCHAR, config JSON, config_hash VARCHAR, git_revision VARCHAR,
    versions JSON, started_at TIMESTAMP, finished_at TIMESTAMP, schema_version INTEGER, source_fingerprint VARCHAR,
    signatures JSON, roots JSON, overrides JSON, facts JSON
)"""
SESSIONS_DDL = """
CREATE TABLE IF NOT EXISTS sessions (
    session INTEGER, started_at TIMESTAMP, finished_at TIMESTAMP, elapsed_s DOUBLE, status VARCHAR, reason VARCHAR
)"""
RETIRED_DDL = "CREATE TABLE IF NOT EXISTS retired (row_id BIGINT, origin VARCHAR DEFAULT 'source')"
MATERIALIZED_DDL = "CREATE TABLE IF NOT EXISTS materialized (stage VARCHAR, stamp VARCHAR)"
# Answered rows that are to be done again. An entry is over once the row's state is another, with another finished_at.
REDO_DDL = "CREATE TABLE IF NOT EXISTS redo_rows (stage VARCHAR, row_id BIGINT, finished_at TIMESTAMP)"
SOURCE = "source"
SOURCE_ERRORS_DDL = "CREATE TABLE IF NOT EXISTS source_errors (row_id BIGINT, line BIGINT, error VARCHAR)"
# The requests that no row tells of itself: of several for one row, for several rows, that failed, of replaced rows.
ATTEMPTS_LOG = "attempts_log"
ATTEMPTS_DDL = f"CREATE TABLE IF NOT EXISTS {ATTEMPTS_LOG} ({', '.join(column.ddl for column in ATTEMPTS)})"
COMMON_DDL = (RUN_DDL, SESSIONS_DDL, SOURCE_ERRORS_DDL, RETIRED_DDL, MATERIALIZED_DDL, REDO_DDL, ATTEMPTS_DDL)
MIGRATIONS = (  # from schema 1; without effect on a newer database
    "ALTER TABLE run ADD COLUMN IF NOT EXISTS overrides JSON",
    "ALTER TABLE run ADD COLUMN IF NOT EXISTS facts JSON",
    f"ALTER TABLE {ATTEMPTS_LOG} ADD COLUMN IF NOT EXISTS error VARCHAR",
    f"ALTER TABLE {ATTEMPTS_LOG} ADD COLUMN IF NOT EXISTS service_tier VARCHAR",
    "ALTER TABLE retired ADD COLUMN IF NOT EXISTS origin VARCHAR DEFAULT 'source'",
)


def not_retired(origin: str) -> str:
    """SQL predicate: row ``s``, of ``origin`` or of a stage over it, is not retired.

    A row that its origin no longer contains stays in the tables, and is listed in ``retired``.
    """
    return f"s.row_id NOT IN (SELECT row_id FROM retired WHERE origin = {literal(origin)})"


def retired(origin: str) -> str:
    """SQL predicate: row ``s`` is retired; the opposite of :func:`not_retired`."""
    return f"s.row_id IN (SELECT row_id FROM retired WHERE origin = {literal(origin)})"


def redone(stage: str, alias: str) -> str:
    """SQL predicate: row ``alias`` of a stage's table has its answer, and is to be done again."""
    return (
        f"({alias}.row_id, {alias}.finished_at) IN (SELECT (row_id, finished_at) FROM redo_rows WHERE "
        f"stage = {literal(stage)})"
    )


@dataclass(frozen=True, slots=True)
class StageTable:
    """One stage's table: its name, its output columns, and the origin of its rows.

    ``origin`` is ``source``, or the name of the sql stage whose rows the stage takes.
    """

    name: str
    outputs: tuple[Column, ...]
    origin: str = SOURCE

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns in the order of the table, our own included."""
        return (*BEFORE_OUTPUTS, *self.outputs, *AFTER_OUTPUTS)

    @property
    def ddl(self) -> str:
        columns = ", ".join(column.ddl for column in self.columns)
        return f"CREATE TABLE IF NOT EXISTS {quoted(self.name)} ({columns})"


@dataclass(frozen=True, slots=True)
class QueryTable:
    """The table of a sql stage: its query, and the tables of the run that the query names."""

    name: str
    query: str
    reads: tuple[str, ...]


def results_view(origin: str) -> str:
    """The name of an origin's ``results`` view."""
    return "results" if origin == SOURCE else f"{origin}_results"


def stored_origin(connection: duckdb.DuckDBPyConnection, stage: str) -> str | None:
    """Whose rows a stage takes, by the views of the last session; ``None`` if a database of schema 1 does not say."""
    origins = (
        "SELECT DISTINCT origin FROM (SELECT 'source' AS origin UNION ALL SELECT stage FROM materialized) WHERE EXISTS "
        "(SELECT 1 FROM duckdb_columns() WHERE table_name = 'retired' AND column_name = 'origin')"
    )
    columns = "SELECT 1 FROM duckdb_columns() WHERE table_name = ? AND column_name = ?"
    for (origin,) in connection.execute(origins).fetchall():
        if connection.execute(columns, [results_view(origin), f"{stage}_finished_at"]).fetchone() is not None:
            return str(origin)
    return None


def attempts_view(tables: Iterable[str]) -> str:
    """CREATE VIEW ``attempts``: every request, from the log and from the rows of the stages' tables."""
    names = ", ".join(name for name, _ in _NAMED_ATTEMPTS)
    parts = [f"SELECT {names} FROM {ATTEMPTS_LOG}", *map(sole_requests, tables)]
    return f"CREATE OR REPLACE VIEW attempts AS {' UNION ALL '.join(parts)}"


def views(origins: Mapping[str, Sequence[Column]], stages: Sequence[StageTable]) -> list[str]:
    """CREATE VIEW statements: ``results``, with a row per source row; the same for each sql stage; ``progress``.

    Parameters
    ----------
    origins
        ``source`` and the sql stages, each with its columns, in the order of the run.
    """
    made = [
        _results(origin, columns, [stage for stage in stages if stage.origin == origin])
        for origin, columns in origins.items()
    ]
    counts: list[str] = []
    queries = ", ".join(literal(origin) for origin in origins if origin != SOURCE)
    position = 0
    for origin in origins:
        if origin != SOURCE:
            has_run = f"EXISTS (SELECT 1 FROM materialized WHERE stage = {literal(origin)})"
            state = f"CASE WHEN {has_run} THEN 'done' ELSE 'pending' END"
            counts += _counted(position, origin, origin, state, origin, 1)
            # A sql stage has a line even without rows, which shows whether its query has run.
            counts.append(f"SELECT {position} AS position, {literal(origin)} AS stage, {state} AS status, 0 AS rows")
            position += 1
        for stage in stages:
            if stage.origin == origin:
                # Pending rows are counted as the origin's rows less those with a state, which needs no join.
                counts += _counted(position, stage.name, origin, "'pending'", origin, 1)
                counts += _counted(position, stage.name, stage.name, "'pending'", origin, -1)
                counts += _counted(position, stage.name, stage.name, "coalesce(s.status, 'pending')", origin, 1)
                # A row that is to be done again is pending, although it has its answer until there is another.
                again = f"FROM {quoted(stage.name)} s WHERE {redone(stage.name, 's')} AND {not_retired(origin)}"
                named = f"SELECT {position} AS position, {literal(stage.name)} AS stage"
                counts.append(f"{named}, s.status AS status, -count(*) AS rows {again} GROUP BY ALL")
                counts.append(f"{named}, 'pending' AS status, count(*) AS rows {again} GROUP BY ALL")
                position += 1
    made.append(
        "CREATE OR REPLACE VIEW progress AS SELECT stage, status, sum(rows)::BIGINT AS rows FROM "
        f"({' UNION ALL '.join(counts)}) GROUP BY position, stage, status "
        f"HAVING sum(rows) <> 0 OR stage IN ({queries or 'NULL'}) "
        "ORDER BY position, status"
    )
    return made


def _counted(position: int, stage: str, table: str, status: str, origin: str, sign: int) -> list[str]:
    """Two queries that count a table's rows by status, times ``sign``: all rows, and minus the retired ones.

    Excluding retired rows in one query would join the whole table, which takes memory for each of its rows. The second
    query costs nothing if no row is retired: DuckDB then skips the table.
    """
    return [
        f"SELECT {position} AS position, {literal(stage)} AS stage, {status} AS status, {times} * count(*) AS rows "
        f"FROM {quoted(table)} s {where} GROUP BY ALL"
        for times, where in ((sign, ""), (-sign, f"WHERE {retired(origin)}"))
    ]


def _results(origin: str, columns: Sequence[Column], stages: Sequence[StageTable]) -> str:
    # Without row_id and sole_request. A stage's columns have the name that everybody expects; a column of the rows
    # that is called so gets another.
    answers = [(number, stage, column) for number, stage in enumerate(stages) for column in stage.columns[1:-1]]
    taken = {f"{stage.name}_{column.name}".lower() for _, stage, column in answers}
    select, seen = ["s.row_id", "s.row_key"], {"row_id", "row_key"}

    def unique(name: str) -> str:
        candidate, number = name, 0
        while candidate.lower() in seen:
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate.lower())
        return quoted(candidate)

    for column in columns:
        name = f"{origin}_{column.name}" if column.name.lower() in taken else column.name
        while name.lower() in taken:
            name = f"{origin}_{name}"
        select.append(f"s.{quoted(column.name)} AS {unique(name)}")
    select += [
        f"t{number}.{quoted(column.name)} AS {unique(f'{stage.name}_{column.name}')}"
        for number, stage, column in answers
    ]
    joins = []
    for number, stage in enumerate(stages):
        alias = f"t{number}"
        joins.append(f"LEFT JOIN {quoted(stage.name)} {alias} ON {alias}.row_id = s.row_id")
    return (
        f"CREATE OR REPLACE VIEW {quoted(results_view(origin))} AS SELECT {', '.join(select)} "
        f"FROM {quoted(origin)} s {' '.join(joins)} WHERE {not_retired(origin)}"
    )
