"""The group-commit writer: the one thread that writes to the database while rows pass.

The event loop appends tuples to a queue. Every ``interval`` seconds the thread takes the queue and commits it in one
transaction. A commit per row was measured at 290 rows/s, group commits at over 100,000 rows/s; and a commit on the
event loop would block every request in flight.

There is one queue for all tables, so that commits keep the order of :meth:`GroupWriter.put` across tables: if a row is
committed, everything queued before it is too. The runner queues a request's attempts before the state they led to, and
a state before the states of the stages that read it. So a kill never leaves a state whose upstream is missing.

Values are checked where they come from. A commit that fails for one all the same is divided until its row is found:
that one is stored as an error, and the others as they are.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.hints import cured
from infermesh.runtime.guarded import start_thread
from infermesh.store.connection import shortened
from infermesh.store.memory import with_room
from infermesh.store.schema import Column, quoted
from infermesh.store.segments import appendable, segment

# Rows per call of the appender, which holds the GIL meanwhile: small slices keep the event loop's pauses short.
_SLICE = 256
_BLOCK = 4096  # rows in a segment, for the same reason; fewer than 2,048 would not fill a row group
_SEGMENT = "infermesh_segment"
_WAKE_AT = 4096  # queued rows that start a commit before the interval is over
# What a value raises that its column cannot hold. No space, a broken file and the like are other classes.
_UNFIT = (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError, ValueError, TypeError, OverflowError)

_WAKE_AT_BYTES = 8_000_000
_Queued = tuple[str, tuple[Any, ...], bool, int]  # table, row, replaces, size
logger = logging.getLogger("infermesh")


class GroupWriter:
    """Writes rows to their tables in group commits, in its own thread, which starts at once.

    All callbacks are called in that thread.

    Parameters
    ----------
    connection
        A connection that only the writer uses.
    tables
        Table name → its columns, in the order of the tuples given to :meth:`put`.
    instead
        Called with a table's name, a row that its columns cannot hold, and why; returns the row to store in its place,
        or ``None`` to leave the table as it is. Without it such a row makes writing fail.
    kept
        Table name → an INSERT that keeps what ``attempts`` has from its rows, for those that are replaced. A condition
        on them is added to it.
    interval
        Seconds between commits.
    on_commit
        Called after each commit with the number of rows.
    on_rows
        Called after each commit with table name → its rows, of the tables that got some. If it raises, writing fails.
    on_failure
        Called once, when writing has failed. Nothing is written after that.
    checkpoint
        Called with the connection after each commit.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        tables: Mapping[str, Sequence[Column]],
        *,
        instead: Callable[[str, tuple[Any, ...], str], tuple[Any, ...] | None] | None = None,
        kept: Mapping[str, str] = MappingProxyType({}),
        interval: float = 0.1,
        on_commit: Callable[[int], None] | None = None,
        on_rows: Callable[[Mapping[str, Sequence[tuple[Any, ...]]]], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        checkpoint: Callable[[duckdb.DuckDBPyConnection], None] = lambda connection: None,
    ) -> None:
        self._connection = connection
        self._checkpoint = checkpoint
        self._tables = tables
        self._instead = instead
        self._kept = kept
        self._interval = interval
        self._on_commit = on_commit
        self._on_rows = on_rows
        self._on_failure = on_failure
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._closing = False
        self.failure: Exception | None = None
        self._writing = 0
        self._bytes_put = self._bytes_done = 0  # the first is the event loop's, the second the thread's
        # Only the event loop appends, only the thread takes: a deque needs no lock for that.
        self._queue: deque[_Queued] = deque()
        self._thread = start_thread("infermesh-writer", self._run, died=self._died)

    @property
    def backlog(self) -> int:
        """How many rows are not committed yet. The runner admits fewer rows while it is high."""
        return len(self._queue) + self._writing

    def is_behind(self, rows: int, size: int) -> bool:
        """Whether more rows, or more bytes, than these are not committed yet."""
        return self.backlog > rows or self._bytes_put - self._bytes_done > size

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False, size: int = 0) -> None:
        """Queue a row. Never blocks.

        Parameters
        ----------
        replaces
            The table may hold a row with the same ``row_id``, the tuple's first value: delete it in the same commit.
            False saves the search for it.
        size
            The bytes of its long values; 0 where there are none.
        """
        self._queue.append((table, row, replaces, size))
        self._bytes_put += size
        behind = len(self._queue) >= _WAKE_AT or self._bytes_put - self._bytes_done >= _WAKE_AT_BYTES
        if behind and not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Block until the queue is committed, or writing has failed. Never call it on the event loop."""
        while self.backlog and self.failure is None:
            self._wake.set()
            self._idle.wait(self._interval)

    def close(self) -> None:
        """Commit the queue and end the thread. Raises what made writing fail, if it did."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval)
            self._wake.clear()
            last = self._closing  # read before the commit: what was put before close() is in it
            self._commit()
            if last:
                return

    def _died(self, error: BaseException) -> None:
        """Tell of a failure: a writer that died in silence would lose all that follows."""
        if isinstance(error, duckdb.Error):
            self.failure = StoreError(f"run.duckdb could not be written: {cured(shortened(error))}")
        else:
            self.failure = error if isinstance(error, Exception) else RuntimeError(f"the writer ended in {error!r}")
        if self._on_failure is not None:
            self._on_failure(self.failure)

    def _commit(self) -> None:
        count = self._writing = len(self._queue)  # rows queued from now on are for the next commit
        if not count:
            return
        rows: dict[str, list[tuple[Any, ...]]] = {}
        queued = [self._queue.popleft() for _ in range(count)]
        self._store(queued, rows)
        self._writing = 0
        self._bytes_done += sum([each[3] for each in queued])
        self._idle.set()
        self._idle.clear()
        if self._on_rows is not None:
            self._on_rows(rows)
        if self._on_commit is not None:
            self._on_commit(count)
        self._checkpoint(self._connection)

    def _store(
        self, queued: Sequence[_Queued], stored: dict[str, list[tuple[Any, ...]]], *, last: bool = False
    ) -> None:
        """Write rows in one transaction; or in several, one after the other, where a value does not fit its column.

        Parameters
        ----------
        stored
            Gets table name → the rows as they were written.
        last
            This is a row in place of another: its failure is that of the whole.
        """
        rows: dict[str, list[tuple[Any, ...]]] = {}
        stale: dict[str, list[int]] = {}
        for table, row, replaces, _ in queued:
            rows.setdefault(table, []).append(row)
            if replaces:
                stale.setdefault(table, []).append(row[0])
        try:
            with_room(self._connection, lambda: self._write(rows, stale))  # again, with more memory where it runs out
        except _UNFIT as error:
            if last or self._instead is None:
                raise
            half = len(queued) // 2
            if half:
                self._store(queued[:half], stored)
                self._store(queued[half:], stored)
                return
            table, row, replaces, size = queued[0]
            other = self._instead(table, row, str(error))
            what = "keeps the answer it had" if other is None else "is an error now"
            logger.error("a row of %s could not be stored, and %s: %s", table, what, error)
            if other is not None:
                self._store([(table, other, replaces, size)], stored, last=True)
            return
        for table, values in rows.items():
            stored.setdefault(table, []).extend(values)

    def _write(self, rows: Mapping[str, Sequence[tuple[Any, ...]]], stale: Mapping[str, Sequence[int]]) -> None:
        connection = self._connection
        connection.begin()
        try:
            for table, ids in stale.items():
                these, values = (
                    "row_id IN (SELECT unnest(?::BIGINT[])) AND row_id BETWEEN ? AND ?",
                    [ids, min(ids), max(ids)],
                )
                if table in self._kept:
                    connection.execute(f"{self._kept[table]} AND {these}", values)
                connection.execute(f"DELETE FROM {quoted(table)} WHERE {these}", values)
            for table, put in rows.items():
                for start in range(0, len(put), _BLOCK):
                    self._insert(table, put[start : start + _BLOCK])
            connection.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # an error may have ended the transaction, and must not be hidden
                connection.rollback()
            raise

    def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        made = segment(self._tables[table], rows)
        if made is None:
            self._append(table, rows)
            return
        self._connection.register(_SEGMENT, made)
        self._connection.execute(f"INSERT INTO {quoted(table)} SELECT {made.select} FROM {_SEGMENT}", made.values)
        self._connection.unregister(_SEGMENT)

    def _append(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        rows = appendable(self._tables[table], rows)
        try:
            with self._connection.appender(table) as appender:
                for start in range(0, len(rows), _SLICE):
                    appender.append_rows(rows[start : start + _SLICE])
                    time.sleep(0)  # release the GIL: the event loop may be waiting for it
        except duckdb.OutOfMemoryException:
            appender.clear()  # or closing it would flush its rows, which the next try appends again
            raise
