"""The group-commit writer: one thread that owns all writing while a run goes on.

The event loop appends tuples to lists; every ``interval`` seconds the thread takes what is there and commits it in one
transaction. A commit for each row would cost a thousand times as much (290 rows/s against over 100,000), and on the
event loop it would stop every request in flight.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.store.memory import with_room
from infermesh.store.schema import Column, quoted

# The appender converts rows while it holds the interpreter's lock; small slices keep the event loop's pauses short.
_SLICE = 256
_SLICE_WITH_LISTS = 32
_WAKE_AT = 4096


class GroupWriter:
    """Writes rows to their tables in group commits, from a thread of its own.

    Parameters
    ----------
    connection
        A connection that nobody else uses.
    tables
        Table name → its columns, in the order of the tuples given to :meth:`put`.
    interval
        Seconds between commits.
    on_commit
        Called in the writer's thread with the number of rows after each commit.
    on_rows
        Called in the writer's thread with each table's rows after each commit. Its ``OSError`` or ``StoreError`` is a
        failure.
    on_failure
        Called in the writer's thread once, when a commit failed; nothing is written after that.
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
        # One queue for all tables: whatever is committed, what was put before it is too. A deque needs no lock.
        self._queue: deque[tuple[str, tuple[Any, ...], bool]] = deque()
        self._thread = threading.Thread(target=self._run, name="infermesh-writer", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Rows not committed yet."""
        return len(self._queue) + self._writing

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False) -> None:
        """Queue a row; with ``replaces`` it takes the place of the rows with its ``row_id`` (its first value)."""
        self._queue.append((table, row, replaces))
        if len(self._queue) >= _WAKE_AT and not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Return once everything queued so far is committed, or writing has failed."""
        while self.backlog and self.failure is None:
            self._wake.set()
            self._idle.wait(self._interval)

    def close(self) -> None:
        """Commit what is queued and end the thread. Raises the failure if there was one."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval)
            self._wake.clear()
            last = self._closing
            try:
                self._commit()
            except (duckdb.Error, OSError, StoreError) as error:
                self.failure = error
                if isinstance(error, duckdb.Error):
                    self.failure = StoreError(f"run.duckdb could not be written: {error}")
                if self._on_failure is not None:
                    self._on_failure(self.failure)
                return
            if last:
                return

    def _commit(self) -> None:
        count = self._writing = len(self._queue)
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
        with_room(self._connection, lambda: self._write(rows, stale))
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
                            time.sleep(0)  # lets go of the interpreter's lock, which the event loop may be waiting for
                except duckdb.OutOfMemoryException:
                    appender.clear()  # what it still holds is appended again
                    raise
            connection.commit()
        except duckdb.OutOfMemoryException:
            connection.rollback()
            raise
