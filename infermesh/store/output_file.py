"""The rows of a one-shot command's output file, made from a stage's table, and the record of what was written to it.

DuckDB makes every line from what is committed. So the same state gives the same bytes, whether the line is written as
its row settles, after a crash, or when the file is written anew at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import duckdb

from infermesh.errors import StoreError
from infermesh.exact_json import dumps, loads
from infermesh.store.connection import connect
from infermesh.store.memory import VECTOR, fetch
from infermesh.store.schema import SOURCE, StageTable, literal, not_retired, quoted
from infermesh.store.values import json_value

_BLOCK = 1 << 20
_DDL = """
CREATE TABLE IF NOT EXISTS output_file (
    path VARCHAR, bytes BIGINT, digest VARCHAR, next_bytes BIGINT, next_digest VARCHAR, dirty BOOLEAN, facts JSON
)"""
_USAGE = (
    "CASE WHEN prompt_tokens IS NOT NULL OR completion_tokens IS NOT NULL THEN {{'prompt_tokens': coalesce("
    "prompt_tokens, 0), {completion}'total_tokens': coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0)}} END"
)
_COMPLETION = "'completion_tokens': coalesce(completion_tokens, 0), "
_VECTOR = json_value(duckdb.sqltype("FLOAT[]"), "embedding")
# Kind → (field, its SQL in Parquet, its SQL in JSON where that differs).
_FIELDS: dict[str, tuple[tuple[str, str, str | None], ...]] = {
    "generate": (
        ("output_text", "text", None),
        ("output_parsed", "parsed", None),
        ("finish_reason", "finish_reason", None),
        ("token_usage", _USAGE.format(completion=_COMPLETION), None),
        ("request_id", "request_id", None),
    ),
    "embed": (
        ("embedding", "embedding", _VECTOR),
        ("token_usage", _USAGE.format(completion=""), None),
        ("request_id", "request_id", None),
    ),
    "transcribe": (
        ("path", "path", None),
        ("text", "text", None),
        ("language", "language", None),
        ("duration_s", "duration_s", None),
        ("request_id", "request_id", None),
    ),
}
# Fields that a line has only if one of them has a value.
_MORE = {
    "generate": (
        ("reasoning", "reasoning", None),
        ("tool_calls", "tool_calls", None),
        ("invalid", "invalid", None),
    )
}
_ERROR = (("error", "error", None), ("error_type", "error_type", None))
_LIVE = not_retired(SOURCE)
_SETTLED = f"s.status IS NOT NULL AND {_LIVE}"


@dataclass(slots=True)
class OutputRecord:
    """What the checkpoint knows of its output file.

    Attributes
    ----------
    bytes, digest
        Size and digest of what was certainly written.
    next_bytes, next_digest
        Those of a new file that was about to take the old one's place.
    dirty
        The file holds lines of rows that are done again, so it has to be written anew.
    facts
        What decided the answers.
    """

    path: str
    bytes: int
    digest: str
    next_bytes: int | None
    next_digest: str | None
    dirty: bool
    facts: dict[str, Any]


class OutputTable:
    """One stage's rows, as an output file shows them.

    Parameters
    ----------
    connection
        A connection of its own; used by one thread at a time.
    stage
        The stage's table.
    kind
        ``generate``, ``embed`` or ``transcribe``.
    metadata
        Show the ``metadata`` that a mapper has put beside its input.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, stage: StageTable, kind: str, *, metadata: bool) -> None:
        self._connection = connection
        self._name, self._table = stage.name, quoted(stage.name)
        names = {column.name for column in stage.columns}
        shown = [field for field in (*_FIELDS[kind], *_ERROR) if field[1] != "path" or "path" in names]
        if metadata:
            shown.append(("metadata", "metadata", None))
        more = _MORE.get(kind, ())
        self._line = _json_object(shown)
        if more:
            unused = " AND ".join(f"{sql} IS NULL" for _, sql, _ in more)
            self._line = f"CASE WHEN {unused} THEN {self._line} ELSE {_json_object([*shown, *more])} END"
        columns = [f"{sql} AS {quoted(name)}" for name, sql, _ in (*shown, *more)]
        self._columns = ", ".join(["row_id AS _index", *columns])

    def lines(self, row_ids: Sequence[int]) -> list[tuple[int, bytes]]:
        """``(row_id, line)`` of these rows, in order."""
        if not row_ids:
            return []
        return self._fetch_lines(
            "s.row_id BETWEEN ? AND ? AND s.row_id IN (SELECT unnest(?::BIGINT[]))",
            [min(row_ids), max(row_ids), list(row_ids)],
        )

    def settled(self, *, standing: tuple[bool, bool] | None = None) -> Iterator[list[tuple[int, bytes]]]:
        """``(row_id, line)`` of every settled row, in order, two thousand at a time.

        Parameters
        ----------
        standing
            ``(stale, keep_errors)`` as in :meth:`redone`: leave out the rows that may be done again.
        """
        condition = _SETTLED
        if standing is not None:
            condition += f" AND NOT ({_redone(*standing)})"
        row = self._connection.execute(f"SELECT max(row_id) FROM {self._table}").fetchone()
        last = -1 if row is None or row[0] is None else int(row[0])
        for low in range(0, last + 1, VECTOR):
            yield self._fetch_lines(f"s.row_id >= ? AND s.row_id < ? AND {condition}", [low, low + VECTOR])

    def _fetch_lines(self, condition: str, parameters: list[Any]) -> list[tuple[int, bytes]]:
        query = f"SELECT s.row_id, {self._line}::VARCHAR FROM {self._table} s WHERE {condition} ORDER BY s.row_id"
        found = fetch(self._connection, query, parameters)
        return [(row_id, line.encode() + b"\n") for row_id, line in found]

    def redone(self, *, stale: bool, keep_errors: bool) -> Iterator[int]:
        """The rows whose lines are old: they may be done again, or are no longer in the source.

        Parameters
        ----------
        stale
            The stage's declaration has changed, so every row may be done again.
        keep_errors
            Failed rows are not done again.
        """
        found = self._connection.execute(
            f"SELECT s.row_id FROM {self._table} s WHERE {_redone(stale, keep_errors)} OR NOT ({_LIVE})"
        )
        while rows := found.fetchmany(VECTOR):
            yield from (row_id for (row_id,) in rows)

    def write_parquet(self, path: Path) -> None:
        """Write every settled row, in order, into a Parquet file. Raises ``StoreError``."""
        rows = f"SELECT {self._columns} FROM {self._table} s WHERE {_SETTLED} ORDER BY s.row_id"
        try:
            fetch(self._connection, f"COPY ({rows}) TO {literal(str(path))} (FORMAT parquet)")
        except duckdb.Error as error:
            raise StoreError(f"{path} could not be written: {error}") from None

    @property
    def has_answers(self) -> bool:
        """Whether any row is done, be it in the source or no longer."""
        return _states(self._connection, self._name)[0] > 0

    @property
    def retired(self) -> int:
        """How many settled rows are no longer in the source."""
        row = self._connection.execute(f"SELECT count(*) FROM {self._table} s WHERE NOT ({_LIVE})").fetchone()
        return 0 if row is None else int(row[0])

    def record(self) -> OutputRecord | None:
        """The record of the output file; ``None`` if nothing was written yet."""
        return read_record(self._connection)

    def begin(self, path: Path, facts: dict[str, Any], digest: str) -> None:
        """Record that a new and empty output file is about to be made."""
        self._connection.execute(_DDL)
        self._connection.execute("DELETE FROM output_file")
        self._connection.execute(
            "INSERT INTO output_file VALUES (?, 0, ?, NULL, NULL, false, ?)", [str(path), digest, _encode(facts)]
        )

    def update(self, **values: Any) -> None:
        """Set some fields of the record."""
        if "facts" in values:
            values["facts"] = _encode(values["facts"])
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(f"UPDATE output_file SET {assignments}", list(values.values()))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def read_record(connection: duckdb.DuckDBPyConnection) -> OutputRecord | None:
    """The record of an output file; ``None`` if the database has none."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'output_file'").fetchone():
        return None
    names = [field.name for field in fields(OutputRecord)]
    row = connection.execute(f"SELECT {', '.join(names)} FROM output_file").fetchone()
    if row is None:
        return None
    values = dict(zip(names, row, strict=True))
    return OutputRecord(**{**values, "facts": loads(values["facts"])})


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier command has left.

    Attributes
    ----------
    failed
        Rows that are errors.
    file
        Size and digest of the output file, as it was written last; ``None`` where none was.
    """

    failed: int
    file: tuple[int, str] | None


def without_answers(database: Path) -> Earlier | None:
    """What is in a checkpoint that holds no answer.

    ``None`` where it holds one, where a session has it open, or where it cannot be read.
    """
    try:
        # Opened for writing, which a session that is under way does not allow.
        with connect(database) as connection:
            record = read_record(connection)
            tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            counts = [_states(connection, name) for (name,) in tables if name in _FIELDS]
    except (StoreError, duckdb.Error):
        return None
    if any(done for done, _ in counts):
        return None
    return Earlier(sum(failed for _, failed in counts), None if record is None else (record.bytes, record.digest))


def _states(connection: duckdb.DuckDBPyConnection, table: str) -> tuple[int, int]:
    """How many rows of a stage are done, and how many are errors; those that left the source included."""
    states = "count(*) FILTER (status = 'done'), count(*) FILTER (status = 'error')"
    done, failed = connection.execute(f"SELECT {states} FROM {quoted(table)}").fetchall()[0]
    return done, failed


def digest_of(path: Path, most: int | None = None) -> tuple[int, str]:
    """Size and digest of a file, or of its first ``most`` bytes. Raises ``OSError``."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK if most is None else min(_BLOCK, most - size)):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _redone(stale: bool, keep_errors: bool) -> str:
    return "true" if stale else "false" if keep_errors else "s.status = 'error'"


def _json_object(fields: Sequence[tuple[str, str, str | None]]) -> str:
    inner = ", ".join(f"{literal(name)}, {in_json or sql}" for name, sql, in_json in fields)
    return f"json_object('_index', s.row_id, {inner})"


def _encode(value: dict[str, Any]) -> str:
    return dumps(value, default=str).decode()
