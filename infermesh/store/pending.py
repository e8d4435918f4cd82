"""Reading the rows of a run that have a stage to go through yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import orjson

from infermesh.errors import StoreError
from infermesh.store.ingest import row_columns
from infermesh.store.memory import fetch
from infermesh.store.schema import SOURCE, StageTable, live, quoted

CHUNK = 1024


def settled_state(*, keep_errors: bool) -> str:
    """An SQL condition on ``t``, a row of a stage's table: its state stands, and the row is not sent again.

    With ``keep_errors`` a failed row counts as settled, and so does one that was skipped because of another's failure.
    """
    if keep_errors:
        return "t.status IS NOT NULL"
    return "(t.status = 'done' OR (t.status = 'skipped' AND t.error_type IS NULL))"


@dataclass(slots=True)
class StoredState:
    """What a stage's table holds for a row."""

    status: str
    error_type: str | None
    request_key: str | None
    outputs: dict[str, Any]


@dataclass(slots=True)
class StoredRow:
    """A row and the states of the stages that it has been through; ``error`` where the line was malformed."""

    row_id: int
    values: dict[str, Any]
    error: str | None
    states: dict[str, StoredState]


class PendingRows:
    """The rows of an origin that have a stage to go through yet, in chunks of neighbouring row_ids.

    Parameters
    ----------
    origin
        ``source``, or the sql stage whose rows they are.
    tables
        The stages over these rows.
    needed
        Stage → the output columns that later stages read.
    stale
        Stages whose declaration has changed, and what depends on them: all their rows are looked at again.
    keep_errors
        Count failed rows as settled.
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
    ) -> None:
        self._connection = connection
        self._origin = origin
        self._rows, self._live = quoted(origin), live(origin)
        self._tables = tables
        self._needed = {name: list(columns) for name, columns in needed.items()}
        columns = row_columns(connection, origin)
        self._names = [column.name for column in columns]
        self._json = [number for number, column in enumerate(columns, 1) if column.type == "JSON"]
        self._json_outputs = {
            (table.name, column.name) for table in tables for column in table.outputs if column.type == "JSON"
        }
        self._resumed = any(self._has_rows(table) for table in tables)
        settled = settled_state(keep_errors=keep_errors)
        if stale or not self._resumed:
            condition = "true" if tables else "false"
        else:
            condition = " OR ".join(
                f"NOT EXISTS (SELECT 1 FROM {quoted(table.name)} t WHERE t.row_id = s.row_id AND {settled})"
                for table in tables
            )
        query = (
            f"SELECT DISTINCT s.row_id // {CHUNK} AS chunk FROM {self._rows} s WHERE ({condition}) AND {self._live} "
            "ORDER BY chunk"
        )
        self.chunks = [chunk for (chunk,) in self._fetch(query)]
        self._sql = self._select()
        self._stale = stale
        self._settled = settled

    @property
    def total(self) -> int:
        """Rows of the origin, settled ones among them."""
        ((rows,),) = self._fetch(f"SELECT count(*) FROM {self._rows} s WHERE {self._live}")
        return int(rows)

    def _fetch(self, query: str, parameters: Mapping[str, int] | None = None) -> list[Any]:
        return fetch(self._connection, query, parameters)

    def settled_counts(self) -> dict[str, dict[str, int]]:
        """Stage → status → rows whose stored state will stand."""
        found: dict[str, dict[str, int]] = {}
        for table in self._tables:
            rows = (
                []
                if table.name in self._stale
                else self._fetch(
                    f"SELECT status, count(*) FROM (FROM {quoted(table.name)} t WHERE {self._settled}) s "
                    f"WHERE {self._live} GROUP BY ALL"
                )
            )
            found[table.name] = dict(rows)
        return found

    def _has_rows(self, table: StageTable) -> bool:
        return self._connection.execute(f"SELECT 1 FROM {quoted(table.name)} LIMIT 1").fetchone() is not None

    def _select(self) -> str:
        select = ["s.row_id", *(f"s.{quoted(name)}" for name in self._names)]
        joins = []
        if self._origin == SOURCE:
            select.append("e.error")
            joins.append("LEFT JOIN source_errors e ON e.row_id = s.row_id")
        else:
            select.append("NULL")
        if self._resumed:
            for number, table in enumerate(self._tables):
                alias = f"t{number}"
                outputs = self._needed.get(table.name, [])
                select += [f"{alias}.status", f"{alias}.error_type", f"{alias}.request_key"]
                select += [f"{alias}.{quoted(output)}" for output in outputs]
                joins.append(
                    f"LEFT JOIN (SELECT * FROM {quoted(table.name)} WHERE row_id >= $low AND row_id < $high) {alias} "
                    f"ON {alias}.row_id = s.row_id"
                )
        return (
            f"SELECT {', '.join(select)} FROM {self._rows} s {' '.join(joins)} WHERE s.row_id >= $low AND "
            f"s.row_id < $high AND {self._live} ORDER BY s.row_id"
        )

    def read(self, chunk: int) -> list[StoredRow]:
        """The rows of a chunk, settled ones among them. Called from a thread of the reader's own.

        Raises
        ------
        StoreError
            They cannot be read.
        """
        bounds = {"low": chunk * CHUNK, "high": (chunk + 1) * CHUNK}
        try:
            rows = self._fetch(self._sql, bounds)
        except duckdb.Error as error:
            raise StoreError(f"run.duckdb could not be read: {error}") from None
        return [self._row(row) for row in rows]

    def _row(self, row: tuple[Any, ...]) -> StoredRow:
        if self._json:
            changed = list(row)
            for number in self._json:
                if changed[number] is not None:
                    changed[number] = orjson.loads(changed[number])
            row = tuple(changed)
        end = len(self._names) + 1
        values = dict(zip(self._names, row[1:end], strict=True))
        if self._origin != SOURCE:  # also as stage.column
            values[self._origin] = {**values, "status": "done"}
        states: dict[str, StoredState] = {}
        if self._resumed:
            at = end + 1
            for table in self._tables:
                outputs = self._needed.get(table.name, [])
                status, error_type, key = row[at : at + 3]
                at += 3
                if status is not None:
                    found = {}
                    for name, value in zip(outputs, row[at : at + len(outputs)], strict=True):
                        parse = value is not None and (table.name, name) in self._json_outputs
                        found[name] = orjson.loads(value) if parse else value
                    states[table.name] = StoredState(status, error_type, key, found)
                at += len(outputs)
        return StoredRow(row[0], values, row[end], states)
