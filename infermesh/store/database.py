"""A run's database during a session: opening, resuming, reading pending rows, finishing."""

from __future__ import annotations

import contextlib
import functools
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.config.schema import StoreConfig
from infermesh.errors import ConfigError, StoreError
from infermesh.hints import one_line
from infermesh.inputs.sources import Source
from infermesh.store.connection import connect_to_write, half_made, log_of
from infermesh.store.filter import parsed_condition
from infermesh.store.ingest import ingest, query_rows, row_columns
from infermesh.store.memory import all_memory, drop_cache, fetch, set_limit, with_room
from infermesh.store.open_file import OpenFile
from infermesh.store.output_file import OutputTable
from infermesh.store.pending import PendingRows
from infermesh.store.reshape import disown, fit, merge, outline, put_aside, stamp_of, telling_tables, with_log, wrapped
from infermesh.store.schema import (
    ATTEMPTS,
    ATTEMPTS_LOG,
    COMMON_DDL,
    INVALID,
    MIGRATIONS,
    SCHEMA_VERSION,
    SOURCE,
    Column,
    QueryTable,
    RunStatus,
    StageTable,
    attempts_view,
    invalid_answers,
    literal,
    not_retired,
    quoted,
    redone,
    row_instead,
    sole_requests,
    stored_origin,
    views,
)
from infermesh.store.sql_words import refusal
from infermesh.store.writer import GroupWriter

Connection = duckdb.DuckDBPyConnection
Check = Callable[[Connection, Mapping[str, Sequence[Column]]], None]

# On closing, DuckDB would also vacuum all row groups that are not full: for a million rows that took 130 MB and 4 s,
# and left the file larger. One task each time is enough.
# It also checkpoints within a commit, where a lack of memory costs the database: see RunStore._checkpoint().
_CHECKPOINT: Mapping[str, Any] = {"max_vacuum_tasks": 1, "checkpoint_threshold": "1TB"}
_LOG = 64_000_000  # bytes of the write-ahead log
# To find the best compression of float32 numbers takes three times as long as to write them, and saves an eighth.
_UNPACKED = "SET GLOBAL disabled_compression_methods = 'alp,alprd'"  # in the settings of connect() it has no effect
_ROWS, _VECTORS = 16_384, 2_048  # in a row group: see regroup()
_IDS = 10_000  # row_ids that are fetched at once
_HEADERS = 3 * 4096  # bytes of a DuckDB file before its blocks (duckdb/storage/storage_info.hpp)


def utcnow() -> datetime:
    """Now in UTC, as a TIMESTAMP column stores it: without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Redo:
    """Settled rows of a stage to do again: those that match ``where``, an SQL condition on the stage's columns."""

    stage: str
    where: str

    def count(self, connection: duckdb.DuckDBPyConnection, origin: str | None = None) -> int:
        """Count these rows, without retired ones. Raises ``ConfigError`` if the condition does not bind, or fails.

        Parameters
        ----------
        origin
            Whose rows the stage takes: ``source``, or a sql stage. ``None``: as the database says.
        """
        origin = origin or stored_origin(connection, self.stage)
        parsed_condition(self.where, "where")
        try:
            row = connection.execute(f"SELECT count(*) FROM {self.rows(origin)}").fetchone()
        except duckdb.Error as error:
            raise self.refused(error) from None
        return int(row[0]) if row else 0

    def row_ids(self, connection: duckdb.DuckDBPyConnection, origin: str) -> list[int]:
        """Their row_ids, ascending. Raises as :meth:`count` does."""
        self.count(connection, origin)
        try:
            found = connection.execute(f"SELECT s.row_id FROM {self.rows(origin)} ORDER BY 1").fetchall()
        except duckdb.Error as error:
            raise self.refused(error) from None
        return [row_id for (row_id,) in found]

    def rows(self, origin: str | None) -> str:
        """These rows as SQL: the stage's table ``s``, and a condition on it. ``None``: retired ones too."""
        live = "true" if origin is None else not_retired(origin)
        return f"{quoted(self.stage)} s WHERE ({self.where}\n) AND {live}"

    def refused(self, error: duckdb.Error) -> ConfigError:
        """The error that reports DuckDB's message about the condition."""
        return ConfigError(f"where: {refusal(error, 400)} (over the columns of {self.stage})")


class RunStore:
    """A run's ``run.duckdb``, open for writing. It is created if it does not exist.

    Parameters
    ----------
    vectors
        Rows of some kilobytes each are to come: row groups are small.

    Attributes
    ----------
    is_new
        Whether the database holds no run yet.
    source_change
        How many source rows are new, and how many are retired, since the last session. Set by :meth:`load`.

    Raises
    ------
    StoreError
        Another process has it open, it is damaged, or a newer version wrote it.
    """

    def __init__(self, path: Path, config: StoreConfig, *, vectors: bool = False) -> None:
        self.path = path
        self._memory_limit = config.memory_limit
        settings = {"threads": config.threads, **_CHECKPOINT}
        self._connection = connect_to_write(path, settings, _VECTORS if vectors else _ROWS)
        try:
            self._connection.execute(f"SET memory_limit = {literal(config.memory_limit)}")
        except duckdb.Error as error:
            self._connection.close()
            raise ConfigError(f"store.memory_limit: {one_line(error)}") from None
        if vectors:
            self._connection.execute(_UNPACKED)
        self._file = OpenFile(path)
        self._log = log_of(path.absolute())
        self._interval = config.commit_interval
        self._tables: list[StageTable] = []
        self._origins: dict[str, str] = {}
        self.source_change = (0, 0)
        existing = {name for (name,) in self._connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        self.is_new = "source" not in existing
        if not self.is_new:
            version = self._one("SELECT max(schema_version) FROM run")
            if version is None:
                raise half_made(path, "its table run has no row")
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{path} was written by a newer infermesh (schema {version}, known up to {SCHEMA_VERSION}). "
                    f"pip install --upgrade infermesh"
                )

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return fetch(self._connection, sql, list(parameters))

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        rows = self._fetch(sql, parameters)
        return rows[0][0] if rows else None

    def load(
        self,
        source: Source,
        tables: Sequence[StageTable],
        record: Mapping[str, Any],
        *,
        queries: Sequence[QueryTable] = (),
        check: Check,
    ) -> None:
        """Load the source and make tables and views; on a resumed run, merge a changed source into the stored one.

        All of it is one transaction: whatever is raised, the database stays as it was.

        Parameters
        ----------
        record
            The ``run`` row: column name → value, JSON columns as text.
        queries
            The sql stages, each after those it reads.
        check
            Called before the commit, with a connection that sees the tables and views, and with the columns of
            ``source`` and of each sql stage. An exception from it rolls everything back.
        """
        self._tables = list(tables)
        self._origins = {  # stage → origin, in the order of the views: a sql stage precedes the stages over its rows
            name: origin
            for origin in (SOURCE, *(query.name for query in queries))
            for name in (*([] if origin == SOURCE else [origin]), *(t.name for t in tables if t.origin == origin))
        }
        with_room(self._connection, lambda: self._load(source, record, queries, check))
        set_limit(self._connection, self._memory_limit)  # loading a source may have raised it; tables need less

    def _load(
        self,
        source: Source,
        record: Mapping[str, Any],
        queries: Sequence[QueryTable],
        check: Check,
    ) -> None:
        connection, tables = self._connection, self._tables
        connection.begin()
        try:
            if not self.is_new:
                with_log(connection)
                put_aside(connection, tables, queries)
            for ddl in (*COMMON_DDL, *(table.ddl for table in tables)):
                connection.execute(ddl)
            for migration in MIGRATIONS:
                connection.execute(migration)
            redone_before = self._one("SELECT 1 FROM redo_rows LIMIT 1") is not None
            for table in tables:
                fit(connection, table)
                if not redone_before:  # the rule; to compare with a large table takes its time
                    continue
                connection.execute(
                    f"DELETE FROM redo_rows WHERE stage = {literal(table.name)} AND (row_id, finished_at) NOT IN "
                    f"(SELECT (row_id, finished_at) FROM {quoted(table.name)})"
                )
            fingerprint = source.fingerprint
            if self.is_new:
                ingest(connection, source)
            elif self._one("SELECT max(source_fingerprint) FROM run") != fingerprint:
                connection.execute("DELETE FROM source_errors")
                ingest(connection, source, "source_now")
                self.source_change = merge(connection, SOURCE, "source_now")
            origins = {SOURCE: row_columns(connection)}
            for query in queries:
                origins[query.name] = outline(connection, query, self._origins)
            self._check_stage_names(origins)
            for view in (*views(origins, tables), attempts_view(telling_tables(connection))):
                connection.execute(view)
            check(connection, origins)
            values = {
                **record,
                **{"status": "running", "finished_at": None, "source_fingerprint": fingerprint},
                "schema_version": SCHEMA_VERSION,  # the migrations above have brought an older database to it
            }
            if not self.is_new:
                del values["run_id"], values["started_at"]
                if values.get("overrides") is None:
                    values.pop("overrides", None)
                assignments = ", ".join(f"{name} = ?" for name in values)
                connection.execute(f"UPDATE run SET {assignments}", list(values.values()))
            else:
                names, marks = ", ".join(values), ", ".join("?" * len(values))
                connection.execute(f"INSERT INTO run ({names}) VALUES ({marks})", list(values.values()))
            connection.execute(
                "INSERT INTO sessions SELECT (SELECT count(*) FROM sessions) + 1, ?, NULL, NULL, 'running', NULL",
                [utcnow()],
            )
            connection.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # an error may have ended the transaction, and must not be hidden
                connection.rollback()
            raise

    def _check_stage_names(self, origins: Mapping[str, Sequence[Column]]) -> None:
        for origin, found in origins.items():
            columns = {column.name.lower(): column.name for column in found}
            for name, rows in self._origins.items():
                if rows == origin and name.lower() in columns:
                    whose = "the source" if origin == SOURCE else f"stage '{origin}'"
                    raise ConfigError(
                        f"stages.{name}: {whose} has a column '{columns[name.lower()]}' of that name, so a template "
                        f"could mean either. Rename the stage."
                    )

    def materialize(self, query: QueryTable) -> tuple[int, int, int] | None:
        """Run a sql stage's query if its text or the rows it reads have changed, and merge the result into its table.

        Rows are matched by ``row_key``, the hash of their content: a row that comes out the same keeps its ``row_id``,
        and with it the answers of later stages. New rows are added, missing ones retired.

        Returns
        -------
        tuple or None
            Rows in all, new rows, retired rows; ``None`` if the query did not have to run.

        Raises
        ------
        StoreError
            The query fails.
        """
        stamp = stamp_of(self._connection, query, self._origins)
        if self._one("SELECT stamp FROM materialized WHERE stage = ?", [query.name]) == stamp:
            return None
        try:
            added, gone = with_room(self._connection, lambda: self._materialize(query, stamp))
        except (duckdb.Error, StoreError) as error:
            raise StoreError(
                f"stages.{query.name}.query fails: {refusal(error, 600)}. What the stages before it "
                f"have done is kept: correct the query and run it again on the same folder."
            ) from None
        return self.total(query.name), added, gone

    def _materialize(self, query: QueryTable, stamp: str) -> tuple[int, int]:
        connection = self._connection
        connection.begin()
        try:
            query_rows(connection, "rows_now", wrapped(query, self._origins), f"stages.{query.name}.query")
            added, gone = merge(connection, query.name, "rows_now")
            connection.execute("DELETE FROM materialized WHERE stage = ?", [query.name])
            connection.execute("INSERT INTO materialized VALUES (?, ?)", [query.name, stamp])
            connection.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # an error may have ended the transaction, and must not be hidden
                connection.rollback()
            raise
        return added, gone

    @property
    def source_columns(self) -> list[Column]:
        """The user's columns of ``source``, without ours such as ``row_id``."""
        return row_columns(self._connection)

    def end_of(self, origin: str) -> int:
        """The row_id after the last one of an origin: what is added to it begins there."""
        return int(self._one(f"SELECT coalesce(max(row_id), -1) + 1 FROM {quoted(origin)}"))

    def origin_of(self, stage: str) -> str:
        """Whose rows a stage takes: ``source``, or a sql stage."""
        return self._origins[stage]

    def total(self, origin: str = SOURCE) -> int:
        """How many rows of an origin are not retired."""
        return int(self._one(f"SELECT count(*) FROM {quoted(origin)} s WHERE {not_retired(origin)}"))

    def redo(self, redo: Redo, signatures: Mapping[str, str]) -> Sequence[int]:
        """Mark settled rows as to be done again, and return their row_ids, ascending.

        Each keeps its state until there is another, so that no answer is lost for nothing.

        Parameters
        ----------
        signatures
            Stored as the run's: those of the stages that read these rows are empty, so that they count as stale.

        Raises
        ------
        ConfigError
            The condition does not bind, or fails.
        """
        connection = self._connection
        connection.begin()
        try:
            origin = self._origins[redo.stage]
            redo.count(connection, origin)  # refuses a condition that does not bind
            rows = array("q")
            found = connection.execute(f"SELECT s.row_id FROM {redo.rows(origin)} ORDER BY 1")
            while batch := found.fetchmany(_IDS):
                rows.extend(row_id for (row_id,) in batch)
            disown(connection, redo.stage, origin, redo.where)
            connection.execute(
                f"INSERT INTO redo_rows SELECT {literal(redo.stage)}, s.row_id, s.finished_at FROM {redo.rows(origin)} "
                f"AND NOT {redone(redo.stage, 's')}"
            )
            connection.execute("UPDATE run SET signatures = ?", [orjson.dumps(signatures).decode()])
            connection.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # an error may have ended the transaction, and must not be hidden
                connection.rollback()
            raise
        return rows

    def displaced(self) -> tuple[str, str] | None:
        """Why what is written reaches nobody, and what to do; ``None`` if the file is where it was, and whole."""
        size = "SELECT block_size * total_blocks FROM pragma_database_size()"
        return self._file.lost(lambda: _HEADERS + int(self._one(size)))

    def facts(self) -> dict[str, dict[str, Any]]:
        """Stage → the facts that decided its answers in the last session; empty if an older version ran it."""
        found: dict[str, dict[str, Any]] = orjson.loads(self.run_value("facts") or "{}")
        return found

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Another connection to the database, for use in another thread."""
        return self._connection.cursor()

    def run_value(self, column: str) -> Any:
        """A value of the table ``run``; ``None`` where an older version wrote it, without that column."""
        known = self._one("SELECT 1 FROM duckdb_columns() WHERE table_name = 'run' AND column_name = ?", [column])
        return self._one(f"SELECT {quoted(column)} FROM run") if known else None

    def counts(self) -> dict[str, dict[str, int]]:
        """Stage → status → rows, with ``pending`` ones and without retired ones."""
        found: dict[str, dict[str, int]] = {}
        for stage, status, rows in self._fetch("SELECT stage, status, rows FROM progress"):
            found.setdefault(stage, {})[status] = rows
        return {name: found.get(name, {}) for name in self._origins}

    def totals(self) -> dict[str, Any]:
        """Requests, tokens and cost in US dollars over all attempts of all sessions."""
        result = self._connection.execute(
            "SELECT count(*) AS requests, coalesce(sum(prompt_tokens), 0) AS prompt_tokens, "
            "coalesce(sum(completion_tokens), 0) AS completion_tokens, sum(cost_usd) AS cost_usd FROM attempts"
        )
        names = [column[0] for column in result.description or ()]
        return dict(zip(names, result.fetchone() or (), strict=True))

    def stage_totals(self) -> dict[str, tuple[int, int, float | None]]:
        """Stage → answers that were taken from elsewhere, tokens, and US dollars, over all sessions."""
        query = (
            "SELECT stage, coalesce(sum(prompt_tokens), 0) + coalesce(sum(completion_tokens), 0), sum(cost_usd) "
            "FROM attempts GROUP BY stage"
        )
        spent = {stage: (int(tokens), dollars) for stage, tokens, dollars in self._fetch(query)}
        reused = {
            table.name: int(self._one(f"SELECT count(reused_from) FROM {quoted(table.name)}")) for table in self._tables
        }
        return {name: (count, *spent.get(name, (0, None))) for name, count in reused.items()}

    def dearest_requests(self) -> dict[str, tuple[int, float]]:
        """Stage → the most completion tokens of one request of it, and the most US dollars, over all sessions."""
        found = self._connection.execute(
            "SELECT stage, coalesce(max(completion_tokens), 0), max(cost_usd) FROM attempts WHERE cost_usd IS NOT NULL "
            "GROUP BY stage"
        )
        return {stage: (completion, dollars) for stage, completion, dollars in found.fetchall()}

    def failures(self) -> list[tuple[str, str, int, str]]:
        """``(stage, error_type, rows, example)`` of the failed rows, most frequent first."""
        parts = [
            f"SELECT '{table.name}' AS stage, error_type, count(*) AS rows, any_value(error) AS example "
            f"FROM {quoted(table.name)} s WHERE status = 'error' AND {not_retired(table.origin)} GROUP BY ALL"
            for table in self._tables
        ]
        if not parts:
            return []
        return self._fetch(" UNION ALL ".join(parts) + " ORDER BY rows DESC")

    def invalid_answers(self) -> list[tuple[str, int, str]]:
        """``(stage, rows, example)`` of the answers that do not satisfy their stage's response format."""
        found: list[tuple[str, int, str]] = []
        for table in self._tables:
            if any(column.name == INVALID for column in table.outputs):
                found += self._fetch(invalid_answers(table.name, not_retired(table.origin)))
        return found

    def output(self, stage: StageTable, kind: str, *, metadata: bool) -> OutputTable:
        """A stage's rows in the form of an output file; ``kind`` and ``metadata`` as in :class:`OutputTable`."""
        return OutputTable(self._connection.cursor(), stage, kind, metadata=metadata)

    def writer(
        self,
        *,
        on_commit: Callable[[int], None] | None = None,
        on_rows: Callable[[Mapping[str, Sequence[tuple[Any, ...]]]], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> GroupWriter:
        """Start the writer of the stage tables and of ``attempts``. Parameters as in :class:`GroupWriter`."""
        tables: dict[str, Sequence[Column]] = {table.name: table.columns for table in self._tables}
        tables[ATTEMPTS_LOG] = ATTEMPTS
        return GroupWriter(
            self._connection.cursor(),
            tables,
            instead=functools.partial(self._instead, tables),
            kept={table.name: f"INSERT INTO {ATTEMPTS_LOG} {sole_requests(table.name)}" for table in self._tables},
            interval=self._interval,
            on_commit=on_commit,
            on_rows=on_rows,
            on_failure=on_failure,
            checkpoint=self._checkpoint,
        )

    def _checkpoint(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Merge the write-ahead log into the file, where it has become long."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _LOG:
                with all_memory(connection), contextlib.suppress(duckdb.TransactionException):  # somebody else writes
                    connection.execute("CHECKPOINT")

    def _instead(
        self, tables: Mapping[str, Sequence[Column]], table: str, row: tuple[Any, ...], reason: str
    ) -> tuple[Any, ...] | None:
        """What to store for a row that cannot be stored. A row that is done again keeps the answer that it has."""
        if table != ATTEMPTS_LOG:
            with self._connection.cursor() as connection:
                kept = f"SELECT 1 FROM {quoted(table)} s WHERE row_id = ? AND status = 'done' AND {redone(table, 's')}"
                if connection.execute(kept, [row[0]]).fetchone():
                    return None
        return row_instead(tables, table, row, reason)

    def reader(
        self,
        needed: Mapping[str, Iterable[str]],
        *,
        origin: str = SOURCE,
        stale: Collection[str] = (),
        keep_errors: bool = False,
        only: Sequence[int] | None = None,
    ) -> PendingRows:
        """A reader of the origin's rows that have a stage to settle. Parameters as in :class:`PendingRows`."""
        tables = [table for table in self._tables if table.origin == origin]
        stale = [table.name for table in tables if table.name in stale]
        cursor = self._connection.cursor()
        return PendingRows(cursor, origin, tables, needed, stale=stale, keep_errors=keep_errors, only=only)

    def finish(
        self,
        status: RunStatus,
        elapsed_s: float,
        *,
        reason: str | None = None,
        signatures: Mapping[str, str] | None = None,
    ) -> None:
        """Set the final status of the run and of its session.

        Parameters
        ----------
        elapsed_s
            Duration of the session.
        reason
            Why it ended early, in words; ``None`` if it did not, or a user stopped it.
        signatures
            The stages' signatures, once every row is settled under the present declaration; ``None`` leaves the stored
            ones, so that stale stages stay stale.
        """
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
        """Close the database. DuckDB then merges its write-ahead log into the file."""
        drop_cache(self._connection)  # the merge needs memory too
        with contextlib.suppress(duckdb.Error), all_memory(self._connection):
            self._connection.execute("CHECKPOINT")
        self._connection.close()
