"""CSV files: what each file's dialect is, and its malformed lines, each a row with an error in its place.

A file's dialect is told from its first lines, file by file, whether it is compressed or not: so one malformed line
changes nothing about the others. Well-formed files are then read by DuckDB with that dialect, which is faster and gives
the same rows. DuckDB's own sniffer takes a file with one short line for a file of one column (duckdb/duckdb#14117), and
``store_rejects`` loses the rest of a file after a quote that is never closed.
"""

from __future__ import annotations

import codecs
import io
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TextIO

import duckdb

from infermesh.config.file_names import row_file
from infermesh.errors import ConfigError
from infermesh.hints import one_line
from infermesh.inputs.sources import CsvOptions
from infermesh.store.connection import open_duckdb
from infermesh.store.constants import Constants, select_constants
from infermesh.store.csv_records import CsvForm, records
from infermesh.store.plain_files import PlainFile, encoding_by_mark
from infermesh.store.schema import listed, literal, quoted

__all__ = ["CsvFile", "Dialect", "Ragged", "csv_relation", "dialect_of", "read_ragged", "reads_whole"]

_DELIMITERS = ",;\t|^~"
_ONE_COLUMN = "\x1f"  # the delimiter of a file of one column: no text has it
_SAMPLE = 256 * 1024  # characters
_SAMPLE_RECORDS = 200
_BATCH = 1024  # rows
_SHOWN = 80  # characters of a malformed line, in its error


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one file is written.

    Attributes
    ----------
    form
        How its records are written.
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

    form: CsvForm
    comment: str
    encoding: str
    skip: int
    header: bool
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CsvFile:
    """One file to read.

    Attributes
    ----------
    name
        The file that the user knows.
    path
        Its text.
    readable
        The same text as UTF-8, which DuckDB reads.
    dialect
        How it is written.
    constants
        Columns that have one value in all of its rows.
    """

    name: str
    path: str
    readable: str
    dialect: Dialect
    constants: Constants = field(default_factory=dict)


def _open_text(path: str, encoding: str, errors: str) -> TextIO:
    codecs.lookup(encoding)  # raises LookupError before anything is open
    return open(path, encoding=encoding, errors=errors, newline="")


def dialect_of(file: PlainFile, options: CsvOptions) -> Dialect | None:
    """The dialect of a file, by its first lines and by what the declaration says; ``None`` for a file without any.

    The delimiter is the one that cuts most of the first records into as many values as the header has. A tab comes
    first in a ``.tsv`` file. There is no comment unless the declaration names one.

    Raises
    ------
    ConfigError
        The file is not text of its encoding from its first line on.
    """
    encoding = options.encoding or encoding_by_mark(file.path) or "utf-8-sig"
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        with _open_text(file.path, encoding, "surrogateescape" if encoding == "utf-8-sig" else "strict") as text:
            sample = text.read(_SAMPLE)
    except (LookupError, UnicodeError) as error:
        raise ConfigError(
            f"source: {file.name} cannot be read as {encoding} text: {error}. Set source.encoding"
        ) from None
    whole = len(sample) < _SAMPLE
    skip, delimiter = 0, options.delimiter
    lines = list(io.StringIO(sample, newline=""))  # as the reader of the file cuts it
    comment = options.comment or chr(10)  # no line begins with a line break, unless it is blank
    while skip < len(lines) and (not lines[skip].strip() or lines[skip].startswith(comment)):
        skip += 1
    if skip < len(lines) and (said := _excels_delimiter(lines[skip])):
        delimiter = delimiter or said
        skip += 1
    rest = [line for line in lines[skip:] if not (options.comment and line.startswith(options.comment))]
    if not rest:
        return None
    if any("\udc80" <= character <= "\udcff" for character in rest[0]):
        raise ConfigError(
            f"source: {file.name}: its first line is not UTF-8 text. Set source.encoding, to latin-1 or cp1252 for "
            "instance"
        )
    if not whole and len(rest) > 1:
        del rest[-1]  # it may be cut
    quote = '"' if options.quote is None else options.quote
    escape = quote if options.escape is None else options.escape
    if delimiter is None:
        tabs_first = row_file(file.name).format == "tsv"
        delimiter = _delimiter(rest, CsvForm("", quote, escape), tabs_first=tabs_first)
    form = CsvForm(delimiter, quote, escape)
    first = next(iter(_sample_records(rest, form)), [])
    names = first if options.header else [""] * len(first)
    return Dialect(form, options.comment or "", encoding, skip, options.header, tuple(unique_names(names)))


def _excels_delimiter(line: str) -> str | None:
    """The delimiter of Excel's own first line, ``sep=;``; ``None`` for any other line."""
    said = line.strip("\ufeff \r\n").strip('"')
    return said[4] if said[:4].lower() == "sep=" and len(said) == 5 else None


def _delimiter(lines: Sequence[str], form: CsvForm, *, tabs_first: bool) -> str:
    """The delimiter by which most records have as many values as the first one.

    Where no record fits the first one by any of them, all may be malformed: then the header decides, if it reads like
    names and not like a sentence.
    """
    best, found = (0.0, 0, 0), _ONE_COLUMN
    for position, delimiter in enumerate("\t" + _DELIMITERS.replace("\t", "") if tabs_first else _DELIMITERS):
        sample = _sample_records(lines, replace(form, delimiter=delimiter))
        if not sample or len(sample[0]) < 2:
            continue
        header, width, widths = sample[0], len(sample[0]), [len(record) for record in sample]
        # A value more at the end is an empty one, behind a trailing delimiter.
        fitting = [each == width or each == width + 1 for each in widths[1:]]
        share = sum(fitting) / len(fitting) if fitting else 1.0
        score = (round(share, 2) + (0.5 if tabs_first and delimiter == "\t" else 0.0), width, -position)
        names = not any(name[:1].isspace() for name in header[1:])
        if (share > 0 or names) and score > best:
            best, found = score, delimiter
    return found


def _sample_records(lines: Sequence[str], form: CsvForm) -> list[list[str]]:
    """The first records that can be read."""
    remaining = iter(lines)
    found = records(lambda: next(remaining, ""), form)
    readable = (record for _, record in found if record and not isinstance(record, str))
    return list(itertools.islice(readable, _SAMPLE_RECORDS))


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


def csv_relation(files: Sequence[CsvFile], buffer_size: int) -> str:
    """SQL that reads files with their dialects, by name and in order.

    Parameters
    ----------
    buffer_size
        Bytes of the reader's buffer.
    """

    def reading(file: CsvFile) -> tuple[str, str]:
        dialect, form = file.dialect, file.dialect.form
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in dialect.names)
        options = (
            f"auto_detect=false, hive_partitioning=false, delim={literal(form.delimiter)}, "
            f"quote={literal(form.quote)}, escape={literal(form.escape)}, comment={literal(dialect.comment)}, "
            f"skip={dialect.skip}, header={str(dialect.header).lower()}, columns={{{columns}}}, "
            f"compression='none', buffer_size={buffer_size}"
        )
        return select_constants(file.constants), options

    return " UNION ALL BY NAME ".join(
        f"SELECT *{constants} FROM read_csv({listed(file.readable for file in alike)}, {options})"
        for (constants, options), alike in itertools.groupby(files, reading)
    )


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


class Ragged(NamedTuple):
    """A table of rows that were read here: its user's columns, and its own for malformed rows."""

    table: str
    columns: list[str]
    line: str
    error: str


def read_ragged(connection: duckdb.DuckDBPyConnection, files: Sequence[CsvFile]) -> Ragged:
    """Read CSV files into a new table: ``row_id``, the columns, and the line and the error of malformed rows."""
    columns: dict[str, str] = {}  # in lower case, as SQL tells names apart → as the first file spells it
    for file in files:
        for name in (*file.dialect.names, *file.constants):
            columns.setdefault(name.lower(), name)
    line, error = (_free(name, columns) for name in ("line", "error"))
    ragged = Ragged("ragged", list(columns.values()), line, error)
    texts = "".join(f"{quoted(name)} VARCHAR, " for name in columns.values())
    connection.execute(f"CREATE TEMP TABLE ragged (row_id BIGINT, {texts}{line} BIGINT, {error} VARCHAR)")
    batch: list[tuple[object, ...]] = []
    with connection.appender(ragged.table) as appender:
        for row_id, (values, number, problem) in enumerate(_rows(files, list(columns))):
            batch.append((row_id, *values, number, problem))
            if len(batch) == _BATCH:
                appender.append_rows(batch)
                batch = []
        appender.append_rows(batch)
    return ragged


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _rows(
    files: Sequence[CsvFile], columns: Sequence[str]
) -> Iterator[tuple[Sequence[str | None], int | None, str | None]]:
    """Of each record its values in the order of the columns, or the number of its line and an error."""
    nothing = [None] * len(columns)
    for file in files:
        dialect, width = file.dialect, len(file.dialect.names)
        # A record's values, those of the constants and a null stand in one row, and each column takes one of them.
        places = {name.lower(): at for at, name in enumerate((*dialect.names, *file.constants))}
        order = [places.get(name, -1) for name in columns]
        constants = [*file.constants.values(), None]
        found = _records(file)
        if dialect.header:
            next(found, None)
        for line, record in found:
            if not isinstance(record, str) and len(record) > width and not any(record[width:]):
                del record[width:]  # behind a trailing delimiter
            problem = _problem(record, width)
            if problem is None:
                values = [*(value or None for value in record), *constants]
                yield [values[at] for at in order], None, None
            else:
                text = record if isinstance(record, str) else dialect.form.delimiter.join(record)
                shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                yield nothing, line, f"{file.name}, line {line}: {problem}: {one_line(shown, _SHOWN)}"


def _problem(record: list[str] | str, columns: int) -> str | None:
    """What is wrong with a record, in words."""
    if isinstance(record, str):
        return "a quote is not closed, or is followed by something"
    if len(record) != columns:
        return f"expected {columns} values, found {len(record)}"
    if any("\udc80" <= character <= "\udcff" for value in record for character in value):  # bytes that did not decode
        return "not UTF-8 text"
    return None


def _records(file: CsvFile) -> Iterator[tuple[int, list[str] | str]]:
    """Each record's line number and values; of one that cannot be read, its first line as text.

    A blank line is no record, except where there is one column: there it is a value that is missing.
    """
    dialect = file.dialect
    errors = "surrogateescape" if dialect.encoding == "utf-8-sig" else "replace"
    blank = [""] if len(dialect.names) == 1 else []
    with _open_text(file.path, dialect.encoding, errors) as text:
        for _ in range(dialect.skip):
            text.readline()
        number = dialect.skip
        for taken, record in records(text.readline, dialect.form):
            values = record if taken[0].strip("\r\n") else list(blank)
            if values and not (dialect.comment and taken[0].startswith(dialect.comment)):
                yield number + 1, values
            number += len(taken)
