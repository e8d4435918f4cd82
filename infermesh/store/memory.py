"""Memory for long rows: DuckDB handles 2,048 of them at a time, and cannot spill what it has in its hands.

``store.memory_limit`` is enough for rows of some kilobytes. Where it is not, the limit is raised rather than the run
lost: 2,048 rows of 100 KB are 200 MB, and reading JSON takes that eight times.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import duckdb

from infermesh.errors import StoreError

VECTOR = 2048  # rows
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))}
_Result = TypeVar("_Result")
logger = logging.getLogger("infermesh")


def with_room(connection: duckdb.DuckDBPyConnection, operation: Callable[[], _Result]) -> _Result:
    """Do something with the database; where its memory is not enough, raise the limit and do it again.

    ``operation`` ends the transactions that it begins, also when it fails.

    Raises
    ------
    StoreError
        DuckDB has as much as it may take on this machine.
    """
    while True:
        try:
            return operation()
        except duckdb.OutOfMemoryException as error:
            if not more_room(connection):
                short = " ".join(str(error).split("Possible solutions:")[0].split())[:300]
                raise StoreError(
                    f"the rows are too long for this machine's memory, or a query takes more than it has: DuckDB "
                    f"handles {VECTOR:,} rows at a time. Keep long values in files and name the files in the rows, or "
                    f"use a larger machine. ({short})"
                ) from None


def more_room(connection: duckdb.DuckDBPyConnection) -> bool:
    """Double the limit of the connection's database, up to DuckDB's default of 80 % of the machine's memory."""
    now, most = memory_limit(connection), _most()
    if now > 0.9 * most:  # the setting is read back rounded
        return False
    raised = min(2 * now, most)
    connection.execute(f"SET memory_limit = '{raised}B'")
    logger.info(
        "DuckDB may take %.0f MiB now: the rows are long. Set store.memory_limit to start there", raised / (1 << 20)
    )
    return True


def fetch(connection: duckdb.DuckDBPyConnection, query: str, parameters: Any = None) -> list[Any]:
    """All rows of a query outside of a transaction, see :func:`with_room`."""
    return with_room(connection, lambda: connection.execute(query, parameters).fetchall())


def memory_limit(connection: duckdb.DuckDBPyConnection) -> int:
    """The limit of the connection's database, in bytes."""
    number, unit = connection.execute("SELECT current_setting('memory_limit')").fetchall()[0][0].split()
    return int(float(number) * _UNITS[unit])


def set_limit(connection: duckdb.DuckDBPyConnection, limit: str) -> None:
    """Set the limit, if what DuckDB holds fits into it; else it lets go of all it can and keeps the one it has."""
    with contextlib.suppress(duckdb.Error):
        connection.execute(f"SET memory_limit = '{limit}'")


def drop_cache(connection: duckdb.DuckDBPyConnection) -> None:
    """Let go of what is cached; nothing happens to a connection that is closed."""
    with contextlib.suppress(duckdb.Error):
        limit = memory_limit(connection)
        set_limit(connection, "1MB")
        set_limit(connection, f"{limit}B")


def _most() -> int:
    with duckdb.connect() as connection:
        return memory_limit(connection)
