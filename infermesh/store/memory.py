"""Memory for long rows: DuckDB works on 2,048 rows at a time, and cannot spill those to disk.

``store.memory_limit`` is enough for rows of some kilobytes. If it is not, the limit is raised, so that the run goes on:
2,048 rows of 100 KB are 200 MB, and reading JSON takes eight times as much.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import duckdb

from infermesh.errors import StoreError
from infermesh.hints import one_line
from infermesh.store.connection import is_short_of_memory, open_duckdb

VECTOR = 2048  # rows
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))}
_Result = TypeVar("_Result")
logger = logging.getLogger("infermesh")


def with_room(connection: duckdb.DuckDBPyConnection, operation: Callable[[], _Result]) -> _Result:
    """Do something with the database; if its memory is not enough, raise the limit and try again.

    Parameters
    ----------
    operation
        It has to end every transaction that it begins, also when it fails.

    Raises
    ------
    StoreError
        The memory is not enough, and the limit is as high as this machine allows.
    KeyboardInterrupt
        Ctrl-C was pressed meanwhile.
    """
    while True:
        try:
            return operation()
        except RuntimeError as error:
            if str(error) == "Query interrupted":  # that is how DuckDB tells of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        except duckdb.Error as error:
            if not is_short_of_memory(error):
                raise
            if not more_room(connection):
                short = one_line(str(error).split("Possible solutions:")[0], 300)
                raise StoreError(
                    f"the rows are too long for this machine's memory, or a query takes more than it has: DuckDB "
                    f"works on {VECTOR:,} rows at a time. Keep long values in files and name the files in the rows, or "
                    f"use a larger machine. ({short})"
                ) from None


def more_room(connection: duckdb.DuckDBPyConnection) -> bool:
    """Double the memory limit of the connection's database; false if it is as high as it may be.

    The most is DuckDB's default, 80 % of the machine's memory.
    """
    now, most = memory_limit(connection), _most()
    if now > 0.9 * most:  # the setting is read back rounded
        return False
    raised = min(2 * now, most)
    connection.execute(f"SET memory_limit = '{raised}B'")
    logger.info(
        "DuckDB's memory limit is %.0f MiB now, as the rows are long. Set store.memory_limit to start with it",
        raised / (1 << 20),
    )
    return True


def fetch(connection: duckdb.DuckDBPyConnection, query: str, parameters: Any = None) -> list[Any]:
    """All rows of a query, with :func:`with_room`; not for use within a transaction."""
    return with_room(connection, lambda: connection.execute(query, parameters).fetchall())


def memory_limit(connection: duckdb.DuckDBPyConnection) -> int:
    """The memory limit of the connection's database, in bytes."""
    number, unit = connection.execute("SELECT current_setting('memory_limit')").fetchall()[0][0].split()
    return int(float(number) * _UNITS[unit])


def set_limit(connection: duckdb.DuckDBPyConnection, limit: str) -> None:
    """Set the memory limit, such as ``256MB``.

    If DuckDB holds more than that, it frees what it can and keeps the old limit.
    """
    with contextlib.suppress(duckdb.Error):
        connection.execute(f"SET memory_limit = '{limit}'")


@contextlib.contextmanager
def all_memory(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Within the block, the limit is as high as it may be: for what must not fail for want of memory.

    A checkpoint is that: DuckDB gives the database up where one fails.
    """
    limit = memory_limit(connection)
    connection.execute("RESET memory_limit")
    try:
        yield
    finally:
        set_limit(connection, f"{limit}B")


def drop_cache(connection: duckdb.DuckDBPyConnection) -> None:
    """Free what DuckDB has cached; a closed connection is ignored."""
    with contextlib.suppress(duckdb.Error):
        limit = memory_limit(connection)
        set_limit(connection, "1MB")
        set_limit(connection, f"{limit}B")


def _most() -> int:
    with open_duckdb() as connection:
        return memory_limit(connection)
