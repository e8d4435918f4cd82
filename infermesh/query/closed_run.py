"""Queries of a stranger over one run: they read the run's tables, and nothing else of this machine.

A read-only database is not enough: on such a connection ``COPY … TO`` writes files, ``read_text`` reads any, ``ATTACH``
opens any, and ``SET`` lifts the limits. So a run's file is attached to a database in memory that is then closed: no
access to files or extensions, bounded memory, and a locked configuration. A live run answers for itself, over its
socket; what it is asked is bound first against its tables' names and types in such a database, where a query that names
a file fails.

Source of the settings: https://duckdb.org/docs/current/operations_manual/securing_duckdb/overview
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.query.attached import LiveTables, attach
from infermesh.query.bound import bare, bind, lines_of_query, select_from
from infermesh.query.reader import RunReader
from infermesh.store.connection import damage, open_duckdb
from infermesh.store.schema import DATABASE, quoted

__all__ = ["Answer", "ClosedRun"]

_CATALOG = "of_the_run"
_MEMORY = "1GB"
_THREADS = 2
_CLOSED = (
    "temp_directory = ''",  # a query that needs more than its memory fails
    "enable_external_access = false",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    f"memory_limit = '{_MEMORY}'",
    f"threads = {_THREADS}",
    "lock_configuration = true",  # the last one
)
_AGAIN_S = 0.02
_CANCELLED = "it was cancelled"
_PLAN = [("plan", "VARCHAR")]
_READS = "one statement that reads: SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave.

    Attributes
    ----------
    columns
        Names and DuckDB types.
    rows
        Each value as DuckDB writes it, cut; ``None`` for NULL.
    more
        Whether there are more rows than were asked for.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str | None, ...]]
    more: bool


class ClosedRun:
    """A run, live or over, for queries that anybody wrote; a context manager.

    It holds the run's file open, so close it soon. One query at a time.

    Parameters
    ----------
    folder
        The run's folder.

    Raises
    ------
    StoreError
        The run cannot be opened.

    Examples
    --------
    >>> with ClosedRun(Path("outputs/quickstart/latest")) as run:
    ...     run.ask("SELECT count(*) AS n FROM results", most=10, timeout=5).rows
    [('60',)]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader: RunReader | None = None
        self._tables: LiveTables | None = None
        self._cancelled = False
        self._stop = threading.Event()  # wakes who watches the query that runs
        self._connection = open_duckdb()
        try:
            self._tables = attach(self._connection, folder / DATABASE, _CATALOG)
            if self._tables is not None:
                self._reader = RunReader(folder)
            self._connection.execute(f"USE {quoted(_CATALOG)}")
            for setting in _CLOSED:
                self._connection.execute(f"SET {setting}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ClosedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the run's file, or the connection to the live run."""
        for each in (self._reader, self._tables, self._connection):
            if each is not None:
                each.close()

    def interrupt(self) -> None:
        """End the query that runs, from another thread. A live run goes on with it up to its limit of time."""
        self._cancelled = True
        self._stop.set()

    def rows(self, sql: str, *, timeout: float | None = None) -> list[tuple[Any, ...]]:
        """All rows of a query, as Python values.

        Parameters
        ----------
        timeout
            In seconds; ``None``: 30.

        Raises
        ------
        StoreError
            It is no query, names something outside of the run, is wrong, or takes too long.
        """
        with self._asked(sql, timeout or 30.0) as result:
            return result.fetchall()

    def ask(self, sql: str, *, most: int, timeout: float, characters: int = 2000) -> Answer:
        """The first rows of a query, as texts. Parameters and errors are as for :meth:`rows`.

        Parameters
        ----------
        most
            Rows.
        characters
            Of each value; one more where it is longer, so that it shows.
        """
        with self._in_time(timeout):
            query = self._one_query(sql)
            columns = self._bound(query)
        if columns == _PLAN:
            with self._asked(query, timeout) as result:
                return Answer(columns, [(str(row[-1]),) for row in result.fetchall()], False)
        texts = [f"left(c{number}::VARCHAR, {characters + 1})" for number in range(len(columns))]
        with self._asked(f"{select_from(query, texts)} LIMIT {most + 1}", timeout) as result:
            found = result.fetchall()
        return Answer(columns, found[:most], len(found) > most)

    def check(self, sql: str) -> None:
        """Raise what is wrong with a query before it is run. Errors are as for :meth:`rows`."""
        with self._in_time(5.0):
            self._bound(self._one_query(sql))

    def batches(self, sql: str, *, timeout: float, size: int = 2000) -> Iterator[Sequence[Any]]:
        """The columns' names, then all rows in batches, as Python values. Errors are as for :meth:`rows`."""
        with self._asked(sql, timeout) as result:
            yield [column[0] for column in result.description or ()]
            while batch := result.fetchmany(size):
                yield batch

    @contextlib.contextmanager
    def _asked(self, sql: str, timeout: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with the query's result."""
        with self._in_time(timeout):
            query = self._one_query(sql)
            if self._reader is None:
                yield self._connection.execute(query)
                return
            self._bound(query)  # the run itself would read files
        with self._reader.asked(query, timeout=timeout) as (connection, select):
            yield connection.execute(select)

    def _one_query(self, sql: str) -> str:
        statements = self._connection.extract_statements(sql)
        kinds = duckdb.StatementType
        if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN):
            said = ", ".join(str(each.type).rpartition(".")[2].replace("_", " ") for each in statements) or "nothing"
            raise StoreError(f"this takes {_READS}; not {said}")
        return bare(statements[0].query)

    def _bound(self, query: str) -> list[tuple[str, str]]:
        """The columns of a query. DuckDB reads no file here and writes none: what names one cannot be bound."""
        if self._connection.extract_statements(query)[0].type == duckdb.StatementType.EXPLAIN:
            self._connection.execute(query)
            return _PLAN
        with lines_of_query():
            return [(name, str(kind)) for name, kind in bind(self._connection, f"FROM (\n{query}\n)").columns]

    @contextlib.contextmanager
    def _in_time(self, timeout: float) -> Iterator[None]:
        """The block is ended after so many seconds, or by :meth:`interrupt`; DuckDB's errors are ``StoreError``."""
        ended, late = threading.Event(), threading.Event()

        def watch() -> None:
            if not self._stop.wait(timeout):
                late.set()
            while not ended.wait(_AGAIN_S):  # again and again: between two statements it has no effect
                self._connection.interrupt()

        watcher = threading.Thread(target=watch, name="infermesh-query-watch", daemon=True)
        self._stop.clear()
        if self._cancelled:
            raise StoreError(_CANCELLED)
        watcher.start()
        try:
            yield
        except duckdb.InterruptException:
            why = f"the query took longer than {timeout:g} s: ask for less" if late.is_set() else _CANCELLED
            raise StoreError(why) from None
        except duckdb.Error as error:
            raise damage(error, self.folder / DATABASE) or StoreError(_told(error)) from None
        finally:
            ended.set()
            self._stop.set()
            watcher.join()


def _told(error: duckdb.Error) -> str:
    if isinstance(error, duckdb.PermissionException):
        return "a query reads the tables of its run, and no files (DuckDB: file system operations are disabled)"
    return str(error)
