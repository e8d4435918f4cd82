"""One query on a live run: checked that it only reads, answered with a file, and kept within limits."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import duckdb

from infermesh.query.bound import BoundQuery, bare, bind, copy_rows, lines_of_query
from infermesh.query.carried import carried
from infermesh.runtime.guarded import start_thread

LIMIT_BYTES = 256 << 20
_CHECK_EVERY_S = 0.1
_EXPLAIN = re.compile(r"^\s*EXPLAIN\b(?:\s+ANALYZE\b)?(?:\s*\([^)]*\))?", re.IGNORECASE)
_REFUSAL = (
    "a run that goes on answers one query at a time that reads: SELECT, FROM, WITH, VALUES, PIVOT, SHOW, DESCRIBE, "
    "SUMMARIZE, EXPLAIN"
)

# Table functions with side effects. A read-only transaction lets them pass, and DuckDB does not say which they are:
# duckdb_functions() knows the side effects of scalar functions alone. A name within a string counts too, as query()
# runs what a string says.
_SIDE_EFFECTS = re.compile(
    r"""\b((?:force_)?checkpoint|(?:enable|disable|truncate|create|destroy|register|deregister)_\w+"""
    r"""|json_execute_serialized_sql)["\s]*\(""",
    re.IGNORECASE,
)


def write_answer(cursor: duckdb.DuckDBPyConnection, sql: str, file: Path) -> list[tuple[str, str]]:
    """Write a query's rows as Parquet with columns ``c0``, ``c1``, …, and return the columns' own names and types.

    Python's other threads go on meanwhile, the event loop among them, as DuckDB writes the file. For types that Parquet
    does not keep see :mod:`infermesh.query.carried`.

    Functions with side effects are refused by their names: ``checkpoint()``, for example, can break the run's own
    commit. This prevents accidents, not attacks. A name that is put together within ``query(…)`` gets through, and only
    the run's own user can ask anyway.

    Raises
    ------
    ValueError
        It is not one query that only reads.
    duckdb.Error
        The query is wrong, or was interrupted.
    """
    statements = cursor.extract_statements(sql)
    kinds = duckdb.StatementType
    if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN, kinds.MULTI):
        raise ValueError(f"{_REFUSAL}; not {_kinds(statements)}")
    if statements[0].type == kinds.EXPLAIN and _explained(cursor, statements[0].query) != [kinds.SELECT]:
        raise ValueError(f"{_REFUSAL}; EXPLAIN takes a SELECT, since EXPLAIN ANALYZE executes what it explains")
    if (function := _SIDE_EFFECTS.search(sql)) is not None:
        raise ValueError(f"{_REFUSAL}; {function[1]}() has a side effect: wait for the run's end")
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        bound = _bind(cursor, statements[0])
        values = [f"{carried(kind, f'c{number}')} AS c{number}" for number, (_, kind) in enumerate(bound.columns)]
        copy_rows(cursor, bound.sql, values, file, "FORMAT parquet, USE_TMP_FILE false")
        return [(name, str(kind)) for name, kind in bound.columns]
    finally:
        with contextlib.suppress(duckdb.Error):
            cursor.execute("ROLLBACK")


def _bind(cursor: duckdb.DuckDBPyConnection, statement: Any) -> BoundQuery:
    if statement.type != duckdb.StatementType.MULTI:
        return bind(cursor, statement.query)
    # PIVOT is several statements, but so are CREATE TABLE and COPY of one. Within FROM (…) only a query is allowed.
    try:
        with lines_of_query():
            return bind(cursor, f"FROM (\n{bare(statement.query)}\n)")
    except duckdb.ParserException:
        raise ValueError(_REFUSAL) from None


def _explained(cursor: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    """The types of the statements that stand behind EXPLAIN; none where that cannot be told."""
    rest = _EXPLAIN.sub("", query, count=1)
    return [] if rest == query else [statement.type for statement in cursor.extract_statements(rest)]


def _kinds(statements: list[Any]) -> str:
    """What the statements are, in words."""
    return ", ".join(str(each.type).rpartition(".")[2].replace("_", " ") for each in statements) or "nothing"


class QueryGuard:
    """Interrupts a query that takes too long, writes too much, whose client has gone or whose run is over.

    Attributes
    ----------
    reason
        Why the query was interrupted and what to do; ``None`` if the run is over.
    """

    too_large = (
        f"the answer is larger than {LIMIT_BYTES >> 20} MB, the most that a live run sends: ask for "
        "fewer rows or columns, or wait for its end"
    )

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        client: socket.socket,
        file: Path,
        limit_s: float,
        over: threading.Event,
    ) -> None:
        self.reason: str | None = None
        self._over = over
        self._cursor = cursor
        self._client = client
        self._file = file
        self._limit_s = limit_s
        self._ended = threading.Event()

    def __enter__(self) -> QueryGuard:
        self._client.setblocking(False)
        self._thread = start_thread("infermesh-live-guard", self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        until = time.monotonic() + self._limit_s
        while not self._ended.wait(min(_CHECK_EVERY_S, max(until - time.monotonic(), 0))):
            if self._over.is_set():
                pass  # the client reads the file instead
            elif time.monotonic() >= until:
                self.reason = (
                    f"the query took longer than {self._limit_s:g} s: ask for less, give it more time (--timeout "
                    "SECONDS), or wait for the run's end"
                )
            elif self._file.exists() and self._file.stat().st_size > LIMIT_BYTES:
                self.reason = self.too_large
            elif self._client_has_gone():
                self.reason = "nobody waits for the answer"
            else:
                continue
            self._cursor.interrupt()  # again and again: between two statements it has no effect
            self._ended.wait(_CHECK_EVERY_S)

    def _client_has_gone(self) -> bool:
        try:
            return not self._client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
