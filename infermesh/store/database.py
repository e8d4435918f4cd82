"""A run's database while the run goes on: opening, resuming, reading pending rows, finishing."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.config import StoreConfig
from infermesh.errors import ConfigError, StoreError, StoreInUseError
from infermesh.sources import Source
from infermesh.store.ingest import ingest, source_columns
from infermesh.store.output import OutputTable
from infermesh.store.schema import (
    ATTEMPTS,
    ATTEMPTS_DDL,
    LIVE,
    RETIRED_DDL,
    RUN_DDL,
    SCHEMA_VERSION,
    SESSIONS_DDL,
    SETTINGS,
    SOURCE_ERRORS_DDL,
    Column,
    StageTable,
    quoted,
    views,
)
from infermesh.store.writer import GroupWriter

CHUNK = 1024
_SETTLED = "(t.status = 'done' OR (t.status = 'skipped' AND t.error_type IS NULL))"
_SETTLED_WITH_ERRORS = "t.status IS NOT NULL"


@dataclass(slots=True)
class StoredState:
    """What a stage's table holds for a row."""

    status: str
    error_type: str | None
    request_key: str | None
    outputs: dict[str, Any]


@dataclass(slots=True)
class StoredRow:
    """A source row and the states of the stages that it has been through; ``error`` where the line was malformed."""

    row_id: int
    values: dict[str, Any]
    error: str | None
    states: dict[str, StoredState]


def utcnow() -> datetime:
    """Now, in UTC, without a time zone: as the tables keep it."""
    return datetime.now(UTC).replace(tzinfo=None)


class RunStore:
    """One run's ``run.duckdb``, open for writing.

    Raises
    ------
    StoreError
        Another process has it open, it is damaged, or a newer version wrote it.
    """

    def __init__(self, path: Path, config: StoreConfig) -> None:
        self.path = path
        self._connection = connect(path, {"memory_limit": config.memory_limit, "threads": config.threads})
        self._interval = config.commit_interval
        self._tables: list[StageTable] = []
        existing = {name for (name,) in self._connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        self.is_new = "source" not in existing
        if not self.is_new:
            version = self._one("SELECT max(schema_version) FROM run")
            if version is None or version > SCHEMA_VERSION:
                raise StoreError(
                    f"{path} was written by a newer infermesh (schema {version}, known up to {SCHEMA_VERSION})."
                )

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        row = self._connection.execute(sql, list(parameters)).fetchone()
        return None if row is None else row[0]

    def prepare(
        self,
        source: Source,
        tables: Sequence[StageTable],
        record: Mapping[str, Any],
        *,
        check: Callable[[Sequence[Column]], None],
    ) -> None:
        """Load the source and make the tables, all in one transaction; on a resumed run take in what has changed.

        Parameters
        ----------
        record
            The values of the ``run`` row by column name, JSON columns as text.
        check
            Called with the source's columns before anything is kept; what it raises undoes it all.
        """
        connection = self._connection
        self._tables = list(tables)
        connection.begin()
        try:
            for table in tables:
                self._put_aside(table)
            for ddl in (
                RUN_DDL,
                SESSIONS_DDL,
                SOURCE_ERRORS_DDL,
                RETIRED_DDL,
                ATTEMPTS_DDL,
                *(table.ddl for table in tables),
            ):
                connection.execute(ddl)
            connection.execute("ALTER TABLE run ADD COLUMN IF NOT EXISTS overrides JSON")  # schema 1 had none
            for table in tables:
                self._fit(table)
            fingerprint = source.fingerprint
            if self.is_new:
                ingest(connection, source)
            elif self._one("SELECT max(source_fingerprint) FROM run") != fingerprint:
                self._reconcile(source)
            self._check_stage_names()
            check(self.source_columns)
            for view in views(self.source_columns, tables):
                connection.execute(view)
            values = {**record, "status": "running", "finished_at": None, "source_fingerprint": fingerprint}
            if not self.is_new:
                del values["run_id"], values["started_at"]
                if values["overrides"] is None:
                    del values["overrides"]
                assignments = ", ".join(f"{name} = ?" for name in values)
                connection.execute(f"UPDATE run SET {assignments}", list(values.values()))
            else:
                values["schema_version"] = SCHEMA_VERSION
                names, marks = ", ".join(values), ", ".join("?" * len(values))
                connection.execute(f"INSERT INTO run ({names}) VALUES ({marks})", list(values.values()))
            connection.execute(
                "INSERT INTO sessions SELECT (SELECT count(*) FROM sessions) + 1, ?, NULL, NULL, 'running', NULL",
                [utcnow()],
            )
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def _put_aside(self, table: StageTable) -> None:
        """A stage whose kind has changed gets a new table; the old one, with its columns, stays under another name."""
        found = self._connection.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [table.name]
        ).fetchall()
        if not {name for (name,) in found} <= {column.name for column in table.columns}:
            self._connection.execute("DROP VIEW IF EXISTS results")
            self._connection.execute("DROP VIEW IF EXISTS progress")
            old = quoted(f"{table.name}_until_{utcnow():%Y%m%d_%H%M%S}")
            self._connection.execute(f"ALTER TABLE {quoted(table.name)} RENAME TO {old}")

    def _reconcile(self, source: Source) -> None:
        """The source has changed: rows are matched by key, new ones join at the end, vanished ones are retired.

        A matched row has the same content, so what is there stays where it is.
        """
        connection = self._connection
        connection.execute("ALTER TABLE source RENAME TO source_before")
        connection.execute("DELETE FROM source_errors")
        ingest(connection, source)
        now = source_columns(connection)
        connection.execute("ALTER TABLE source RENAME TO source_now")
        connection.execute("ALTER TABLE source_before RENAME TO source")
        self._widen_source(now)
        connection.execute(
            "CREATE OR REPLACE TABLE retired AS SELECT row_id FROM source s WHERE NOT EXISTS "
            "(SELECT 1 FROM source_now n WHERE n.row_key = s.row_key)"
        )
        connection.execute(
            "INSERT INTO source BY NAME SELECT (SELECT coalesce(max(row_id), -1) FROM source) + row_number() OVER () "
            "AS row_id, n.* EXCLUDE (row_id) FROM source_now n WHERE NOT EXISTS (SELECT 1 FROM source s WHERE "
            "s.row_key = n.row_key)"
        )
        connection.execute(
            "UPDATE source_errors SET row_id = s.row_id FROM source_now n, source s "
            "WHERE n.row_id = source_errors.row_id AND s.row_key = n.row_key"
        )
        connection.execute("DROP TABLE source_now")

    def _widen_source(self, now: Sequence[Column]) -> None:
        """Give ``source`` the columns and the types that the changed source has."""
        before = {column.name: column.type for column in source_columns(self._connection)}
        for column in now:
            name, old = quoted(column.name), before.get(column.name)
            if old is None:
                self._connection.execute(f"ALTER TABLE source ADD COLUMN {column.ddl}")
            elif old != column.type:
                if column.type == "JSON":
                    value = f"to_json({name})"
                else:
                    value = f"{name} ->> '$'" if old == "JSON" else name
                    value = f"TRY_CAST({value} AS {column.type})"
                self._connection.execute(f"ALTER TABLE source ALTER COLUMN {name} TYPE {column.type} USING {value}")

    def _fit(self, table: StageTable) -> None:
        """Give a table that an earlier declaration made the columns that it has now."""
        name = quoted(table.name)
        present = [row[0] for row in self._connection.execute(f"DESCRIBE {name}").fetchall()]
        if present == [column.name for column in table.columns]:
            return
        before = quoted(f"{table.name}__before")
        values = [quoted(column.name) if column.name in present else "NULL" for column in table.columns]
        self._connection.execute(f"ALTER TABLE {name} RENAME TO {before}")
        self._connection.execute(table.ddl)
        self._connection.execute(f"INSERT INTO {name} SELECT {', '.join(values)} FROM {before}")
        self._connection.execute(f"DROP TABLE {before}")

    def _check_stage_names(self) -> None:
        columns = {column.name.lower(): column.name for column in self.source_columns}
        for table in self._tables:
            if table.name.lower() in columns:
                raise ConfigError(
                    f"stages.{table.name}: the source has a column '{columns[table.name.lower()]}' of that name, so a "
                    f"template could mean either. Rename the stage."
                )

    @property
    def source_columns(self) -> list[Column]:
        """The user's columns of ``source``."""
        return source_columns(self._connection)

    @property
    def total(self) -> int:
        """Rows of the source that are not retired."""
        return int(self._one(f"SELECT count(*) FROM source s WHERE {LIVE}"))

    def run_value(self, column: str) -> Any:
        """One value of the ``run`` row."""
        return self._one(f"SELECT {quoted(column)} FROM run")

    def counts(self) -> dict[str, dict[str, int]]:
        """Stage → status → rows, ``pending`` included, retired rows left out."""
        found: dict[str, dict[str, int]] = {table.name: {} for table in self._tables}
        for stage, status, rows in self._connection.execute("SELECT stage, status, rows FROM progress").fetchall():
            found[stage][status] = rows
        return found

    def totals(self) -> dict[str, Any]:
        """Requests, tokens and cost over all attempts, resumed sessions included."""
        result = self._connection.execute(
            "SELECT count(*) AS requests, coalesce(sum(prompt_tokens), 0) AS prompt_tokens, "
            "coalesce(sum(completion_tokens), 0) AS completion_tokens, sum(cost_usd) AS cost_usd FROM attempts"
        )
        names = [column[0] for column in result.description or ()]
        return dict(zip(names, result.fetchone() or (), strict=True))

    def failures(self) -> list[tuple[str, str, int, str]]:
        """``(stage, error_type, rows, an example)`` of the failed rows, most frequent first."""
        parts = [
            f"SELECT '{table.name}' AS stage, error_type, count(*) AS rows, any_value(error) AS example "
            f"FROM {quoted(table.name)} s WHERE status = 'error' AND {LIVE} GROUP BY ALL"
            for table in self._tables
        ]
        return self._connection.execute(" UNION ALL ".join(parts) + " ORDER BY rows DESC").fetchall()

    def output(self, stage: StageTable, kind: str, *, metadata: bool) -> OutputTable:
        """A stage's rows as an output file shows them."""
        return OutputTable(self._connection.cursor(), stage, kind, metadata=metadata)

    def writer(self, **hooks: Any) -> GroupWriter:
        """The one writer of the stage tables and of ``attempts``; hooks as :class:`GroupWriter` takes them."""
        tables: dict[str, Sequence[Column]] = {table.name: table.columns for table in self._tables}
        tables["attempts"] = ATTEMPTS
        return GroupWriter(self._connection.cursor(), tables, interval=self._interval, **hooks)

    def reader(self, needed: Mapping[str, Iterable[str]], *, stale: Collection[str], keep_errors: bool) -> PendingRows:
        """Read the rows that are not settled. See :class:`PendingRows`."""
        return PendingRows(self._connection.cursor(), self._tables, needed, stale=stale, keep_errors=keep_errors)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """One more connection to the database, for a thread of its own."""
        return self._connection.cursor()

    def finish(
        self, status: str, elapsed_s: float, *, reason: str | None = None, signatures: Mapping[str, str] | None = None
    ) -> None:
        """Set the run's final status, and the stages' signatures once every row is of the present declaration."""
        now = utcnow()
        self._connection.execute("UPDATE run SET status = ?, finished_at = ?", [status, now])
        self._connection.execute(
            "UPDATE sessions SET finished_at = ?, elapsed_s = ?, status = ?, reason = ? "
            "WHERE session = (SELECT max(session) FROM sessions)",
            [now, elapsed_s, status, reason],
        )
        if signatures is not None:
            self._connection.execute("UPDATE run SET signatures = ?", [orjson.dumps(signatures).decode()])

    def close(self) -> None:
        """Close the database; DuckDB writes its log into the file."""
        self._connection.close()


class PendingRows:
    """The rows of a run that have a stage to go through yet, in chunks of neighbouring row_ids.

    Parameters
    ----------
    needed
        Stage → the output columns that later stages read.
    stale
        Stages whose declaration has changed, and what depends on them: all their rows are looked at again.
    keep_errors
        Count failed rows as settled.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        tables: Sequence[StageTable],
        needed: Mapping[str, Iterable[str]],
        *,
        stale: Collection[str],
        keep_errors: bool,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._needed = {name: list(columns) for name, columns in needed.items()}
        columns = source_columns(connection)
        self._names = [column.name for column in columns]
        self._json = [number for number, column in enumerate(columns, 1) if column.type == "JSON"]
        self._json_outputs = {
            (table.name, column.name) for table in tables for column in table.outputs if column.type == "JSON"
        }
        self._resumed = any(self._has_rows(table) for table in tables)
        settled = _SETTLED_WITH_ERRORS if keep_errors else _SETTLED
        if stale or not self._resumed:
            condition = "true"
        else:
            condition = " OR ".join(
                f"NOT EXISTS (SELECT 1 FROM {quoted(table.name)} t WHERE t.row_id = s.row_id AND {settled})"
                for table in tables
            )
        found = connection.execute(
            f"SELECT DISTINCT s.row_id // {CHUNK} AS chunk FROM source s WHERE ({condition}) AND {LIVE} ORDER BY chunk"
        ).fetchall()
        self.chunks = [chunk for (chunk,) in found]
        self._sql = self._select()
        self._stale = stale
        self._settled = settled

    def settled_counts(self) -> dict[str, dict[str, int]]:
        """Stage → status → rows whose stored state will stand."""
        found: dict[str, dict[str, int]] = {}
        for table in self._tables:
            rows = (
                []
                if table.name in self._stale
                else self._connection.execute(
                    f"SELECT t.status, count(*) FROM {quoted(table.name)} t JOIN source s USING (row_id) "
                    f"WHERE {self._settled} AND {LIVE} GROUP BY ALL"
                ).fetchall()
            )
            found[table.name] = dict(rows)
        return found

    def _has_rows(self, table: StageTable) -> bool:
        return self._connection.execute(f"SELECT 1 FROM {quoted(table.name)} LIMIT 1").fetchone() is not None

    def _select(self) -> str:
        select = ["s.row_id", *(f"s.{quoted(name)}" for name in self._names), "e.error"]
        joins = ["LEFT JOIN source_errors e ON e.row_id = s.row_id"]
        if self._resumed:
            for number, table in enumerate(self._tables):
                alias = f"t{number}"
                outputs = self._needed.get(table.name, [])
                select += [f"{alias}.status", f"{alias}.error_type", f"{alias}.request_key"]
                select += [f"{alias}.{quoted(output)}" for output in outputs]
                joins.append(
                    f"LEFT JOIN (SELECT * FROM {quoted(table.name)} WHERE row_id >= $low AND row_id < $high) {alias} "
                    f"ON {alias}.row_id = s.row_id"
                )
        return (
            f"SELECT {', '.join(select)} FROM source s {' '.join(joins)} WHERE s.row_id >= $low AND s.row_id < $high "
            f"AND {LIVE} ORDER BY s.row_id"
        )

    def read(self, chunk: int) -> list[StoredRow]:
        """The rows of a chunk, settled ones among them. Called from a thread of the reader's own."""
        low = chunk * CHUNK
        rows = self._connection.execute(self._sql, {"low": low, "high": low + CHUNK}).fetchall()
        return [self._row(row) for row in rows]

    def _row(self, row: tuple[Any, ...]) -> StoredRow:
        if self._json:
            changed = list(row)
            for number in self._json:
                if changed[number] is not None:
                    changed[number] = orjson.loads(changed[number])
            row = tuple(changed)
        end = len(self._names) + 1
        values = dict(zip(self._names, row[1:end], strict=True))
        states: dict[str, StoredState] = {}
        if self._resumed:
            at = end + 1
            for table in self._tables:
                outputs = self._needed.get(table.name, [])
                status, error_type, key = row[at : at + 3]
                at += 3
                if status is not None:
                    found = {}
                    for name, value in zip(outputs, row[at : at + len(outputs)], strict=True):
                        parse = value is not None and (table.name, name) in self._json_outputs
                        found[name] = orjson.loads(value) if parse else value
                    states[table.name] = StoredState(status, error_type, key, found)
                at += len(outputs)
        return StoredRow(row[0], values, row[end], states)


def connect(
    path: Path, config: Mapping[str, Any] | None = None, *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """Open a run's database.

    Raises
    ------
    StoreInUseError
        Another process holds it.
    StoreError
        The file is no DuckDB database.
    """
    try:
        return duckdb.connect(str(path), read_only=read_only, config={**SETTINGS, **(config or {})})
    except duckdb.Error as error:
        text = " ".join(str(error).split())
        holder = re.search(r"\(PID (\d+)\)", text)
        if "lock" in text.lower() or "different configuration" in text:  # the latter is this very process
            who = f"process {holder[1]}" if holder else "another process"
            raise StoreInUseError(
                f"{path} is in use by {who}: a run that is still going? Wait for it, or stop it."
            ) from None
        raise StoreError(f"{path} cannot be opened: {text[:400]}") from None
