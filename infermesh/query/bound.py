"""A user's query, bound: its columns, and its rows copied into a file by DuckDB."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from infermesh.store.schema import literal

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class BoundQuery:
    """What a query gives: columns by name and DuckDB type, and ``sql`` for a FROM clause."""

    sql: str
    columns: list[tuple[str, Any]]
    # DuckDB holds the rows of a statement that is no SELECT for as long as this lives.
    relation: duckdb.DuckDBPyRelation


def bind(connection: duckdb.DuckDBPyConnection, query: str) -> BoundQuery:
    """Bind a query; of several statements the last one is bound, and those before it are executed.

    A SELECT is not executed yet. Anything else that gives rows (EXPLAIN, PRAGMA, PIVOT) is, and its rows are held.

    Raises
    ------
    duckdb.Error
        The query does not parse or bind, or is no query at all.
    """
    statements = connection.extract_statements(query)
    if not statements:
        raise duckdb.InvalidInputException("the query is empty")
    for statement in statements[:-1]:
        connection.execute(statement)
    last = statements[-1].query
    try:
        relation = connection.sql(last)
    except duckdb.Error:
        connection.execute(last)  # fails in the same way, and says in which line
        raise
    columns = list(zip(relation.columns, relation.types, strict=True))
    return BoundQuery(bare(relation.sql_query()), columns, relation)


def bare(query: str) -> str:
    """A query without the semicolon at its end, and without what stands behind that."""
    data = query.encode()
    for position, kind in reversed(duckdb.tokenize(query)):
        if kind == duckdb.token_type.comment:
            continue
        if data[position : position + 1] != b";":
            break
        data = data[:position]
    return data.decode()


def select_from(query: str, expressions: Sequence[str]) -> str:
    """A SELECT of one expression for each column of a query; they know the columns as ``c0``, ``c1``, …

    The query's text begins on the second line: see :func:`lines_of_query`.
    """
    names = ", ".join(f"c{number}" for number in range(len(expressions)))
    return f"SELECT {', '.join(expressions)} FROM (\n{query}\n) q({names})"


def copy_rows(
    connection: duckdb.DuckDBPyConnection, query: str, expressions: Sequence[str], file: Path, options: str
) -> int:
    """Let DuckDB write a query's rows into a file, in their order; return the number of rows.

    DuckDB runs the query and writes the file without Python's lock, so other threads go on meanwhile.

    Parameters
    ----------
    expressions
        What is written of each column, see :func:`select_from`.
    options
        Of ``COPY``.
    """
    # Where every source of a query can be read in numbered batches, DuckDB formats them in any order and keeps those
    # whose turn has not come: 2 GB for a file of 1.7 GB on a slow pipe, or an OutOfMemoryException. range() is a source
    # that has no such batches, so the rows are written as they are read.
    nothing = f"SELECT {', '.join(['NULL'] * len(expressions))} FROM range(0)"
    with lines_of_query():
        row = connection.execute(
            f"COPY ({select_from(query, expressions)} UNION ALL {nothing}) TO {literal(str(file))} ({options})"
        ).fetchone()
    return 0 if row is None else int(row[0])


@contextlib.contextmanager
def in_thread(connection: duckdb.DuckDBPyConnection, query: Callable[[], _Found]) -> Iterator[Future[_Found]]:
    """Run a query in a thread of its own; it is interrupted if the block ends with an exception, such as Ctrl-C."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(query)
        try:
            yield running
        except BaseException:
            while not running.done():
                connection.interrupt()  # again and again: before the query has begun it would not be heard
                wait([running], 0.1)
            raise


@contextlib.contextmanager
def lines_of_query() -> Iterator[None]:
    """Let errors name the lines of the user's query, whose first line is the second of the SQL that is executed."""
    try:
        yield
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        text = re.sub(r"LINE (\d+):", lambda found: f"LINE {int(found[1]) - 1}:", str(error))
        raise type(error)(text) from None
