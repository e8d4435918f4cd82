"""The rows that a run's next session would find, without changing the run.

The source is loaded into a database in a temporary folder; an existing run's database is copied there first. The rest
is the store's own code.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from infermesh.config.schema import Experiment
from infermesh.errors import StoreError
from infermesh.inputs.sources import resolve_source
from infermesh.query.survey import Survey
from infermesh.stages import Stage
from infermesh.stages.graph import Pipeline, Wave
from infermesh.store import SOURCE, Column, Connection, Row, RunStore
from infermesh.store.connection import connect
from infermesh.store.database import utcnow
from infermesh.store.filter import RowFilter, column_references
from infermesh.store.known import KnownAnswers
from infermesh.store.schema import DATABASE
from infermesh.store.whose import refuse_other

__all__ = ["PlannedRows"]


class PlannedRows:
    """A run's rows as its next session would find them, in a copy of its database.

    Attributes
    ----------
    resumed
        Whether the folder holds a run.
    filters, stale, known
        As for :class:`~infermesh.runs.runner.Runner`; set by :meth:`load`.
    origins
        ``source`` and the sql stages, each with its columns; set by :meth:`load`.
    """

    def __init__(self, experiment: Experiment, pipeline: Pipeline, folder: Path, place: Path) -> None:
        self._experiment = experiment
        self._pipeline = pipeline
        self._folder = folder
        self.resumed = (folder / DATABASE).exists()
        if self.resumed:
            # Holding a read-only connection keeps other processes from writing while the file is copied.
            with connect(folder / DATABASE, read_only=True):
                for name in (DATABASE, f"{DATABASE}.wal"):
                    if (folder / name).exists():
                        shutil.copyfile(folder / name, place / name)
        try:
            self._store = RunStore(place / DATABASE, experiment.store)
        except StoreError as error:  # of the copy: the file is named that the user knows
            raise type(error)(str(error).replace(str(place), str(folder))) from None
        self._made = {SOURCE}
        self.filters: dict[str, RowFilter] = {}
        self.stale: set[str] = set()
        self.origins: Mapping[str, Sequence[Column]] = {}
        self.known: KnownAnswers | None = None

    def load(self, roots: Sequence[Path], note: Callable[[str], None], overrides: Sequence[str] | None = None) -> None:
        """Load the source, or merge its changes into the copy; find the stale stages."""
        store, pipeline = self._store, self._pipeline
        refuse_other(store, self._experiment.name, overrides, self._folder)
        if not store.is_new:
            before = orjson.loads(store.run_value("signatures") or "{}")
            self.stale = {name for name, now in pipeline.signatures.items() if before.get(name, now) != now}
        record = {"run_id": "plan", "experiment": self._experiment.name, "started_at": utcnow()}
        tables = [stage.table for stage in pipeline.stages.values()]
        queries = list(pipeline.queries.values())
        store.load(resolve_source(self._experiment.source, roots), tables, record, queries=queries, check=self._check)
        self.survey = Survey(store.cursor(), keep_errors=self._experiment.keep_errors)
        self.total = store.total()
        self.known = KnownAnswers.for_run(self._experiment, self._folder, store, tables, note)

    def _check(self, connection: Connection, origins: Mapping[str, Sequence[Column]]) -> None:
        self._pipeline.check_columns(origins)
        self.origins = origins
        self.filters = self._pipeline.filters(origins)

    def make_rows(self, wave: Wave) -> bool:
        """Make a wave's rows and return True, if that needs no answer that is still to come; else return False.

        The source's rows are there. A sql stage's query can run if all that it reads is complete: stages without
        pending rows, and origins that were made.

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

    def row_condition(self, stage: Stage) -> str | None:
        """A stage's ``where`` if it reads columns of its rows alone; ``None`` if it has none, or reads answers."""
        return None if stage.where is None or self.depends_on_answers(stage) else stage.where

    def depends_on_answers(self, stage: Stage) -> bool:
        """Whether a stage's ``where`` reads other stages' answers."""
        if stage.where is None:
            return False
        named = {reference[0] for reference in column_references(stage.where, f"stages.{stage.name}.where")}
        return bool(named & self._pipeline.stages.keys())

    def pending(self, stage: Stage) -> int | None:
        """Count the stage's pending rows; ``None`` if DuckDB cannot count the rows that match its ``where``."""
        return self.survey.pending(stage.table, stale=stage.name in self.stale, where=self.row_condition(stage))

    def all_left_out(self, stage: Stage) -> int:
        """How many rows are left for a stage, where its ``where`` leaves out all of them; else 0."""
        if self.row_condition(stage) is None or self.pending(stage) != 0:
            return 0
        return self.survey.pending(stage.table, stale=stage.name in self.stale, where=None) or 0

    def knows(self, stage: Stage) -> bool:
        """Whether a stage has known answers that its requests may find."""
        return self.known is not None and self.known.knows(stage.name)

    def sample(self, wave: Wave, most: int) -> list[Row]:
        """Sample pending rows: for each stage up to ``most``, evenly spread over its pending rows."""
        wanted: set[int] = set()
        for name, stage in wave.graph.stages.items():
            where = self.row_condition(stage)
            wanted.update(self.survey.spread(stage.table, most, stale=name in self.stale, where=where))
        keep_errors = self._experiment.keep_errors
        reader = self._store.reader(wave.graph.needed, origin=wave.origin, stale=self.stale, keep_errors=keep_errors)
        rows = []
        for chunk in sorted({row_id // reader.size for row_id in wanted}):
            rows += [row for row in reader.read(chunk) if row.row_id in wanted]
        return rows

    def close(self) -> None:
        for condition in self.filters.values():
            condition.close()
        if self.known is not None:
            self.known.close()
        self._store.close()
