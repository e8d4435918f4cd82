"""Answers of earlier runs, found by ``request_key``, so that an identical request is not sent again (``reuse``)."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from infermesh.config.schema import Experiment
from infermesh.errors import ConfigError, StoreError
from infermesh.store.database import RunStore
from infermesh.store.folders import run_folders
from infermesh.store.memory import fetch
from infermesh.store.schema import DATABASE, StageTable, literal, quoted

# The columns of an answer that are copied besides the stage's outputs. Attempts, costs and times stay those of the run
# that sent the request.
_LATER = {"reused_from", "invalid"}  # columns that the runs of former versions do not have
CARRIED = ("model_id", "request_id", "prompt_tokens", "completion_tokens")


class KnownAnswer(NamedTuple):
    """A stored answer to the same request.

    ``outputs`` are the stage's output columns, ``run_id`` the run that sent the request. ``finished_at`` is set for an
    answer of this run's own, which is handed out once; see :class:`~infermesh.store.known.RetiredAnswers`.
    """

    outputs: tuple[Any, ...]
    model_id: str | None
    request_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    run_id: str
    finished_at: datetime | None = None


class EarlierAnswers:
    """The answers of earlier runs, by stage and ``request_key``. Each may be used for any number of rows.

    They are copied into temporary tables, which DuckDB keeps within its memory limit and spills to disk. A lookup scans
    the key column alone.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[StageTable]) -> None:
        self._connection = connection
        # Stages look up in several threads; only this connection sees its temporary tables.
        self._lock = threading.Lock()
        self._tables = {table.name: table for table in tables}
        self.found: dict[str, int] = dict.fromkeys(self._tables, 0)
        self.taken: dict[str, int] = {}  # table of earlier runs → its answers that some stage can use

    @classmethod
    def for_run(
        cls,
        experiment: Experiment,
        folder: Path,
        store: RunStore,
        tables: Sequence[StageTable],
        note: Callable[[str], None],
    ) -> EarlierAnswers | None:
        """Copy the answers that the experiment's ``reuse`` names; ``None`` if there are none.

        Raises
        ------
        ConfigError
            ``reuse`` names a folder that holds no run.
        """
        runs = _earlier_runs(experiment, folder)
        if not runs:
            if experiment.reuse != "none":
                note(f"reuse: {experiment.reuse}: there is no earlier run of {experiment.name} to take answers from")
            return None
        answers = cls(store.cursor(), tables)
        taken = 0
        for run in runs:
            try:
                answers.copy_from(run)
                taken += 1
            except (duckdb.Error, StoreError) as error:
                note(f"reuse: {run} is left out: {' '.join(str(error).split())[:200]}")
            if experiment.reuse == "latest" and taken:
                break
        counts = ", ".join(f"{rows} of {table}" for table, rows in answers.taken.items() if rows)
        which = "the latest run" if taken == 1 else f"{taken} earlier runs"
        note(f"reuse: {experiment.reuse}: answers of {which}: {counts or 'none that these stages could use'}")
        return answers if any(answers.found.values()) else None

    def copy_from(self, folder: Path) -> None:
        """Copy a run's answers. A key that is there already keeps its answer, so call it for the newest run first.

        A stage takes the answers of every table that has its columns, whatever the stage was called there.
        """
        connection = self._connection
        connection.execute(f"ATTACH {literal(str(folder.resolve() / DATABASE))} AS earlier (READ_ONLY)")
        try:
            row = connection.execute("SELECT run_id FROM earlier.run").fetchone()
            if row is None:
                return
            columns: dict[str, set[str]] = {}
            for table, column in connection.execute(
                "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'earlier'"
            ).fetchall():
                columns.setdefault(table, set()).add(column)
            taken: dict[str, int] = {}  # a table may serve several stages, and counts once
            for stage in self._tables.values():
                wanted = {column.name for column in stage.columns} - _LATER
                for table, present in columns.items():
                    if wanted <= present:
                        before = self.found[stage.name]
                        self._copy(stage, table, row[0], present)
                        taken[table] = max(taken.get(table, 0), self.found[stage.name] - before)
            for table, rows in taken.items():
                self.taken[table] = self.taken.get(table, 0) + rows
        finally:
            connection.execute("DETACH earlier")

    def _copy(self, stage: StageTable, table: str, run_id: str, present: set[str]) -> None:
        mine = _temp_table(stage.name)
        kinds = {column.name: column.ddl for column in stage.columns}
        made = ", ".join(
            [kinds[name] for name in (*(column.name for column in stage.outputs), "request_key", *CARRIED)]
        )
        self._connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {mine} ({made}, run_id VARCHAR)")
        # An answer that the earlier run took from a still earlier one keeps the run that sent the request.
        whose = f"coalesce(e.reused_from, {literal(run_id)})" if "reused_from" in present else literal(run_id)
        found = ["NULL" if column.name in _LATER - present else f"e.{quoted(column.name)}" for column in stage.outputs]
        values = ", ".join([*found, *(f"e.{name}" for name in ("request_key", *CARRIED))])
        copy = (
            f"INSERT INTO {mine} SELECT {values}, {whose} FROM earlier.{quoted(table)} e WHERE e.status = 'done' "
            f"AND e.request_key IS NOT NULL AND e.request_key NOT IN (SELECT request_key FROM {mine}) "
            "QUALIFY row_number() OVER (PARTITION BY e.request_key ORDER BY e.row_id) = 1"
        )
        fetch(self._connection, copy)
        row = self._connection.execute(f"SELECT count(*) FROM {mine}").fetchone()
        self.found[stage.name] = row[0] if row else 0

    def knows(self, stage: str) -> bool:
        """Whether a stage has any answers here. Cheap: no query."""
        return self.found.get(stage, 0) > 0

    def look_up(self, stage: str, keys: Sequence[str]) -> dict[str, KnownAnswer]:
        """request_key → answer, for the keys that have one. May be called from any thread; blocks."""
        outputs = self._tables[stage].outputs
        select = ", ".join([*(quoted(column.name) for column in outputs), *CARRIED, "run_id", "request_key"])
        query = f"SELECT {select} FROM {_temp_table(stage)} WHERE request_key IN (SELECT unnest(?::VARCHAR[]))"
        with self._lock:
            rows = fetch(self._connection, query, [list(keys)])
        count = len(outputs)
        return {row[-1]: KnownAnswer(row[:count], *row[count:-1]) for row in rows}


def _temp_table(stage: str) -> str:
    return quoted(f"answers_to_{stage}")


def _earlier_runs(experiment: Experiment, folder: Path) -> list[Path]:
    """The folders of the runs that ``reuse`` names, newest first, without this run's own."""
    if experiment.reuse == "none":
        return []
    if experiment.reuse in ("latest", "all"):
        home = next((parent for parent in folder.absolute().parents if parent.name == experiment.name), None)
        found = [] if home is None else run_folders(home)
    else:
        named = [Path(match) for match in glob.glob(experiment.reuse)] or [Path(experiment.reuse)]
        found = [run for name in named for run in run_folders(name)]
        if not found:
            raise ConfigError(
                f"reuse: '{experiment.reuse}' holds no run. Expected none, latest, all, or the folder of a run."
            )
    own = folder.resolve()
    return [run for run in found if run.resolve() != own]
