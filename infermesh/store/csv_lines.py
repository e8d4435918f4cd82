"""CSV files: what each file's dialect is, and its malformed lines, each a row with an error in its place.

A file's dialect is told from its first lines, file by file, whether it is compressed or not: so one malformed line
changes nothing about the others. Well-formed files are then read by DuckDB with that dialect, which is faster and gives
the same rows. DuckDB's own sniffer takes a file with one short line for a file of one column (duckdb/duckdb#14117), and
``store_rejects`` loses the rest of a file after a quote that is never closed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import duckdb

from infermesh.errors import ConfigError
from infermesh.hints import one_line
from infermesh.inputs.formats import row_file
from infermesh.inputs.sources import CsvOptions
from infermesh.store.connection import open_duckdb
from infermesh.store.schema import literal, quoted

__all__ = ["Dialect", "csv_relation", "dialect_of", "glob_literal", "open_binary", "read_ragged", "reads_whole"]

_DELIMITERS = ",;\t|"
_ONE_COLUMN = "\x1f"  # the delimiter of a file of one column: no text has it
_SAMPLE = 256 * 1024  # characters
_SAMPLE_RECORDS = 200
_MOST_LINES = 2000  # in one quoted value; a quote that is open for longer was never closed
_BATCH = 1024  # rows
_SHOWN = 80  # characters of a malformed line, in its error
_MARKS = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
          (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one file is written.

    Attributes
    ----------
    delimiter, quote
        One character each; an empty quote: there are no quotes.
    comment
        What a line begins with that is none; empty: every line is one.
    encoding
        Python's name of it.
    skip
        Lines before the header, or before the first row where there is none.
    header
        Whether the first line after those names the columns.
    names
        The columns.
    """

    delimiter: str
    quote: str
    comment: str
    encoding: str
    skip: int
    header: bool
    names: tuple[str, ...]


def open_binary(file: str) -> Any:
    """A file's bytes, decompressed if its name says that they are compressed."""
    compression = row_file(file).compression
    if compression == "gzip":
        return gzip.open(file, "rb")
    if compression == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return zstd.open(file, "rb")
    return open(file, "rb")


def _open_text(file: str, encoding: str, errors: str) -> TextIO:
    codecs.lookup(encoding)  # raises LookupError before anything is open
    return io.TextIOWrapper(open_binary(file), encoding=encoding, errors=errors, newline="")


def dialect_of(file: str, options: CsvOptions) -> Dialect | None:
    """The dialect of a file, by its first lines and by what the declaration says; ``None`` for a file without any.

    The delimiter is the one that cuts most of the first records into as many values as the header has. A tab comes
    first in a ``.tsv`` file. There is no comment unless the declaration names one.

    Raises
    ------
    ConfigError
        The file is not text of its encoding from its first line on.
    """
    with open_binary(file) as data:
        start = data.read(4)
    encoding = options.encoding or next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8-sig")
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        with _open_text(file, encoding, "surrogateescape" if encoding == "utf-8-sig" else "strict") as text:
            sample = text.read(_SAMPLE)
    except (LookupError, UnicodeError, EOFError, OSError) as error:
        raise ConfigError(f"source: {file} cannot be read as {encoding} text: {error}. Set source.encoding") from None
    whole = len(sample) < _SAMPLE
    skip, delimiter = 0, options.delimiter
    lines = list(io.StringIO(sample, newline=""))  # as the reader of the file cuts it
    comment = options.comment or chr(10)  # no line begins with a line break, unless it is blank
    while skip < len(lines) and (not lines[skip].strip() or lines[skip].startswith(comment)):
        skip += 1
    if skip < len(lines) and (said := lines[skip].strip()).lower().startswith("sep=") and len(said) == 5:  # Excel's
        delimiter = delimiter or said[4]
        skip += 1
    rest = [line for line in lines[skip:] if not (options.comment and line.startswith(options.comment))]
    if not rest:
        return None
    if any("\udc80" <= character <= "\udcff" for character in rest[0]):
        raise ConfigError(
            f"source: {file}: its first line is not UTF-8 text. Set source.encoding, to latin-1 or cp1252 for instance"
        )
    if not whole and len(rest) > 1:
        del rest[-1]  # it may be cut
    quote = '"' if options.quote is None else options.quote
    if delimiter is None:
        delimiter = _delimiter(rest, quote, tabs_first=row_file(file).format == "tsv")
    first = next(iter(_sample_records(rest, delimiter, quote)), [])
    names = first if options.header else [""] * len(first)
    return Dialect(delimiter, quote, options.comment or "", encoding, skip, options.header, tuple(unique_names(names)))


def _delimiter(lines: Sequence[str], quote: str, *, tabs_first: bool) -> str:
    """The delimiter by which most records have as many values as the first one.

    Where no record fits the first one by any of them, all may be malformed: then the header decides, if it reads like
    names and not like a sentence.
    """
    best, found = (0.0, 0, 0), _ONE_COLUMN
    for position, delimiter in enumerate("\t,;|" if tabs_first else _DELIMITERS):
        records = _sample_records(lines, delimiter, quote)
        if not records or len(records[0]) < 2:
            continue
        header, width, widths = records[0], len(records[0]), [len(record) for record in records]
        # A value more at the end is an empty one, behind a trailing delimiter.
        fitting = [each == width or each == width + 1 for each in widths[1:]]
        share = sum(fitting) / len(fitting) if fitting else 1.0
        score = (round(share, 2) + (0.5 if tabs_first and delimiter == "\t" else 0.0), width, -position)
        names = not any(name[:1].isspace() for name in header[1:])
        if (share > 0 or names) and score > best:
            best, found = score, delimiter
    return found


def _sample_records(lines: Sequence[str], delimiter: str, quote: str) -> list[list[str]]:
    """The first records that can be read."""
    remaining = iter(lines)
    found = _parsed(lambda: next(remaining, ""), _format(delimiter, quote))
    records = (record for _, record in found if record and not isinstance(record, str))
    return list(itertools.islice(records, _SAMPLE_RECORDS))


def unique_names(names: Sequence[str]) -> list[str]:
    """The names of columns, as SQL can tell them apart: without blanks around them, each once, none empty.

    A name that stands there again, in whatever case, gets a number: ``score``, ``score_1``. An empty one becomes
    ``column0``, by its position.

    Examples
    --------
    >>> unique_names([" id", "score", "Score", ""])
    ['id', 'score', 'Score_1', 'column3']
    """
    wanted = [name.strip().removeprefix("\ufeff").strip() or f"column{at}" for at, name in enumerate(names)]
    given = {name.lower() for name in wanted}
    seen: set[str] = set()
    unique: list[str] = []
    for name in wanted:
        candidate, number = name, 0
        while candidate.lower() in seen or (number and candidate.lower() in given):
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate.lower())
        unique.append(candidate)
    return unique


def _format(delimiter: str, quote: str) -> dict[str, Any]:
    if not quote:
        return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return {"delimiter": delimiter, "quotechar": quote}


def csv_relation(files: Sequence[tuple[str, str, Dialect]], buffer_size: int) -> str:
    """SQL that reads files with their dialects, by name and in order.

    Parameters
    ----------
    files
        Of each the file that a user knows, the one to read (the same text as UTF-8), and its dialect.
    buffer_size
        Bytes of the reader's buffer.
    """
    parts: list[tuple[str, list[str]]] = []
    for file, readable, dialect in files:
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in dialect.names)
        compression = {"gzip": "gzip", "zstd": "zstd", None: "none"}[row_file(file).compression]
        if readable != file:
            compression = "none"
        options = (
            f"auto_detect=false, hive_partitioning=false, delim={literal(dialect.delimiter)}, "
            f"quote={literal(dialect.quote)}, escape={literal(dialect.quote)}, comment={literal(dialect.comment)}, "
            f"skip={dialect.skip}, header={str(dialect.header).lower()}, columns={{{columns}}}, "
            f"compression='{compression}', buffer_size={buffer_size}"
        )
        if parts and parts[-1][0] == options:
            parts[-1][1].append(readable)
        else:
            parts.append((options, [readable]))
    return " UNION ALL BY NAME ".join(
        f"SELECT * FROM read_csv([{', '.join(literal(glob_literal(name)) for name in names)}], {options})"
        for options, names in parts
    )


def glob_literal(file: str) -> str:
    """A file's name as a pattern that matches it alone: DuckDB takes each name for a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in file)


def reads_whole(relation: str, limits: Mapping[str, str]) -> bool:
    """Whether DuckDB can read the whole relation without an error.

    Parameters
    ----------
    limits
        DuckDB's settings by name, such as ``memory_limit``.
    """
    with open_duckdb(config=limits) as connection:  # in the caller's, an error would end the transaction
        try:
            connection.execute(f"SELECT count(COLUMNS(*)) FROM ({relation})").fetchall()
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error:
            return False
    return True


def read_ragged(connection: duckdb.DuckDBPyConnection, files: Sequence[tuple[str, str, Dialect]], table: str) -> None:
    """Read CSV files into a new table: ``row_id``, the columns, and ``__line`` and ``__error`` for malformed rows."""
    names = list(dict.fromkeys(name for _, _, dialect in files for name in dialect.names))
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


def _rows(
    files: Sequence[tuple[str, str, Dialect]],
) -> Iterator[tuple[dict[str, str | None], int | None, str | None]]:
    """Of each record its values by column, or the number of its line and an error."""
    csv.field_size_limit(sys.maxsize)
    for file, _, dialect in files:
        names, width = dialect.names, len(dialect.names)
        records = _records(file, dialect)
        if dialect.header:
            next(records, None)
        for line, record in records:
            if not isinstance(record, str) and len(record) > width and not any(record[width:]):
                del record[width:]  # behind a trailing delimiter
            problem = _problem(record, width)
            if problem is None:
                yield {name: value or None for name, value in zip(names, record, strict=True)}, None, None
            else:
                text = record if isinstance(record, str) else dialect.delimiter.join(record)
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


def _records(file: str, dialect: Dialect) -> Iterator[tuple[int, list[str] | str]]:
    """Each record's line number and values; of one that cannot be read, its first line as text.

    After such a line, reading continues with the next line: the lines that the parser has taken since are given to it
    again.
    """
    errors = "surrogateescape" if dialect.encoding == "utf-8-sig" else "replace"
    with _open_text(file, dialect.encoding, errors) as text:
        for _ in range(dialect.skip):
            text.readline()
        number = dialect.skip
        for taken, record in _parsed(text.readline, _format(dialect.delimiter, dialect.quote)):
            if record and not (dialect.comment and taken[0].startswith(dialect.comment)):
                yield number + 1, record
            number += len(taken)


def _parsed(readline: Callable[[], str], form: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str] | str]]:
    """The lines of each record and its values; of one that cannot be read, its first line, twice."""
    again: list[str] = []
    while True:
        taken: list[str] = []

        def lines(taken: list[str] = taken) -> Iterator[str]:
            while len(taken) < _MOST_LINES and (line := again.pop() if again else readline()):
                taken.append(line)
                yield line

        try:
            record: list[str] | str = next(csv.reader(lines(), **form, strict=True))
        except StopIteration:
            return
        except csv.Error:
            record = taken[0]
            again.extend(reversed(taken[1:]))
            del taken[1:]
        yield taken, record
