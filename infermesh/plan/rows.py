"""The rows that a run would look at, without touching the run.

The source is loaded, or an existing run's database copied, into a temporary folder, where the store's own code makes of
it what a session of the run would find.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from infermesh.config.schema import Experiment
from infermesh.inputs.sources import resolve
from infermesh.query.survey import Survey
from infermesh.stages import Stage
from infermesh.stages.graph import Pipeline, Wave
from infermesh.store import SOURCE, Column, Connection, Row, RunStore
from infermesh.store.database import connect, utcnow
from infermesh.store.filter import RowFilter, column_references
from infermesh.store.known import KnownAnswers
from infermesh.store.pending import CHUNK
from infermesh.store.schema import DATABASE

__all__ = ["PlannedRows"]


class PlannedRows:
    """A run's rows as its next session would find them, from a copy of what is there."""

    def __init__(self, experiment: Experiment, pipeline: Pipeline, folder: Path, place: Path) -> None:
        self._experiment = experiment
        self._pipeline = pipeline
        self._folder = folder
        self.resumed = (folder / DATABASE).exists()
        if self.resumed:
            with connect(folder / DATABASE, read_only=True):  # whoever is at it would write while it is copied
                for name in (DATABASE, f"{DATABASE}.wal"):
                    if (folder / name).exists():
                        shutil.copyfile(folder / name, place / name)
        self._store = RunStore(place / DATABASE, experiment.store)
        self._made = {SOURCE}
        self.filters: dict[str, RowFilter] = {}
        self.stale: set[str] = set()
        self.known: KnownAnswers | None = None

    def prepare(self, roots: Sequence[Path], note: Callable[[str], None]) -> None:
        """Load the source, or take in what has changed of it; find what an edit has touched."""
        store, pipeline = self._store, self._pipeline
        if not store.is_new:
            before = orjson.loads(store.run_value("signatures") or "{}")
            self.stale = {name for name, now in pipeline.signatures.items() if before.get(name, now) != now}
        record = {"run_id": "plan", "experiment": self._experiment.name, "started_at": utcnow()}
        tables = [stage.table for stage in pipeline.stages.values()]
        queries = list(pipeline.queries.values())
        store.prepare(resolve(self._experiment.source, roots), tables, record, queries=queries, check=self._check)
        self.survey = Survey(store.cursor(), keep_errors=self._experiment.keep_errors)
        self.total = store.total()
        self.known = KnownAnswers.for_run(self._experiment, self._folder, store, tables, note)

    def _check(self, connection: Connection, origins: Mapping[str, Sequence[Column]]) -> None:
        self._pipeline.check_columns(origins)
        self.filters = self._pipeline.filters(origins)

    def reach(self, wave: Wave) -> bool:
        """Make a wave's rows, where that takes no new answers: its query reads what is there.

        Raises
        ------
        StoreError
            The query fails.
        """
        query = wave.query
        if query is not None and self._made.issuperset(query.reads):
            self._store.materialize(query)
            self._made.add(query.name)
        if wave.origin not in self._made:
            return False
        made = {name for name, stage in wave.graph.stages.items() if self.pending(stage) == 0}
        self._made |= made
        if made != wave.graph.stages.keys() and self.known is not None:
            self.known.collect_retired(wave.graph.stages)
        return True

    def of_rows(self, stage: Stage) -> str | None:
        """A stage's condition where it names columns of its rows alone."""
        return None if stage.where is None or self.of_answers(stage) else stage.where

    def of_answers(self, stage: Stage) -> bool:
        """Whether a stage's condition depends on other stages' answers."""
        if stage.where is None:
            return False
        named = {reference[0] for reference in column_references(stage.where, f"stages.{stage.name}.where")}
        return bool(named & self._pipeline.stages.keys())

    def pending(self, stage: Stage) -> int | None:
        """Rows that the stage has to look at."""
        return self.survey.pending(stage.table, stale=stage.name in self.stale, where=self.of_rows(stage))

    def knows(self, stage: Stage) -> bool:
        """Whether there are answers that a stage's requests may find."""
        return self.known is not None and self.known.knows(stage.name)

    def sample(self, wave: Wave, most: int) -> list[Row]:
        """Rows with something to do, for each stage some that are evenly spread over its own."""
        wanted: set[int] = set()
        for name, stage in wave.graph.stages.items():
            wanted.update(self.survey.spread(stage.table, most, stale=name in self.stale, where=self.of_rows(stage)))
        keep_errors = self._experiment.keep_errors
        reader = self._store.reader(wave.graph.needed, origin=wave.origin, stale=self.stale, keep_errors=keep_errors)
        rows = []
        for chunk in sorted({row_id // CHUNK for row_id in wanted}):
            rows += [row for row in reader.read(chunk) if row.row_id in wanted]
        return rows

    def close(self) -> None:
        """Close what was opened."""
        for condition in self.filters.values():
            condition.close()
        if self.known is not None:
            self.known.close()
        self._store.close()
