"""A source's rows into the ``source`` table, by DuckDB's own readers.

JSONL keeps each row verbatim: numbers, strings and booleans at the top level become typed columns, anything nested
stays JSON. CSV columns stay text, so that ``007`` is not made a 7. ``row_key`` is the hash of a row's content and which
occurrence of that content it is, so that it does not depend on the row's place in the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import orjson

from infermesh.errors import ConfigError
from infermesh.sources import Source
from infermesh.store.schema import Column, quoted

_RESERVED = ("row_id", "row_key")
_KEY = "substr(md5({content}), 1, 16)"


def ingest(connection: duckdb.DuckDBPyConnection, source: Source) -> None:
    """Create and fill ``source`` and ``source_errors``.

    Raises
    ------
    ConfigError
        The file cannot be read as its format, is empty, or has a column that the table reserves.
    """
    limit = "" if source.limit is None else f"LIMIT {source.limit}"
    try:
        if source.format == "jsonl":
            _jsonl(connection, source.files, limit)
        else:
            _relation(connection, source, limit)
    except duckdb.Error as error:
        where = ", ".join(source.files) or "source.sql"
        raise ConfigError(f"source: {where} could not be read: {_short(error)}") from None


def _short(error: duckdb.Error) -> str:
    return " ".join(str(error).split())[:600]


def _jsonl(connection: duckdb.DuckDBPyConnection, files: Sequence[str], limit: str) -> None:
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE raw AS SELECT row_number() OVER () - 1 AS row_id, json FROM "
        f"(SELECT json FROM read_json_objects(?, format='newline_delimited', ignore_errors=true, "
        f"maximum_object_size=33554432) {limit})",
        [list(files)],
    )
    structure = _json_structure(connection)
    _check_names(list(structure))
    columns = f", unnest(json_transform(json, {_string(orjson.dumps(structure).decode())}))" if structure else ""
    good = "json_type(json) = 'OBJECT'"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE keyed AS SELECT row_id, {_KEY.format(content='json::VARCHAR')} AS row_key, json "
        "FROM raw"
    )
    connection.execute(
        "CREATE TABLE source AS SELECT row_id, row_key || '-' || row_number() OVER (PARTITION BY row_key ORDER BY "
        f"row_id) AS row_key, * EXCLUDE (row_id, row_key) FROM (SELECT row_id, coalesce(row_key, 'malformed') AS "
        f"row_key{columns} FROM keyed) ORDER BY row_id"
    )
    connection.execute(
        f"INSERT INTO source_errors SELECT row_id, NULL, CASE WHEN json IS NULL THEN 'not valid JSON' ELSE "
        f"'not a JSON object but ' || lower(json_type(json)) END FROM keyed WHERE NOT coalesce({good}, false)"
    )
    connection.execute("DROP TABLE keyed")
    connection.execute("DROP TABLE raw")
    _locate(connection, files)


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _json_structure(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Each top-level key of the ``raw`` objects, in order of appearance, with a DuckDB type that loses nothing."""
    found = connection.execute(
        "SELECT key, list(DISTINCT kind), max(digits) FROM (SELECT row_id, position, key, json_type(value) AS kind, "
        "CASE WHEN json_type(value) IN ('BIGINT', 'UBIGINT') THEN length(value::VARCHAR) END AS digits FROM "
        "(SELECT row_id, position, key, json_extract(json, '$.\"' || replace(key, '\"', '\\\"') || '\"') AS value FROM "
        "(SELECT row_id, json, unnest(json_keys(json)) AS key, unnest(range(len(json_keys(json)))) AS position FROM "
        "raw WHERE json_type(json) = 'OBJECT'))) GROUP BY key ORDER BY min(row_id), min(position)"
    ).fetchall()
    return {key: _json_column_type(set(kinds), digits or 0) for key, kinds, digits in found}


def _json_column_type(kinds: set[str], digits: int) -> str:
    kinds = kinds - {"NULL"}
    if not kinds or kinds == {"VARCHAR"}:
        return "VARCHAR"
    if kinds == {"BOOLEAN"}:
        return "BOOLEAN"
    if kinds <= {"BIGINT", "UBIGINT"}:
        return "BIGINT" if digits < 19 else "HUGEINT"
    if kinds <= {"BIGINT", "UBIGINT", "DOUBLE"}:
        return "DOUBLE"
    return "JSON"


def _locate(connection: duckdb.DuckDBPyConnection, files: Sequence[str]) -> None:
    """Give malformed rows the line they stand in: the reader passes over blank lines, an editor counts them."""
    bad = {row_id for (row_id,) in connection.execute("SELECT row_id FROM source_errors").fetchall()}
    if not bad:
        return
    row_id = -1
    for file in files:
        if file.endswith((".gz", ".zst")):
            continue  # the message goes without a line number
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row_id += 1
                if row_id in bad:
                    shown = line.strip()[:80].decode("utf-8", "replace")
                    connection.execute(
                        "UPDATE source_errors SET line = ?, error = ? || error || ': ' || ? WHERE row_id = ?",
                        [number, f"{file}, line {number}: ", shown, row_id],
                    )


def _relation(connection: duckdb.DuckDBPyConnection, source: Source, limit: str) -> None:
    parameters: list[object] = [list(source.files)]
    if source.format == "csv":
        relation = "SELECT * FROM read_csv(?, all_varchar=true, header=true, union_by_name=true)"
    elif source.format == "parquet":
        relation = "SELECT * FROM read_parquet(?, union_by_name=true)"
    else:
        relation, parameters = f"SELECT * FROM ({(source.sql or '').strip().rstrip(';')})", []
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE raw AS SELECT row_number() OVER () - 1 AS __row_id, * FROM ({relation} {limit})",
        parameters,
    )
    names = [row[0] for row in connection.execute("DESCRIBE raw").fetchall()][1:]
    _check_names(names)
    columns = ", ".join(quoted(name) for name in names)
    content = f"to_json(struct_pack({', '.join(f'{quoted(name)} := {quoted(name)}' for name in names)}))::VARCHAR"
    connection.execute(
        "CREATE TABLE source AS SELECT row_id, row_key || '-' || row_number() OVER (PARTITION BY row_key ORDER BY "
        f"row_id) AS row_key, {columns} FROM (SELECT __row_id AS row_id, {_KEY.format(content=content)} AS row_key, "
        f"{columns} FROM raw) ORDER BY row_id"
    )
    connection.execute("DROP TABLE raw")


def _check_names(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        lowered = name.lower()
        if lowered in _RESERVED:
            raise ConfigError(
                f"source: a column is called '{name}', which the source table needs for itself. Rename it, or select "
                f'it under another name: source: {{sql: "select {name} as id, … from …"}}.'
            )
        if lowered in seen:
            raise ConfigError(
                f"source: columns '{seen[lowered]}' and '{name}' differ in case only, which SQL cannot tell."
            )
        seen[lowered] = name


def source_columns(connection: duckdb.DuckDBPyConnection) -> list[Column]:
    """The user's columns of ``source``, in order."""
    rows = connection.execute("SELECT column_name, column_type FROM (DESCRIBE source)").fetchall()
    return [Column(name, kind) for name, kind in rows if name not in _RESERVED]
