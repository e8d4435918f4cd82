"""Tables and views of a run's database. They are public: people write SQL against them.

Times are UTC timestamps, durations seconds, costs US dollars.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DATABASE = "run.duckdb"
SCHEMA_VERSION = 2
# A name in a user's SQL is a table of the run, never a variable of ours; and no thread looks at Python's frames for it
# while it holds a lock of the database.
SETTINGS: dict[str, Any] = {"python_enable_replacements": False}


def quoted(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name and DuckDB type."""

    name: str
    type: str

    @property
    def ddl(self) -> str:
        """As it stands in CREATE TABLE."""
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
)
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
)

RUN_DDL = """
CREATE TABLE IF NOT EXISTS run (
    run_id VARCHAR, experiment VARCHAR, status VARCHAR, config JSON, config_hash VARCHAR, git_revision VARCHAR,
    versions JSON, started_at TIMESTAMP, finished_at TIMESTAMP, schema_version INTEGER, source_fingerprint VARCHAR,
    signatures JSON, roots JSON, overrides JSON
)"""
SESSIONS_DDL = """
CREATE TABLE IF NOT EXISTS sessions (
    session INTEGER, started_at TIMESTAMP, finished_at TIMESTAMP, elapsed_s DOUBLE, status VARCHAR, reason VARCHAR
)"""
RETIRED_DDL = "CREATE TABLE IF NOT EXISTS retired (row_id BIGINT)"
LIVE = "s.row_id NOT IN (SELECT row_id FROM retired)"  # a row that the source no longer holds stays in the tables
SOURCE_ERRORS_DDL = "CREATE TABLE IF NOT EXISTS source_errors (row_id BIGINT, line BIGINT, error VARCHAR)"
ATTEMPTS_DDL = f"CREATE TABLE IF NOT EXISTS attempts ({', '.join(column.ddl for column in ATTEMPTS)})"


@dataclass(frozen=True, slots=True)
class StageTable:
    """One stage's table: its name and the columns that its kind puts out."""

    name: str
    outputs: tuple[Column, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, in the order of the table."""
        return (*BEFORE_OUTPUTS, *self.outputs, *AFTER_OUTPUTS)

    @property
    def ddl(self) -> str:
        """CREATE TABLE."""
        columns = ", ".join(column.ddl for column in self.columns)
        return f"CREATE TABLE IF NOT EXISTS {quoted(self.name)} ({columns})"


def views(source_columns: Iterable[Column], stages: Iterable[StageTable]) -> list[str]:
    """``results`` (a row per source row) and ``progress`` (counts per stage and status)."""
    stages = list(stages)
    select = ["s.row_id", "s.row_key", *(f"s.{quoted(column.name)}" for column in source_columns)]
    joins = []
    counts = []
    for number, stage in enumerate(stages):
        alias = f"t{number}"
        table = quoted(stage.name)
        select += [
            f"{alias}.{quoted(column.name)} AS {quoted(f'{stage.name}_{column.name}')}" for column in stage.columns[1:]
        ]
        joins.append(f"LEFT JOIN {table} {alias} ON {alias}.row_id = s.row_id")
        literal = "'" + stage.name.replace("'", "''") + "'"
        counts.append(
            f"SELECT {number} AS position, {literal} AS stage, coalesce(t.status, 'pending') AS status, count(*) AS "
            f"rows FROM source s LEFT JOIN {table} t ON t.row_id = s.row_id WHERE {LIVE} GROUP BY ALL"
        )
    return [
        f"CREATE OR REPLACE VIEW results AS SELECT {', '.join(select)} FROM source s {' '.join(joins)} WHERE {LIVE}",
        f"CREATE OR REPLACE VIEW progress AS SELECT stage, status, rows FROM ({' UNION ALL '.join(counts)}) "
        "ORDER BY position, status",
    ]
