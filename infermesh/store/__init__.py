"""run.duckdb: schema, ingest of a source, group-commit writer, queries. Only this folder knows SQL."""

from infermesh.store.database import RunStore, StoredRow
from infermesh.store.schema import Column, StageTable
from infermesh.store.writer import GroupWriter

__all__ = ["Column", "GroupWriter", "RunStore", "StageTable", "StoredRow"]
