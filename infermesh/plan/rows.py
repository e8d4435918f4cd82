"""The rows that a run would look at, without touching the run.

The source is loaded, or an existing run's database copied, into a temporary folder, where the store's own code makes of
it what a session of the run would find.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import orjson

from infermesh.config import Experiment
from infermesh.execution import DATABASE
from infermesh.sources import resolve
from infermesh.stages import Stage
from infermesh.stages.build import StageGraph
from infermesh.store import Column, RunStore, StoredRow
from infermesh.store.database import CHUNK, connect, utcnow
from infermesh.store.filter import RowFilter, column_references
from infermesh.store.survey import Survey

__all__ = ["PlannedRows"]


class PlannedRows:
    """A run's rows as its next session would find them, from a copy of what is there."""

    def __init__(self, experiment: Experiment, graph: StageGraph, folder: Path, place: Path) -> None:
        self._experiment = experiment
        self._graph = graph
        self.resumed = (folder / DATABASE).exists()
        if self.resumed:
            with connect(folder / DATABASE, read_only=True):  # whoever is at it would write while it is copied
                for name in (DATABASE, f"{DATABASE}.wal"):
                    if (folder / name).exists():
                        shutil.copyfile(folder / name, place / name)
        self._store = RunStore(place / DATABASE, experiment.store)
        self.filters: dict[str, RowFilter] = {}
        self.stale: set[str] = set()

    def prepare(self, roots: Sequence[Path]) -> None:
        """Load the source, or take in what has changed of it; find what an edit has touched."""
        store, graph = self._store, self._graph
        if not store.is_new:
            before = orjson.loads(store.run_value("signatures") or "{}")
            self.stale = {name for name, now in graph.signatures.items() if before.get(name, now) != now}
        record = {"run_id": "plan", "experiment": self._experiment.name, "started_at": utcnow(), "overrides": None}
        tables = [stage.table for stage in graph.stages.values()]
        store.prepare(resolve(self._experiment.source, roots), tables, record, check=self._check)
        self.survey = Survey(store.cursor(), keep_errors=self._experiment.keep_errors)
        self.total = store.total

    def _check(self, columns: Sequence[Column]) -> None:
        if not columns:
            return
        self._graph.check_columns(columns)
        for name, stage in self._graph.stages.items():
            if stage.where is not None:
                upstream = {other: self._graph.stages[other].table for other in self._graph.requires[name]}
                self.filters[name] = RowFilter(stage.where, f"stages.{name}.where", columns, upstream)

    def of_source(self, stage: Stage) -> str | None:
        """A stage's condition where it names columns of the source alone."""
        if stage.where is None or self.of_upstream(stage):
            return None
        return stage.where

    def of_upstream(self, stage: Stage) -> bool:
        """Whether a stage's condition depends on other stages' answers."""
        if stage.where is None:
            return False
        named = {reference[0] for reference in column_references(stage.where, f"stages.{stage.name}.where")}
        return bool(named & self._graph.stages.keys())

    def pending(self, stage: Stage) -> int | None:
        """Rows that the stage has to look at."""
        return self.survey.pending(stage.name, stale=stage.name in self.stale, where=self.of_source(stage))

    def sample(self, most: int) -> list[StoredRow]:
        """Rows with something to do, for each stage some that are evenly spread over its own."""
        wanted: set[int] = set()
        for name, stage in self._graph.stages.items():
            stale, where = name in self.stale, self.of_source(stage)
            wanted.update(self.survey.spread(name, most, stale=stale, where=where))
        reader = self._store.reader(self._graph.needed, stale=self.stale, keep_errors=self._experiment.keep_errors)
        rows = []
        for chunk in sorted({row_id // CHUNK for row_id in wanted}):
            rows += [row for row in reader.read(chunk) if row.row_id in wanted]
        return rows

    def close(self) -> None:
        """Close what was opened."""
        for condition in self.filters.values():
            condition.close()
        self._store.close()
