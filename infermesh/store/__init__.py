"""run.duckdb as a run fills it: schema, ingest of a source, pending rows, known answers, the group-commit writer."""

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
