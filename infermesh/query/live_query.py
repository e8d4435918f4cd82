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

from infermesh.store.schema import quoted

LIMIT_BYTES = 256 << 20
_LOOK_S = 0.1
# What Parquet does not keep as it is: a HUGEINT (every sum of integers is one) becomes a DOUBLE.
_AS_TEXT = ("hugeint", "uhugeint", "interval", "time with time zone")
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


def bare(sql: str) -> str:
    """A query without the semicolon at its end."""
    data = sql.encode()
    for position, kind in reversed(duckdb.tokenize(sql)):
        if kind == duckdb.token_type.comment:
            continue
        if data[position : position + 1] != b";":
            break
        data = data[:position]
    return data.decode()


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
        raise ValueError(f"{_REFUSAL}; not {_told(statements)}")
    if (does := _DOES.search(sql)) is not None:
        raise ValueError(f"{_REFUSAL}; {does[1]}() does something: wait for the run's end")
    statement = statements[0]
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        if statement.type == kinds.EXPLAIN:
            return _write_plan(cursor, statement, file)
        inner = bare(statement.query)
        # In the parentheses of a FROM stands a query or nothing, whatever the statement called itself.
        columns = _columns(cursor, statement, f"FROM (\n{inner}\n)")
        names = [f"c{number}" for number in range(len(columns))]
        select = ", ".join(_carried(name, kind) for name, (_, kind) in zip(names, columns, strict=True))
        try:
            cursor.execute(f"COPY (SELECT {select} FROM (\n{inner}\n) t({', '.join(names)})) TO {_to(file)}")
        except duckdb.InterruptException:
            raise
        except duckdb.Error as error:  # the user's first line is our second
            text = re.sub(r"LINE (\d+):", lambda found: f"LINE {int(found[1]) - 1}:", str(error))
            raise type(error)(text) from None
        return [(name, str(kind)) for name, kind in columns]
    finally:
        with contextlib.suppress(duckdb.Error):
            cursor.execute("ROLLBACK")


def _told(statements: list[Any]) -> str:
    return ", ".join(str(each.type).rpartition(".")[2].replace("_", " ") for each in statements) or "nothing"


def _to(file: Path) -> str:
    return f"'{str(file).replace(chr(39), chr(39) * 2)}' (FORMAT parquet, USE_TMP_FILE false)"


def _columns(cursor: duckdb.DuckDBPyConnection, statement: Any, within: str) -> list[tuple[str, Any]]:
    if statement.type == duckdb.StatementType.MULTI:
        try:
            relation = cursor.sql(within)
        except duckdb.ParserException:
            raise ValueError(_REFUSAL) from None
    else:
        try:
            relation = cursor.sql(statement)
        except duckdb.Error:
            cursor.execute(statement)  # fails in the same way, and says in which line
            raise
    return list(zip(relation.columns, relation.types, strict=True))


def _write_plan(cursor: duckdb.DuckDBPyConnection, statement: Any, file: Path) -> list[tuple[str, str]]:
    rows = cursor.execute(statement).fetchall()
    columns = [(name, str(kind)) for name, kind, *_ in cursor.description or ()]
    select = ", ".join(f"unnest(${number + 1}) AS c{number}" for number in range(len(columns)))
    cursor.execute(f"COPY (SELECT {select}) TO {_to(file)}", [list(values) for values in zip(*rows, strict=True)])
    return columns


def _carried(name: str, kind: Any) -> str:
    carried = carrier(kind)
    return name if carried == str(kind) else f"{name}::{carried} AS {name}"


def carrier(kind: Any) -> str:
    """The type that a value travels as: its own, with text in the places that Parquet would change."""
    match kind.id:
        case one if one in _AS_TEXT:
            return "VARCHAR"
        case "list" | "array":
            child = kind.children[0][1]
            inner = carrier(child)
            return str(kind) if inner == str(child) else f"{inner}[]"
        case "struct":
            inner = ", ".join(f"{quoted(name)} {carrier(child)}" for name, child in kind.children)
            own = ", ".join(f"{quoted(name)} {child}" for name, child in kind.children)
            return str(kind) if inner == own else f"STRUCT({inner})"
        case "map":
            (_, key), (_, value) = kind.children
            same = (carrier(key), carrier(value)) == (str(key), str(value))
            return str(kind) if same else f"MAP({carrier(key)}, {carrier(value)})"
    return str(kind)


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
