"""Load a source's rows into the ``source`` table, with DuckDB's own readers.

JSON lines keep their values: numbers, strings and booleans at the top level become typed columns, and what is nested
stays JSON. CSV columns stay text, so that ``007`` does not become 7. ``row_key`` is the hash of a row's content and the
number of its occurrence, so it does not depend on where the row stands in the file.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import orjson

from infermesh.errors import ConfigError
from infermesh.exact_json import inexact_members
from infermesh.hints import one_line
from infermesh.inputs.sources import Source
from infermesh.store.column_types import set_types
from infermesh.store.connection import open_duckdb
from infermesh.store.constants import Constants, constant, folder_columns, select_constants, without
from infermesh.store.csv_lines import (
    CsvFile,
    csv_relation,
    dialect_of,
    read_ragged,
    reads_whole,
    unique_names,
)
from infermesh.store.json_members import MAX_LINE, json_members, pointer
from infermesh.store.parquet_types import parquet_reader, united_numbers
from infermesh.store.plain_files import PlainFile, holds_array, plain_files, utf8_copy, workshop
from infermesh.store.schema import SOURCE, Column, listed, literal, quoted

_RESERVED = ("row_id", "row_key")
_BATCH = 1024  # rows
# Whether a line has something like a number of 17 digits, or with an exponent.
_LONG = "coalesce(regexp_matches(json, '[0-9.]{17}|[0-9][eE]'), false)"
# Whether such a line may have a number that a double does not hold. DuckDB reads doubles, so it writes such a number
# otherwise, unless it is too large for one. With CASE it looks at these lines alone; the parts of an AND it all makes.
_INEXACT = (
    "CASE WHEN long THEN regexp_matches(json, '[eE][+]?[0-9]{3}') "
    "OR replace(json, ' ', '') <> replace(json(json)::VARCHAR, ' ', '') ELSE false END"
)
_MAY_BE_INEXACT = {"DOUBLE", "OBJECT", "ARRAY"}
_NUMBERS = "regexp_extract_all(json, '[-+0-9.eE]{5,}')::VARCHAR"
_CSV_BUFFER = 4_000_000  # bytes, the least it takes (two lines); the CSV reader holds some for each of the files


def ingest(connection: duckdb.DuckDBPyConnection, source: Source, table: str = SOURCE) -> None:
    """Create and fill ``source``, or another table for the source's rows, and fill ``source_errors``.

    Files are read several times instead of being held: between the passes only a row number and a hash are kept for
    each row. So ten million rows are loaded with a few hundred megabytes.

    Raises
    ------
    ConfigError
        A file is empty, cannot be read in its format, or has a column that the table needs for itself.
    duckdb.OutOfMemoryException
        The database's memory limit is too low for rows of this length.
    """
    try:
        if source.dataset is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "rows.parquet"
                source.dataset.write_parquet(file, source.limit)
                _parquet(connection, source, [PlainFile(str(file), str(file))], table)
        elif source.sql is not None:
            query = source.sql.strip().rstrip(";")
            query_rows(connection, table, f"SELECT * FROM ({query}\n) {_limit(source)}")
        else:
            with _few_threads(connection, len(source.files)), workshop(connection) as folder:
                _files(connection, source, table, folder)
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, OSError) as error:
        where = source.shown if source.sql is None else "source.sql"
        raise ConfigError(f"source: {where} could not be read: {one_line(error, 600)}") from None


@contextlib.contextmanager
def _few_threads(connection: duckdb.DuckDBPyConnection, files: int) -> Iterator[None]:
    """Read with one thread, or with two if there is one file.

    More threads are not faster, as rows are numbered in order, and each has a buffer for each file. With the second one
    DuckDB gives freed memory back to the system sooner.
    """
    threads = int(_setting(connection, "threads"))
    connection.execute(f"SET threads = {min(threads, 2 if files == 1 else 1)}")
    try:
        yield
    finally:
        with connection.cursor() as other:  # after an error the transaction takes no more statements
            other.execute(f"SET threads = {threads}")


def _setting(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    return str(connection.execute(f"SELECT current_setting({literal(name)})").fetchall()[0][0])


def _files(connection: duckdb.DuckDBPyConnection, source: Source, table: str, folder: Path) -> None:
    files = plain_files(source, folder)
    if source.format == "jsonl":
        _jsonl(connection, source, files, table)
    elif not files:
        raise ConfigError(f"source: {source.shown}: nothing is in it")
    elif source.format == "csv":
        _csv(connection, source, files, table, folder)
    else:
        _parquet(connection, source, files, table)


def _jsonl(connection: duckdb.DuckDBPyConnection, source: Source, files: Sequence[PlainFile], table: str) -> None:
    constants = {file: folder_columns(file.name) if source.hive else {} for file in files}
    folders = {name.lower(): name for found in constants.values() for name in found}
    relations = [
        f"SELECT json{_folder_values(folders, found)} FROM {_json_reader([file.path for file in alike], array=array)}"
        for (array, found), alike in itertools.groupby(files, lambda file: (holds_array(file), constants[file]))
    ]
    relation = " UNION ALL ".join(relations) or f"SELECT NULL::JSON AS json{_folder_values(folders, {})} WHERE false"
    lines = f"(SELECT row_number() OVER () - 1 AS row_id, * FROM (SELECT * FROM ({relation}) {_limit(source)}))"
    members, all_objects = json_members(connection, lines, files)
    content, inexact = "json(json)::VARCHAR", set[str]()
    of_folders = (
        f" || to_json([{', '.join(f'f{number}' for number in range(len(folders)))}])::VARCHAR" if folders else ""
    )
    if all_objects and not any(member.kinds & _MAY_BE_INEXACT for member in members.values()):
        _make_keys(connection, lines, content + of_folders)
    else:
        looked_at = f"(SELECT *, {_INEXACT} AS marked FROM (SELECT *, {_LONG} AS long FROM {lines}))"
        content = f"CASE WHEN marked THEN {content} || {_NUMBERS} ELSE {content} END"
        _make_keys(connection, looked_at, content + of_folders, marked="marked")
        inexact = _inexact_values(connection, lines)
        connection.execute("DROP TABLE __marked")
    structure = {key: "JSON" if key in inexact else member.type for key, member in members.items()}
    repeated = any(member.times > member.rows for member in members.values())
    names = unique_names(list(structure))
    columns = ""
    if structure:
        plain = {key: kind for key, kind in structure.items() if key}
        columns = f", unnest(json_transform(json, {literal(orjson.dumps(plain).decode())}))" if plain else ""
        if names != list(structure):  # one is empty, or differs from another in its case alone
            columns = "".join(
                f", {_value(key, kind)} AS {quoted(name)}"
                for name, (key, kind) in zip(names, structure.items(), strict=True)
            )
    taken = {name.lower() for name in names}
    added = {name: f"f{number}" for number, (lowered, name) in enumerate(folders.items()) if lowered not in taken}
    check_names([*names, *added])
    columns += "".join(f", {place} AS {quoted(name)}" for name, place in added.items())
    _create(connection, table, lines, columns)
    for name, key in zip(names, structure, strict=True):
        if key in inexact:
            connection.execute(
                f"UPDATE {quoted(table)} AS s SET {quoted(name)} = i.value FROM inexact i WHERE i.key = ? AND "
                "i.row_id = s.row_id",
                [key],
            )
    if inexact:
        connection.execute("DROP TABLE inexact")
    if all_objects and not repeated:
        return
    connection.execute(
        "INSERT INTO source_errors SELECT row_id, NULL, CASE WHEN json IS NULL THEN 'not valid JSON' "
        "WHEN json_type(json) = 'OBJECT' THEN 'a key stands there twice' "
        f"ELSE 'not a JSON object but ' || lower(json_type(json)) END FROM {lines} "
        "WHERE NOT coalesce(json_type(json) = 'OBJECT', false)"
        + (" OR len(json_keys(json)) <> list_unique(json_keys(json))" if repeated else "")
    )
    _locate(connection, files)


def _json_reader(paths: Sequence[str], *, array: bool) -> str:
    return (
        f"read_json_objects({listed(paths)}, format='{'array' if array else 'newline_delimited'}', "
        f"ignore_errors=true, compression='none', maximum_object_size={MAX_LINE})"
    )


def _folder_values(folders: Mapping[str, str], found: Constants) -> str:
    """The folders' values as columns ``f0``, ``f1`` …, whose names no source has a say in."""
    values = {name.lower(): value for name, value in found.items()}
    return "".join(f", {constant(values.get(name))} AS f{number}" for number, name in enumerate(folders))


def _limit(source: Source) -> str:
    return "" if source.limit is None else f"LIMIT {source.limit}"


def _inexact_values(connection: duckdb.DuckDBPyConnection, lines: str) -> set[str]:
    """Return the keys of the values with a number that a double does not hold; where there are, make a table of these.

    DuckDB rounds such numbers as soon as it reads the JSON around them.
    """
    connection.execute("CREATE TEMP TABLE inexact (row_id BIGINT, key VARCHAR, value VARCHAR)")
    keys: set[str] = set()
    if connection.execute("SELECT 1 FROM __marked LIMIT 1").fetchone() is not None:
        limits = {name: _setting(connection, name) for name in ("memory_limit", "threads")}
        with open_duckdb(config=limits) as other, connection.appender("inexact") as appender:
            found = other.execute(f"SELECT row_id, json FROM (SELECT *, {_LONG} AS long FROM {lines}) WHERE {_INEXACT}")
            while rows := found.fetchmany(_BATCH):
                values = [(row_id, *each) for row_id, text in rows for each in inexact_members(text).items()]
                keys.update(key for _, key, _ in values)
                appender.append_rows(values)
    if not keys:
        connection.execute("DROP TABLE inexact")
    return keys


def _make_keys(connection: duckdb.DuckDBPyConnection, rows: str, content: str, marked: str | None = None) -> None:
    """Make the table ``__keys``: for each row, in order, the hash of its content and the number of its occurrence.

    Parameters
    ----------
    rows
        A subquery with a ``row_id``.
    content
        SQL over these rows; null for a malformed row.
    marked
        A boolean column of these rows. Where it is true, the ``row_id`` is kept in the table ``__marked``.
    """
    connection.execute(
        f"CREATE TEMP TABLE __hashes AS SELECT row_id, coalesce(md5_number_lower({content}), 0) AS hash"
        f"{'' if marked is None else f', {marked}'} FROM {rows}"
    )
    if marked is not None:
        connection.execute(f"CREATE TEMP TABLE __marked AS SELECT row_id FROM __hashes WHERE {marked}")
    connection.execute(
        "CREATE TEMP TABLE __repeated AS SELECT row_id, row_number() OVER (PARTITION BY hash ORDER BY row_id) AS "
        "occurrence FROM __hashes WHERE hash IN (SELECT hash FROM __hashes GROUP BY hash HAVING count(*) > 1)"
    )
    if connection.execute("SELECT 1 FROM __repeated LIMIT 1").fetchone():
        connection.execute(
            "CREATE TEMP TABLE __keys AS SELECT hash, coalesce(occurrence, 1) AS occurrence FROM __hashes h "
            "LEFT JOIN __repeated o ON o.row_id = h.row_id ORDER BY h.row_id"
        )
    else:
        connection.execute("CREATE TEMP TABLE __keys AS SELECT hash, 1 AS occurrence FROM __hashes")
    connection.execute("DROP TABLE __hashes")
    connection.execute("DROP TABLE __repeated")


def _create(connection: duckdb.DuckDBPyConnection, table: str, rows: str, columns: str) -> None:
    """Create a table of the rows and their ``__keys``; in ``columns`` the rows are called ``r``."""
    # Keys and rows are put together by position. A join would lose the file's order, and a sort take memory for all
    # rows. Hashing again is no way either: it is the most expensive step.
    connection.execute(
        f"CREATE TABLE {quoted(table)} AS SELECT r.row_id, CASE k.hash WHEN 0 THEN 'malformed' ELSE "
        f"printf('%016x', k.hash) END || '-' || k.occurrence AS row_key{columns} FROM {rows} r POSITIONAL JOIN __keys k"
    )
    connection.execute("DROP TABLE __keys")


def _value(key: str, kind: str) -> str:
    """SQL for the value of a key of ``json``."""
    if kind == "JSON":
        return f"json_extract(json, {literal(pointer(key))})"
    return f"TRY_CAST(json_extract_string(json, {literal(pointer(key))}) AS {kind})"


def _locate(connection: duckdb.DuckDBPyConnection, files: Sequence[PlainFile]) -> None:
    """Set the file and line of malformed rows. The reader does not count blank lines, but an editor does."""
    bad = {row_id for (row_id,) in connection.execute("SELECT row_id FROM source_errors").fetchall()}
    if not bad:
        return
    row_id = 0  # of the file's first row
    for file in files:
        if holds_array(file):
            reader = _json_reader([file.path], array=True)
            items = int(connection.execute(f"SELECT count(*) FROM {reader}").fetchall()[0][0])
            for number in sorted(bad & set(range(row_id, row_id + items))):
                where = f"{file.name}, item {number - row_id + 1}: "
                connection.execute("UPDATE source_errors SET error = ? || error WHERE row_id = ?", [where, number])
            row_id += items
            continue
        with open(file.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.removeprefix(codecs.BOM_UTF8).strip():
                    continue
                if row_id in bad:
                    shown = line.strip()[:80].decode("utf-8", "replace")
                    connection.execute(
                        "UPDATE source_errors SET line = ?, error = ? || error || ': ' || ? WHERE row_id = ?",
                        [number, f"{file.name}, line {number}: ", shown, row_id],
                    )
                row_id += 1


def _parquet(connection: duckdb.DuckDBPyConnection, source: Source, files: Sequence[PlainFile], table: str) -> None:
    replaced = united_numbers(connection, [file.path for file in files])

    def kind(file: PlainFile) -> tuple[Constants, str]:
        return folder_columns(file.name) if source.hive else {}, replaced.get(file.path, "")

    relations = []
    for (constants, replacing), alike in itertools.groupby(files, kind):
        read = parquet_reader([file.path for file in alike])
        names = [row[0] for row in connection.execute(f"DESCRIBE FROM {read}").fetchall()] if constants else []
        relations.append(f"SELECT *{replacing}{select_constants(without(constants, names))} FROM {read}")
    _create_from(connection, table, " UNION ALL BY NAME ".join(relations), _limit(source), SOURCE)


def _csv(
    connection: duckdb.DuckDBPyConnection, source: Source, plain: Sequence[PlainFile], table: str, folder: Path
) -> None:
    """Read CSV files, each by its own dialect. ``folder`` is for texts that are not UTF-8."""
    files: list[CsvFile] = []
    for file in plain:
        dialect = dialect_of(file, source.csv)
        if dialect is not None:  # else nothing is in it
            readable = file.path
            if dialect.encoding != "utf-8-sig":
                readable = utf8_copy(file.path, dialect.encoding, folder / f"{len(files)}.utf-8")
            constants = without(folder_columns(file.name), dialect.names) if source.hive else {}
            files.append(CsvFile(file.name, file.path, readable, dialect, constants))
    if not files:
        raise ConfigError(f"source: {source.shown}: no line is in it. Expected CSV with a line of column names first")
    for each in files:
        check_names([*each.dialect.names, *each.constants])
    relation = csv_relation(files, _CSV_BUFFER)
    limits = {name: _setting(connection, name) for name in ("memory_limit", "threads")}
    # DuckDB counts the lines to skip without comments, so a file with comments is read here.
    if source.csv.comment or not reads_whole(relation, limits):
        _ragged(connection, source, files, table)
    else:
        _create_from(connection, table, relation, _limit(source), SOURCE)
    if source.csv.types != "text":
        columns = [column.name for column in row_columns(connection, table)]
        set_types(connection, source.csv.types, table, columns)


def query_rows(connection: duckdb.DuckDBPyConnection, table: str, query: str, path: str = SOURCE) -> None:
    """Create a table of a query's rows, each with the ``row_key`` of its content.

    Parameters
    ----------
    path
        Where the query stands in the config, for messages.

    Raises
    ------
    ConfigError
        The query has a column that the table needs for itself.
    """
    # A query may give other rows the second time, so its rows are kept.
    connection.execute(f"CREATE TEMP TABLE queried AS {query}")
    _create_from(connection, table, "SELECT * FROM queried", "", path)
    connection.execute("DROP TABLE queried")


def _create_from(connection: duckdb.DuckDBPyConnection, table: str, relation: str, limit: str, path: str) -> None:
    names = [row[0] for row in connection.execute(f"DESCRIBE {relation}").fetchall()]
    check_names(names, path)
    rows = f"(SELECT row_number() OVER () - 1 AS row_id, * FROM ({relation} {limit}))"
    _make_keys(connection, rows, _content(names))
    _create(connection, table, rows, _columns(names))


def _content(names: Sequence[str]) -> str:
    return f"to_json(struct_pack({', '.join(f'{quoted(name)} := {quoted(name)}' for name in names)}))::VARCHAR"


def _columns(names: Sequence[str]) -> str:
    return "".join(f", r.{quoted(name)}" for name in names)


def _ragged(connection: duckdb.DuckDBPyConnection, source: Source, files: Sequence[CsvFile], table: str) -> None:
    ragged = read_ragged(connection, files)
    limit = "" if source.limit is None else f" WHERE row_id < {source.limit}"
    rows = f"(SELECT * FROM {ragged.table}{limit})"
    _make_keys(connection, rows, f"CASE WHEN {ragged.error} IS NULL THEN {_content(ragged.columns)} END")
    _create(connection, table, rows, _columns(ragged.columns))
    connection.execute(
        f"INSERT INTO source_errors SELECT row_id, {ragged.line}, {ragged.error} FROM {rows} "
        f"WHERE {ragged.error} IS NOT NULL"
    )
    connection.execute(f"DROP TABLE {ragged.table}")


def check_names(names: Sequence[str], path: str = SOURCE) -> None:
    """Refuse columns that a table of rows needs for itself, and names that SQL cannot tell apart.

    Raises
    ------
    ConfigError
        There is such a column; ``path`` says where in the config.
    """
    seen: dict[str, str] = {}
    for name in names:
        lowered = name.lower()
        if lowered in _RESERVED:
            example = f"select {name} as id"
            if path == SOURCE:
                example = f'source: {{sql: "{example}, … from …"}}'
            raise ConfigError(
                f"{path}: a column is called '{name}', which the table needs for itself. Rename it, or select it under "
                f"another name: {example}."
            )
        if lowered in seen:
            raise ConfigError(
                f"{path}: columns '{seen[lowered]}' and '{name}' differ in case only, which SQL cannot tell."
            )
        seen[lowered] = name


def row_columns(connection: duckdb.DuckDBPyConnection, table: str = SOURCE) -> list[Column]:
    """The user's columns of ``source`` or of another table of rows, in order."""
    rows = connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {quoted(table)})").fetchall()
    return [Column(name, kind) for name, kind in rows if name not in _RESERVED]
