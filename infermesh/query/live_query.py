"""One query on a live run: that it reads only, its result as a file, its limits."""

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

LIMIT_BYTES = 256 << 20
_LOOK_S = 0.1
_REFUSAL = (
    "a run that goes on answers one query at a time that reads: SELECT, FROM, WITH, VALUES, PIVOT, SHOW, DESCRIBE, "
    "SUMMARIZE, EXPLAIN"
)

# Table functions that do something: a transaction that only reads lets them pass, and DuckDB does not tell them from
# others (duckdb_functions() knows side effects of scalar functions alone). Also within a string, which query() may run.
_DOES = re.compile(
    r"""\b((?:force_)?checkpoint|(?:enable|disable|truncate|create|destroy|register|deregister)_\w+"""
    r"""|json_execute_serialized_sql)["\s]*\(""",
    re.IGNORECASE,
)


def write_answer(cursor: duckdb.DuckDBPyConnection, sql: str, file: Path) -> list[tuple[str, str]]:
    """Write a query's rows as Parquet with columns ``c0``, ``c1``, …, and give their true names and types.

    DuckDB writes the file itself, so Python's other threads go on meanwhile, the event loop among them. Types that
    Parquet does not keep are there as text.

    Functions that do something, such as ``checkpoint()``, which can break the run's own commit, are known by their
    names. That is against mishaps: a name that is put together within ``query(…)`` gets through, and whoever may ask
    at all is the run's own user.

    Raises
    ------
    ValueError
        It is not one query that reads.
    duckdb.Error
        The query is wrong, or was interrupted.
    """
    statements = cursor.extract_statements(sql)
    kinds = duckdb.StatementType
    if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN, kinds.MULTI):
        raise ValueError(f"{_REFUSAL}; not {_kinds(statements)}")
    if (does := _DOES.search(sql)) is not None:
        raise ValueError(f"{_REFUSAL}; {does[1]}() does something: wait for the run's end")
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
    # A PIVOT is several statements, and so is a COPY of one: in the parentheses of a FROM stands a query or nothing.
    try:
        with lines_of_query():
            return bind(cursor, f"FROM (\n{bare(statement.query)}\n)")
    except duckdb.ParserException:
        raise ValueError(_REFUSAL) from None


def _kinds(statements: list[Any]) -> str:
    return ", ".join(str(each.type).rpartition(".")[2].replace("_", " ") for each in statements) or "nothing"


class Watch:
    """Interrupts a query that takes too long or grows too large, that nobody waits for, or whose run is over.

    ``reason`` says which, and what to do; ``None`` where the run is over.
    """

    too_large = (
        f"the answer is larger than {LIMIT_BYTES >> 20} MB, the most that a run hands out while it goes on: ask for "
        "fewer rows or columns, or wait for its end"
    )

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        talk: socket.socket,
        file: Path,
        limit_s: float,
        over: threading.Event,
    ) -> None:
        self.reason: str | None = None
        self._over = over
        self._cursor = cursor
        self._talk = talk
        self._file = file
        self._limit_s = limit_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="infermesh-live-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._talk.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        until = time.monotonic() + self._limit_s
        while not self._ended.wait(min(_LOOK_S, max(until - time.monotonic(), 0))):
            if self._over.is_set():
                pass  # the run has ended: whoever asked asks the file
            elif time.monotonic() >= until:
                self.reason = (
                    f"the query took longer than {self._limit_s:g} s: ask for less, give it more time (--timeout "
                    "SECONDS), or wait for the run's end"
                )
            elif self._file.exists() and self._file.stat().st_size > LIMIT_BYTES:
                self.reason = self.too_large
            elif self._gone():
                self.reason = "nobody waits for it"
            else:
                continue
            self._cursor.interrupt()  # again and again: between two statements it would not be heard
            self._ended.wait(_LOOK_S)

    def _gone(self) -> bool:
        try:
            return not self._talk.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
