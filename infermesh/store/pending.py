"""Reading the rows of a run that have a stage to settle."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.exact_json import read, read_exactly
from infermesh.store.ingest import row_columns
from infermesh.store.memory import fetch
from infermesh.store.schema import SOURCE, Column, StageTable, not_retired, quoted, redone
from infermesh.store.values import python_value

CHUNK = 1024  # row_ids per read, of rows that are not long
_CHUNK_BYTES = 8_000_000  # of longer rows so many are read at once
_LEAST = 16  # row_ids per read, however long the rows are
_SAMPLES = 4  # places of so many rows that tell how long all are


def settled_state(stage: str, *, keep_errors: bool) -> str:
    """An SQL condition on ``t``, a row of a stage's table: its state stands, and the row is not sent again.

    A row that ``where`` left out is settled. One that was skipped because an upstream stage failed has an error_type,
    and is tried again; with ``keep_errors`` it counts as settled, and so does a failed row. A row that is to be done
    again is not settled.
    """
    stands = "t.status IS NOT NULL"
    if not keep_errors:
        stands = "(t.status = 'done' OR (t.status = 'skipped' AND t.error_type IS NULL))"
    return f"({stands} AND NOT {redone(stage, 't')})"


@dataclass(slots=True)
class StoredState:
    """A row's state in a stage's table.

    Attributes
    ----------
    outputs
        The output columns that later stages read.
    redo
        The row is to be done again; the state holds until there is another answer.
    """

    status: str
    error_type: str | None
    request_key: str | None
    outputs: dict[str, Any]
    redo: bool = False


class Row:
    """A row in memory, and its progress through the stages over its origin.

    Attributes
    ----------
    context
        What templates and conditions read: the row's columns by name, and for each settled stage its outputs, as
        ``stage.column``.
    error
        Why the line of the source could not be parsed; ``None`` if it could.
    states
        Stage → the state stored by an earlier session. Empty in a new run.
    failed
        Stage → why the row has no answer there.
    waiting
        Stage → how many of the stages it reads have not settled the row.
    open
        How many stages have not settled the row.
    prepared
        Stage → its request, or why it makes none, if a gate has built it already; ``None`` if none was built.
    parked
        Stages whose request is in a batch; ``None``: none is.
    again
        Whether it has come back with a batch.
    """

    __slots__ = ("again", "context", "error", "failed", "open", "parked", "prepared", "row_id", "states", "waiting")

    def __init__(self, row_id: int, context: dict[str, Any], error: str | None, states: dict[str, StoredState]) -> None:
        self.row_id = row_id
        self.context = context
        self.error = error
        self.states = states
        self.failed: dict[str, str] = {}
        self.waiting: dict[str, int] = {}
        self.open = 0
        self.prepared: dict[str, Any] | None = None
        self.parked: set[str] | None = None
        self.again = False


class PendingRows:
    """The rows of an origin that have a stage to settle, in chunks of consecutive row_ids.

    A chunk is read if at least one of its rows is pending; then its settled rows are read with it.

    Parameters
    ----------
    origin
        ``source``, or the sql stage whose rows these are.
    tables
        The stages over this origin.
    needed
        Stage → the output columns that later stages read.
    stale
        Stages whose declaration, or upstream, has changed. If there is one, every row counts as pending.
    keep_errors
        Failed rows count as settled.
    only
        Read these rows alone, pending or not: their row_ids, ascending. ``None`` for every pending one.

    Attributes
    ----------
    origin
        As given.
    row_bytes
        How long a row is, about: the mean of some that lie far apart.
    size
        Row_ids in a chunk.
    chunks
        The numbers of the chunks to :meth:`read`, ascending: the row_ids of each, divided by ``size``.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        origin: str,
        tables: Sequence[StageTable],
        needed: Mapping[str, Iterable[str]],
        *,
        stale: Collection[str],
        keep_errors: bool,
        only: Sequence[int] | None = None,
    ) -> None:
        self._only = only
        self._connection = connection
        self.origin = origin
        self._rows, self._live = quoted(origin), not_retired(origin)
        self._tables = tables
        self._needed = {name: list(columns) for name, columns in needed.items()}
        columns = row_columns(connection, origin)
        self._names = [column.name for column in columns]
        self._json = [number for number, column in enumerate(columns, 1) if column.type == "JSON"]
        self._json_outputs = {
            (table.name, column.name) for table in tables for column in table.outputs if column.type == "JSON"
        }
        self.row_bytes = self._mean_bytes(columns)
        self.size = min(max(_CHUNK_BYTES // self.row_bytes, _LEAST), CHUNK)
        self._resumed = any(self._has_rows(table) for table in tables)
        self._settled = {table.name: settled_state(table.name, keep_errors=keep_errors) for table in tables}
        if only is not None:
            condition = "false"
        elif stale or not self._resumed:
            condition = "true" if tables else "false"
        else:
            condition = " OR ".join(
                f"NOT EXISTS (SELECT 1 FROM {quoted(name)} t WHERE t.row_id = s.row_id AND {settled})"
                for name, settled in self._settled.items()
            )
        query = (
            f"SELECT DISTINCT s.row_id // {self.size} AS chunk FROM {self._rows} s "
            f"WHERE ({condition}) AND {self._live} ORDER BY chunk"
        )
        self.chunks = [chunk for (chunk,) in self._fetch(query)]
        if only is not None:
            self.chunks = list(dict.fromkeys(row_id // self.size for row_id in only))
        self._sql = self._select()
        self._stale = stale

    @property
    def total(self) -> int:
        """All rows of the origin that are not retired, settled ones included; of chosen rows, how many they are."""
        if self._only is not None:
            return len(self._only)
        ((rows,),) = self._fetch(f"SELECT count(*) FROM {self._rows} s WHERE {self._live}")
        return int(rows)

    def _mean_bytes(self, columns: Sequence[Column]) -> int:
        """The mean bytes of a row's values, at least 1."""
        sizes = " + ".join(f"coalesce(strlen({quoted(column.name)}::VARCHAR), 0)" for column in columns) or "0"
        ((last,),) = self._fetch(f"SELECT coalesce(max(row_id), 0) FROM {self._rows}")
        rows = size = 0
        for place in {int(last) * part // _SAMPLES for part in range(_SAMPLES)}:
            bounds = {"low": place, "high": place + _LEAST}
            query = (
                f"SELECT count(*), coalesce(sum({sizes}), 0) FROM {self._rows} WHERE row_id >= $low AND row_id < $high"
            )
            ((some, their_size),) = self._fetch(query, bounds)
            rows, size = rows + some, size + int(their_size)
        return size // rows + 1 if rows else 1

    def _fetch(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        return fetch(self._connection, query, parameters)

    def settled_counts(self) -> dict[str, dict[str, int]]:
        """Stage → status → rows that this session starts with as settled: none for a stale stage."""
        if self._only is not None:
            return {table.name: {} for table in self._tables}
        found: dict[str, dict[str, int]] = {}
        for table in self._tables:
            rows = (
                []
                if table.name in self._stale
                else self._fetch(
                    f"SELECT status, count(*) FROM (FROM {quoted(table.name)} t WHERE {self._settled[table.name]}) s "
                    f"WHERE {self._live} GROUP BY ALL"
                )
            )
            found[table.name] = dict(rows)
        return found

    def _has_rows(self, table: StageTable) -> bool:
        return self._connection.execute(f"SELECT 1 FROM {quoted(table.name)} LIMIT 1").fetchone() is not None

    def _select(self) -> str:
        shown = self._connection.execute(f"SELECT * FROM {self._rows} LIMIT 0").description or ()
        kinds = {name: kind for name, kind, *_ in shown}
        select = ["s.row_id", *(python_value(kinds[name], f"s.{quoted(name)}") for name in self._names)]
        joins = []
        if self.origin == SOURCE:
            select.append("e.error")
            joins.append("LEFT JOIN source_errors e ON e.row_id = s.row_id")
        else:
            select.append("NULL")
        if self._resumed:
            for number, table in enumerate(self._tables):
                alias = f"t{number}"
                outputs = self._needed.get(table.name, [])
                select += [f"{alias}.status", f"{alias}.error_type", f"{alias}.request_key", redone(table.name, alias)]
                select += [f"{alias}.{quoted(output)}" for output in outputs]
                joins.append(
                    f"LEFT JOIN (SELECT * FROM {quoted(table.name)} WHERE row_id >= $low AND row_id < $high) {alias} "
                    f"ON {alias}.row_id = s.row_id"
                )
        return (
            f"SELECT {', '.join(select)} FROM {self._rows} s {' '.join(joins)} WHERE s.row_id >= $low AND "
            f"s.row_id < $high AND {self._live} ORDER BY s.row_id"
        )

    def read(self, chunk: int) -> list[Row]:
        """Read a chunk's rows, settled ones included. Blocks; call it from one thread at a time.

        Raises
        ------
        StoreError
            DuckDB cannot read the file.
        """
        bounds = {"low": chunk * self.size, "high": (chunk + 1) * self.size}
        try:
            rows = self._fetch(self._sql, bounds)
        except duckdb.Error as error:
            raise StoreError(f"run.duckdb could not be read: {error}") from None
        return [self._row(row) for row in rows if self._only is None or _holds(self._only, row[0])]

    def _row(self, row: tuple[Any, ...]) -> Row:
        end = len(self._names) + 1
        unreadable: str | None = None
        if self._json:
            changed = list(row)
            for number in self._json:
                if changed[number] is not None:
                    try:
                        changed[number] = read_exactly(changed[number])
                    except ValueError as error:  # nested more deeply than can be read
                        unreadable = f"{self._names[number - 1]}: {error}"
            row = tuple(changed)
        values = dict(zip(self._names, row[1:end], strict=True))
        if self.origin != SOURCE:  # templates may also name the sql stage: stage.column
            values[self.origin] = {**values, "status": "done"}
        states: dict[str, StoredState] = {}
        if self._resumed:
            at = end + 1
            for table in self._tables:
                outputs = self._needed.get(table.name, [])
                status, error_type, key, redo = row[at : at + 4]
                at += 4
                if status is not None:
                    found = {}
                    for name, value in zip(outputs, row[at : at + len(outputs)], strict=True):
                        parse = value is not None and (table.name, name) in self._json_outputs
                        found[name] = read(value) if parse else value
                    states[table.name] = StoredState(status, error_type, key, found, bool(redo))
                at += len(outputs)
        return Row(row[0], values, row[end] or unreadable, states)


def _holds(ascending: Sequence[int], row_id: int) -> bool:
    place = bisect_left(ascending, row_id)
    return place < len(ascending) and ascending[place] == row_id
