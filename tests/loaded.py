"""A source as it is loaded, for tests of readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infermesh.config.schema import SourceConfig, StoreConfig
from infermesh.inputs.sources import resolve_source
from infermesh.store import RunStore, StageTable
from tests.support import RECORD

TABLE = StageTable("stage", ())


@dataclass
class Loaded:
    """A loaded source: column → type, the rows as templates see them, keys, and row number → what is wrong with it."""

    types: dict[str, str]
    rows: list[dict[str, Any]]
    keys: list[str]
    errors: dict[int, str]

    @property
    def columns(self) -> list[str]:
        return list(self.types)


@contextmanager
def opened(root: Path, store_config: StoreConfig | None = None) -> Iterator[RunStore]:
    store = RunStore(root / "run.duckdb", store_config or StoreConfig())
    try:
        yield store
    finally:
        store.close()


def load(
    root: Path, path: str | None = "rows.jsonl", *, store_config: StoreConfig | None = None, **config: Any
) -> Loaded:
    """Load a source into ``root/run.duckdb``, a new one or the one that is there."""
    with opened(root, store_config) as store:
        store.load(resolve_source(SourceConfig(path=path, **config), [root]), [TABLE], RECORD, check=lambda *_: None)
        reader = store.reader({}, stale=(), keep_errors=False)
        stored = [row for chunk in reader.chunks for row in reader.read(chunk)]
        types = {column.name: column.type for column in store.source_columns}
        # Not through a connection of its own: opening the file again for each of these tests would take seconds.
        keys = dict(store._connection.execute("SELECT row_id, row_key FROM source").fetchall())
    return Loaded(
        types,
        [row.context for row in stored],
        [keys[row.row_id] for row in stored],
        {number: row.error for number, row in enumerate(stored) if row.error is not None},
    )


def load_text(root: Path, text: str | bytes, name: str = "rows.jsonl", **config: Any) -> Loaded:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(root, name, **config)
