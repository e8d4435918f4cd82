"""run.duckdb: schema, ingest of a source, group-commit writer, queries. Only this folder knows SQL."""

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
