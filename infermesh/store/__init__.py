"""run.duckdb: the schema, the ingest of a source, the group-commit writer and the queries. Only this folder knows SQL."""

from infermesh.store.database import RunStore, StoredRow
from infermesh.store.schema import Column, StageTable
from infermesh.store.writer import GroupWriter

__all__ = ["Column", "GroupWriter", "RunStore", "StageTable", "StoredRow"]
