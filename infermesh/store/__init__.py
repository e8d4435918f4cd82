"""run.duckdb as a run fills it: schema, ingest of a source, pending rows, known answers, the group-commit writer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infermesh.store.database import Connection, RunStore
    from infermesh.store.pending import PendingRows, Row
    from infermesh.store.schema import SOURCE, Column, QueryTable, StageTable
    from infermesh.store.writer import GroupWriter

__all__ = [
    "SOURCE",
    "Column",
    "Connection",
    "GroupWriter",
    "PendingRows",
    "QueryTable",
    "Row",
    "RunStore",
    "StageTable",
]

# Looked up on first use: who only looks for runs' folders (a shell that completes a word) needs no DuckDB.
_HOMES = {
    "Connection": "database",
    "RunStore": "database",
    "PendingRows": "pending",
    "Row": "pending",
    "SOURCE": "schema",
    "Column": "schema",
    "QueryTable": "schema",
    "StageTable": "schema",
    "GroupWriter": "writer",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'infermesh.store' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"infermesh.store.{home}"), name)
    globals()[name] = value
    return value
