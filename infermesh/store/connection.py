"""The one place that opens DuckDB: what holds for every connection is set here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from infermesh.store.schema import SETTINGS

__all__ = ["open_duckdb"]


def open_duckdb(
    path: str = ":memory:", config: Mapping[str, Any] | None = None, *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """Open a database, or one in memory. Its times with a zone are UTC's.

    So the same rows give the same answers, prompts and files on every machine.

    Raises
    ------
    duckdb.Error
        It cannot be opened.
    """
    connection = duckdb.connect(path, read_only=read_only, config={**SETTINGS, **(config or {})})
    # GLOBAL, since a cursor does not take the plain setting with it. In ``config`` DuckDB does not know it yet.
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    return connection
