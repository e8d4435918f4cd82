"""The group-commit writer: the one thread that writes to the database while rows pass.

The event loop appends tuples to a queue. Every ``interval`` seconds the thread takes the queue and commits it in one
transaction. A commit per row was measured at 290 rows/s, group commits at over 100,000 rows/s; and a commit on the
event loop would block every request in flight.

There is one queue for all tables, so that commits keep the order of :meth:`GroupWriter.put` across tables: if a row is
committed, everything queued before it is too. The runner queues a request's attempts before the state they led to, and
a state before the states of the stages that read it. So a kill never leaves a state whose upstream is missing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.hints import cured
from infermesh.store.connection import shortened
from infermesh.store.memory import with_room
from infermesh.store.schema import Column, quoted

# Rows per call of the appender, which holds the GIL meanwhile: small slices keep the event loop's pauses short. Lists,
# which are embeddings, take longer to convert.
_SLICE = 256
_SLICE_WITH_LISTS = 32
_WAKE_AT = 4096  # queued rows that start a commit before the interval is over


class GroupWriter:
    """Writes rows to their tables in group commits, in its own thread, which starts at once.

    All callbacks are called in that thread.

    Parameters
    ----------
    connection
        A connection that only the writer uses.
    tables
        Table name → its columns, in the order of the tuples given to :meth:`put`.
    interval
        Seconds between commits.
    on_commit
        Called after each commit with the number of rows.
    on_rows
        Called after each commit with table name → its rows, of the tables that got some. If it raises, writing fails.
    on_failure
        Called once, when writing has failed. Nothing is written after that.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        tables: Mapping[str, Sequence[Column]],
        *,
        interval: float = 0.1,
        on_commit: Callable[[int], None] | None = None,
        on_rows: Callable[[Mapping[str, Sequence[tuple[Any, ...]]]], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._connection = connection
        self._slices = {
            name: _SLICE_WITH_LISTS if any(column.type.endswith("[]") for column in columns) else _SLICE
            for name, columns in tables.items()
        }
        self._interval = interval
        self._on_commit = on_commit
        self._on_rows = on_rows
        self._on_failure = on_failure
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._closing = False
        self.failure: Exception | None = None
        self._writing = 0
        # Only the event loop appends, only the thread takes: a deque needs no lock for that.
        self._queue: deque[tuple[str, tuple[Any, ...], bool]] = deque()
        self._thread = threading.Thread(target=self._run, name="infermesh-writer", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """How many rows are not committed yet. The runner admits fewer rows while it is high."""
        return len(self._queue) + self._writing

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False) -> None:
        """Queue a row. Never blocks.

        Parameters
        ----------
        replaces
            The table may hold a row with the same ``row_id``, the tuple's first value: delete it in the same commit.
            False saves the search for it.
        """
        self._queue.append((table, row, replaces))
        if len(self._queue) >= _WAKE_AT and not self._wake.is_set():
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
            try:
                self._commit()
            except Exception as error:  # whatever it is: a thread that ended in silence would lose all that follows
                self.failure = error
                if isinstance(error, duckdb.Error):
                    self.failure = StoreError(f"run.duckdb could not be written: {cured(shortened(error))}")
                if self._on_failure is not None:
                    self._on_failure(self.failure)
                return
            if last:
                return

    def _commit(self) -> None:
        count = self._writing = len(self._queue)  # rows queued from now on are for the next commit
        if not count:
            return
        rows: dict[str, list[tuple[Any, ...]]] = {}
        stale: dict[str, list[int]] = {}
        take = self._queue.popleft
        for _ in range(count):
            table, row, replaces = take()
            rows.setdefault(table, []).append(row)
            if replaces:
                stale.setdefault(table, []).append(row[0])
        with_room(self._connection, lambda: self._write(rows, stale))  # tries again with more memory where it runs out
        self._writing = 0
        self._idle.set()
        self._idle.clear()
        if self._on_rows is not None:
            self._on_rows(rows)
        if self._on_commit is not None:
            self._on_commit(count)

    def _write(self, rows: Mapping[str, Sequence[tuple[Any, ...]]], stale: Mapping[str, Sequence[int]]) -> None:
        connection = self._connection
        connection.begin()
        try:
            for table, ids in stale.items():
                connection.execute(
                    f"DELETE FROM {quoted(table)} WHERE row_id IN (SELECT unnest(?::BIGINT[])) "
                    "AND row_id BETWEEN ? AND ?",
                    [ids, min(ids), max(ids)],
                )
            for table, values in rows.items():
                step = self._slices[table]
                try:
                    with connection.appender(table) as appender:
                        for start in range(0, len(values), step):
                            appender.append_rows(values[start : start + step])
                            time.sleep(0)  # release the GIL: the event loop may be waiting for it
                except duckdb.OutOfMemoryException:
                    appender.clear()  # or closing it would flush its rows, which the next try appends again
                    raise
            connection.commit()
        except duckdb.OutOfMemoryException:
            connection.rollback()
            raise
