"""Runs' databases within one connection: a finished run's file is attached, and a live run's tables are copied."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import duckdb

from infermesh.errors import StoreInUseError
from infermesh.query.reader import RunReader, is_live
from infermesh.store.connection import check_log, log_of, unusable
from infermesh.store.schema import DATABASE, literal, quoted

_COLUMNS = (  # of all tables and views
    "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = current_database() "
    "AND schema_name = 'main' AND NOT internal ORDER BY table_name, column_index"
)


def attach(connection: duckdb.DuckDBPyConnection, path: Path, catalog: str) -> LiveTables | None:
    """Attach a run's database for reading.

    Parameters
    ----------
    catalog
        What to attach it as.

    Returns
    -------
    LiveTables | None
        For a live run the copies of its tables, which are still empty; ``None`` for a file.

    Raises
    ------
    StoreError
        Another process holds the database and does not answer, or it is missing or no DuckDB database.
    """
    try:
        _attach_file(connection, path, catalog)
    except duckdb.Error as error:
        problem = unusable(path, error, done="opened")
        if not (isinstance(problem, StoreInUseError) and path.name == DATABASE and is_live(path.parent)):
            raise problem from None
    else:
        return None
    return LiveTables(connection, path, catalog)


def _attach_file(connection: duckdb.DuckDBPyConnection, path: Path, catalog: str) -> None:
    check_log(log_of(path))
    connection.execute(f"ATTACH {literal(str(path))} AS {quoted(catalog)} (READ_ONLY)")


class LiveTables:
    """Copies of a live run's tables and views in memory, which are empty until they are filled.

    Their rows come over the run's socket, within its limits, and each table's as of its own moment.

    Parameters
    ----------
    catalog
        What the copies are attached as. If the run ends meanwhile, its file takes their place.

    Raises
    ------
    StoreError
        The run does not answer.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, catalog: str) -> None:
        self._connection = connection
        self._path = path
        self._catalog = catalog
        self._filled: set[str] = set()
        self._live = True
        self._reader = RunReader(path.parent)
        try:
            tables: dict[str, list[str]] = {}
            for table, column, kind in self._reader.rows(_COLUMNS):
                tables.setdefault(table, []).append(f"{quoted(column)} {kind}")
            self._tables = {table.lower(): table for table in tables}
            connection.execute(f"ATTACH ':memory:' AS {quoted(catalog)}")
            for table, columns in tables.items():
                connection.execute(f"CREATE TABLE {self._name(table)} ({', '.join(columns)})")
        except BaseException:
            self.close()
            raise

    def fill(self, tables: Iterable[str], columns: Sequence[str] | None = None, where: str = "true") -> None:
        """Fetch the rows of those tables that are still empty; names that are no table are ignored.

        Parameters
        ----------
        columns
            Fetch these columns alone; the others are NULL.
        where
            Fetch the rows alone that meet this condition.

        Raises
        ------
        StoreError
            A table is larger than what a live run sends, or the run does not answer.
        """
        for table in self._empty(tables):
            if not self._live:
                return
            select = "*" if columns is None else ", ".join(quoted(column) for column in columns)
            _, rows = self._reader.prepare(f"SELECT {select} FROM {quoted(table)} WHERE {where}")
            if not self._reader.live:
                self._attach_instead()
                return
            self._connection.execute(f"INSERT INTO {self._name(table)} BY NAME {rows}")
            self._filled.add(table)

    def close(self) -> None:
        """Close the connection to the run; the copies stay."""
        self._reader.close()

    def _empty(self, tables: Iterable[str]) -> Collection[str]:
        found = dict.fromkeys(self._tables[name.lower()] for name in tables if name.lower() in self._tables)
        return [table for table in found if table not in self._filled]

    def _attach_instead(self) -> None:
        """Attach the run's file, now that the run has ended."""
        self._live = False
        self._reader.close()
        self._connection.execute(f"DETACH {quoted(self._catalog)}")
        try:
            _attach_file(self._connection, self._path, self._catalog)
        except duckdb.Error as error:
            raise unusable(self._path, error, done="opened") from None

    def _name(self, table: str) -> str:
        return f"{quoted(self._catalog)}.{quoted(table)}"
