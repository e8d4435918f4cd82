"""Change a run's tables to what the declaration says now: changed stages, changed rows, the rows of sql stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import orjson

from infermesh.errors import ConfigError
from infermesh.hints import one_line
from infermesh.store.connection import open_duckdb
from infermesh.store.ingest import check_names, row_columns
from infermesh.store.schema import (
    ATTEMPTS_LOG,
    SOURCE,
    Column,
    QueryTable,
    StageTable,
    literal,
    not_retired,
    quoted,
    retired,
    sole_requests,
)


def with_log(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the table ``attempts`` of schema 1 or 2 the log that it is now, beside the view of that name."""
    if _count(connection, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'attempts'"):
        connection.execute(f"ALTER TABLE attempts RENAME TO {ATTEMPTS_LOG}")


def telling_tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The stages' tables whose rows tell of their requests, those of stages that are no longer declared as well."""
    rows = connection.execute(
        "SELECT table_name FROM duckdb_columns() WHERE column_name IN ('sole_request', 'row_key') GROUP BY table_name "
        "HAVING bool_and(column_name = 'sole_request') ORDER BY ALL"
    ).fetchall()
    return [name for (name,) in rows]


def put_aside(
    connection: duckdb.DuckDBPyConnection, tables: Sequence[StageTable], queries: Sequence[QueryTable]
) -> None:
    """Rename the table of each stage whose kind has changed, so that the stage gets a new one and nothing is lost."""
    wanted = {table.name: {column.name for column in table.columns} for table in tables}
    for name in (*wanted, *(query.name for query in queries)):
        found = {
            column
            for (column,) in connection.execute(
                "SELECT column_name FROM duckdb_columns() WHERE table_name = ?", [name]
            ).fetchall()
        }
        fits = found <= wanted[name] if name in wanted else not found or "row_key" in found
        if not fits:
            for view in ("results", "progress"):
                connection.execute(f"DROP VIEW IF EXISTS {view}")
            if name in wanted and "sole_request" in found:  # under its name, which the stage's new rows have as well
                connection.execute(f"INSERT INTO {ATTEMPTS_LOG} {sole_requests(name)}")
                connection.execute(f"ALTER TABLE {quoted(name)} DROP COLUMN sole_request")
            old = f"{name}_until_{datetime.now(UTC):%Y%m%d_%H%M%S}"
            taken = _count(connection, "SELECT count(*) FROM duckdb_tables() WHERE starts_with(table_name, ?)", [old])
            old += f"_{taken + 1}" if taken else ""  # twice in a second
            connection.execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(old)}")


def fit(connection: duckdb.DuckDBPyConnection, table: StageTable) -> None:
    """Give a stage's table the columns that the present declaration wants."""
    name = quoted(table.name)
    present = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()]
    if present == [column.name for column in table.columns]:
        return
    before = quoted(f"{table.name}__before")
    values = [quoted(column.name) if column.name in present else "NULL" for column in table.columns]
    connection.execute(f"ALTER TABLE {name} RENAME TO {before}")
    connection.execute(table.ddl)
    connection.execute(f"INSERT INTO {name} SELECT {', '.join(values)} FROM {before}")
    connection.execute(f"DROP TABLE {before}")


def merge(connection: duckdb.DuckDBPyConnection, table: str, now: str) -> tuple[int, int]:
    """Bring ``table`` to the rows of the table ``now``, and drop that one.

    Rows are matched by ``row_key``. New rows are added at the end, and rows that are gone are retired. A row that is
    matched has the same content, so it stays as it is.

    Returns
    -------
    tuple[int, int]
        How many rows are new or back again, and how many are gone.
    """
    name, fresh = quoted(table), quoted(now)
    was_live = _count(connection, f"SELECT count(*) FROM {name} s WHERE {not_retired(table)}")
    gone = _count(
        connection,
        f"SELECT count(*) FROM {name} s WHERE {not_retired(table)} AND NOT EXISTS "
        f"(SELECT 1 FROM {fresh} n WHERE n.row_key = s.row_key)",
    )
    _widen(connection, table, row_columns(connection, now))
    connection.execute("DELETE FROM retired WHERE origin = ?", [table])
    connection.execute(
        f"INSERT INTO retired SELECT row_id, {literal(table)} FROM {name} s WHERE NOT EXISTS "
        f"(SELECT 1 FROM {fresh} n WHERE n.row_key = s.row_key)"
    )
    connection.execute(
        f"INSERT INTO {name} BY NAME SELECT (SELECT coalesce(max(row_id), -1) FROM {name}) + row_number() OVER () "
        f"AS row_id, n.* EXCLUDE (row_id) FROM {fresh} n WHERE NOT EXISTS (SELECT 1 FROM {name} s WHERE "
        f"s.row_key = n.row_key)"
    )
    if table == SOURCE:
        connection.execute(
            f"UPDATE source_errors SET row_id = s.row_id FROM {fresh} n, source s "
            "WHERE n.row_id = source_errors.row_id AND s.row_key = n.row_key"
        )
    total = _count(connection, f"SELECT count(*) FROM {name} s WHERE {not_retired(table)}")
    connection.execute(f"DROP TABLE {fresh}")
    return total - (was_live - gone), gone


def disown(connection: duckdb.DuckDBPyConnection, stage: str, origin: str, where: str) -> None:
    """Keep rows that are done again from getting the same answers once more.

    A row that meets the condition may have its answer from a retired row. That one loses its ``request_key``, by which
    its answer is found; the answer itself stays. This is stored, so it holds even if the session is killed before the
    rows are sent.
    """
    connection.execute(
        f"UPDATE {quoted(stage)} AS s SET request_key = NULL WHERE {retired(origin)} AND (request_key, finished_at) IN "
        f"(SELECT (request_key, finished_at) FROM {quoted(stage)} s WHERE ({where}\n) AND s.status = 'done' AND "
        f"s.reused_from = (SELECT run_id FROM run) AND {not_retired(origin)})"
    )


def _count(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> int:
    row = connection.execute(sql, list(parameters)).fetchone()
    return int(row[0]) if row else 0


def _widen(connection: duckdb.DuckDBPyConnection, table: str, now: Sequence[Column]) -> None:
    """Add the columns that a table of rows does not have yet, and change types that are others now."""
    before = {column.name: column.type for column in row_columns(connection, table)}
    table = quoted(table)
    for column in now:
        name, old = quoted(column.name), before.get(column.name)
        if old is None:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column.ddl}")
        elif old != column.type:
            if column.type == "JSON":
                value = f"to_json({name})"
            else:
                value = f"{name} ->> '$'" if old == "JSON" else name
                value = f"TRY_CAST({value} AS {column.type})"
            connection.execute(f"ALTER TABLE {table} ALTER COLUMN {name} TYPE {column.type} USING {value}")


def tables_named(query: str, path: str) -> set[str]:
    """The names of all tables in a query.

    Raises
    ------
    ConfigError
        It is not one SELECT.
    """
    with open_duckdb() as connection:
        row = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    tree = orjson.loads(row[0] if row else b"{}")
    if tree.get("error"):
        raise ConfigError(f"{path}: not a SELECT: {tree.get('error_message')}")
    if len(tree["statements"]) != 1:
        raise ConfigError(f"{path}: expected one SELECT, got {len(tree['statements'])} statements")
    return set(_tables(tree))


def _tables(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if node.get("type") == "BASE_TABLE":
            yield node["table_name"]
        for value in node.values():
            yield from _tables(value)
    elif isinstance(node, list):
        for value in node:
            yield from _tables(value)


def wrapped(query: QueryTable, origins: Mapping[str, str]) -> str:
    """The query of a sql stage, over tables without their retired rows, and without what only we need of them."""
    stages = {name for name, origin in origins.items() if name != origin}
    named = ", ".join(
        f"{quoted(name)} AS (SELECT *{' EXCLUDE (sole_request)' if name in stages else ''} FROM main.{quoted(name)} s "
        f"WHERE {not_retired(origins.get(name, SOURCE))})"
        for name in query.reads
    )
    return f"{f'WITH {named} ' if named else ''}SELECT * FROM ({query.query}\n)"


def stamp_of(connection: duckdb.DuckDBPyConnection, query: QueryTable, origins: Mapping[str, str]) -> str:
    """A text that changes when the query changes, or the rows of a table that it names."""
    parts = [query.query]
    for name in query.reads:
        origin = origins.get(name, SOURCE)
        changing = "row_key" if name == origin else "status, finished_at, request_key"
        row = connection.execute(
            f"SELECT count(*), bit_xor(hash(row_id, {changing})) FROM {quoted(name)} s WHERE {not_retired(origin)}"
        ).fetchone()
        parts.append(f"{name}|{row}")
    return "\n".join(parts)


def outline(connection: duckdb.DuckDBPyConnection, query: QueryTable, origins: Mapping[str, str]) -> list[Column]:
    """The columns of a sql stage; its table is made, without rows, if there is none yet.

    Raises
    ------
    ConfigError
        The query does not bind: it names a table or column that is not there.
    """
    path = f"stages.{query.name}.query"
    try:
        found = connection.execute(f"DESCRIBE {wrapped(query, origins)}").fetchall()
    except duckdb.Error as error:
        tables = ", ".join((SOURCE, *(name for name in origins if name != query.name)))
        raise ConfigError(f"{path}: {one_line(error, 600)} (tables: {tables})") from None
    columns = [Column(row[0], row[1]) for row in found]
    check_names([column.name for column in columns], path)
    exists = _count(connection, "SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [query.name])
    if not exists:
        ddl = ", ".join(("row_id BIGINT", "row_key VARCHAR", *(column.ddl for column in columns)))
        connection.execute(f"CREATE TABLE {quoted(query.name)} ({ddl})")
    else:
        _widen(connection, query.name, columns)
    return columns


def stage_tables(names: Collection[str], stages: Collection[str]) -> tuple[str, ...]:
    """Those of the names that are the source or a stage, spelt as they are declared."""
    spelt = {name.lower(): name for name in (SOURCE, *stages)}
    return tuple(sorted({spelt[name.lower()] for name in names if name.lower() in spelt}))
