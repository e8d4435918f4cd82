"""CSV files with malformed lines: such a line becomes a row with an error, in its place among the others.

Well-formed files are read by DuckDB, which is faster and gives the same rows. DuckDB's own ``store_rejects`` is no
substitute: after a quote that is never closed it loses the rest of the file.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence

import duckdb

from infermesh.hints import one_line
from infermesh.store.schema import literal, quoted

_DELIMITERS = ",;\t|"
_ONE_COLUMN = "\x1f"  # the delimiter of a file of one column: no text has it
_MOST_LINES = 2000  # in one quoted value; a quote that is open for longer was never closed
_BATCH = 1024  # rows
_SHOWN = 80  # characters of a malformed line, in its error


def compressed(files: Sequence[str]) -> bool:
    """Whether one of the files is compressed; such files are left to DuckDB."""
    return any(file.endswith((".gz", ".zst")) for file in files)


def csv_dialect(file: str) -> str:
    """Options of DuckDB's reader: the dialect of RFC 4180, with the delimiter that occurs most often in the header."""
    return f"delim={literal(_header(file)[0])}, quote='\"', escape='\"', skip=0"


def reads_whole(relation: str, limits: Mapping[str, str]) -> bool:
    """Whether DuckDB can read the whole relation without an error.

    Parameters
    ----------
    limits
        DuckDB's settings by name, such as ``memory_limit``.
    """
    with duckdb.connect(config=dict(limits)) as connection:  # in the caller's, an error would end the transaction
        try:
            connection.execute(f"SELECT count(COLUMNS(*)) FROM ({relation})").fetchall()
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error:
            return False
    return True


def read_ragged(connection: duckdb.DuckDBPyConnection, files: Sequence[str], table: str) -> None:
    """Read CSV files into a new table: ``row_id``, the columns, and ``__line`` and ``__error`` for malformed rows."""
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
    """The file's delimiter and the names of its columns."""
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as text:
        first = text.readline()
        delimiter = max(_DELIMITERS, key=first.count)
        if delimiter not in first:
            delimiter = _ONE_COLUMN
        text.seek(0)
        return delimiter, next(csv.reader(text, delimiter=delimiter), [])


def _rows(files: Sequence[str]) -> Iterator[tuple[dict[str, str | None], int | None, str | None]]:
    """Of each record its values by column, or the number of its line and an error."""
    csv.field_size_limit(sys.maxsize)
    for file in files:
        delimiter, header = _header(file)
        records = _records(file, delimiter)
        next(records, None)
        for line, record in records:
            problem = _problem(record, len(header))
            if problem is None:
                yield {name: value or None for name, value in zip(header, record, strict=True)}, None, None
            else:
                text = record if isinstance(record, str) else delimiter.join(record)
                shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                yield {}, line, f"{file}, line {line}: {problem}: {one_line(shown, _SHOWN)}"


def _problem(record: list[str] | str, columns: int) -> str | None:
    """What is wrong with a record, in words."""
    if isinstance(record, str):
        return "a quote is not closed, or is followed by something"
    if len(record) != columns:
        return f"expected {columns} values, found {len(record)}"
    if any("\udc80" <= character <= "\udcff" for value in record for character in value):  # bytes that did not decode
        return "not UTF-8 text"
    return None


def _records(file: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Each record's line number and values; of one that cannot be read, its first line as text.

    After such a line, reading continues with the next line: the lines that the parser has taken since are given to it
    again.
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
