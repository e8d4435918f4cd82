"""The table ``changes``: what was changed by hand while the run went on, once anything was."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import duckdb

__all__ = ["CHANGES", "keep_config", "note_changes"]

CHANGES = "changes"
_DDL = f"CREATE TABLE IF NOT EXISTS {CHANGES} (changed_at TIMESTAMP, what VARCHAR, old VARCHAR, new VARCHAR)"


def note_changes(
    connection: duckdb.DuckDBPyConnection, at: datetime, rows: Sequence[tuple[str, str | None, str | None]]
) -> None:
    """Add a row for each change: what, from, to; ``None`` is null. Blocks, in a transaction of its own.

    Parameters
    ----------
    at
        In UTC, without a time zone.
    """
    connection.execute(_DDL)
    connection.executemany(f"INSERT INTO {CHANGES} VALUES (?, ?, ?, ?)", [(at, *row) for row in rows])


def keep_config(connection: duckdb.DuckDBPyConnection, config: str, config_hash: str) -> None:
    """Let the run's next session go by another config: its JSON, and its hash."""
    connection.execute("UPDATE run SET config = ?, config_hash = ?", [config, config_hash])
