"""CSV files in which some lines are malformed: those become rows with an error, in their place among the others.

Well-formed files never come here: DuckDB reads them faster, and this reader gives the same rows.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence

import duckdb

from infermesh.store.schema import quoted

_DELIMITERS = ",;\t|"
_NONE = "\x1f"  # a delimiter that no text has: a file of one column
_MOST_LINES = 2000  # in one quoted value; a quote that is open for longer was never closed
_BATCH = 1024
_SHOWN = 80


def compressed(files: Sequence[str]) -> bool:
    """Whether the files are not to be read here."""
    return any(file.endswith((".gz", ".zst")) for file in files)


def csv_dialect(file: str) -> str:
    """RFC 4180's, with the delimiter that the header has most of, as options of DuckDB's reader."""
    delimiter = _header(file)[0].replace("'", "''")
    return f"delim='{delimiter}', quote='\"', escape='\"', skip=0"


def reads_whole(relation: str, limits: Mapping[str, str]) -> bool:
    """Whether DuckDB reads the relation to its end without an error, within ``limits`` (its settings by name)."""
    with duckdb.connect(config=dict(limits)) as connection:  # of its own: an error would end the caller's transaction
        try:
            connection.execute(f"SELECT count(COLUMNS(*)) FROM ({relation})").fetchall()
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error:
            return False
    return True


def read_ragged(connection: duckdb.DuckDBPyConnection, files: Sequence[str], table: str) -> None:
    """Make ``table`` of CSV files: ``row_id``, the columns, ``__line`` and ``__error`` of malformed rows."""
    names = list(dict.fromkeys(name for file in files for name in _header(file)[1]))
    columns = ", ".join(f"{quoted(name)} VARCHAR" for name in names)
    connection.execute(
        f"CREATE TEMP TABLE {quoted(table)} (row_id BIGINT, {columns}{', ' if names else ''}__line BIGINT, "
        "__error VARCHAR)"
    )
    batch: list[tuple[object, ...]] = []
    with connection.appender(table) as appender:
        for row_id, (values, line, error) in enumerate(_rows(files)):
            batch.append((row_id, *(values.get(name) for name in names), line, error))
            if len(batch) == _BATCH:
                appender.append_rows(batch)
                batch = []
        appender.append_rows(batch)


def _header(file: str) -> tuple[str, list[str]]:
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as text:
        first = text.readline()
        delimiter = max(_DELIMITERS, key=first.count)
        if delimiter not in first:
            delimiter = _NONE
        text.seek(0)
        return delimiter, next(csv.reader(text, delimiter=delimiter), [])


def _rows(files: Sequence[str]) -> Iterator[tuple[dict[str, str | None], int | None, str | None]]:
    """Each record's values by column, or its line and what is wrong with it."""
    csv.field_size_limit(sys.maxsize)
    for file in files:
        delimiter, header = _header(file)
        records = _records(file, delimiter)
        next(records, None)
        for line, record in records:
            shown, problem = "", None
            if isinstance(record, str):
                shown, problem = record, "a quote is not closed, or is followed by something"
            elif len(record) != len(header):
                shown, problem = delimiter.join(record), f"expected {len(header)} values, found {len(record)}"
            elif any("\udc80" <= character <= "\udcff" for value in record for character in value):
                shown, problem = delimiter.join(record), "not UTF-8 text"
            if problem is None:
                yield {name: value or None for name, value in zip(header, record, strict=True)}, None, None
            else:
                shown = " ".join(shown.encode("utf-8", "surrogateescape").decode("utf-8", "replace").split())[:_SHOWN]
                yield {}, line, f"{file}, line {line}: {problem}: {shown}"


def _records(file: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Line number and values of each record; where it cannot be read, its first line as it stands.

    After such a line reading goes on with the next one.
    """
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        again: list[str] = []
        number = 0
        while True:
            taken: list[str] = []

            def lines(taken: list[str] = taken) -> Iterator[str]:
                while len(taken) < _MOST_LINES and (line := again.pop() if again else text.readline()):
                    taken.append(line)
                    yield line

            try:
                record: list[str] | str = next(csv.reader(lines(), delimiter=delimiter, strict=True))
            except StopIteration:
                return
            except csv.Error:
                record = taken[0]
                again.extend(reversed(taken[1:]))
                del taken[1:]
            if record:
                yield number + 1, record
            number += len(taken)
