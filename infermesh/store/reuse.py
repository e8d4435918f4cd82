"""Answers of earlier runs, found by request_key: an identical request need not be sent again."""

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

CARRIED = ("model_id", "request_id", "prompt_tokens", "completion_tokens")


class Answer(NamedTuple):
    """An answer to the same request: the stage's output columns, and whose it is.

    ``finished_at`` is when this run itself had it; ``None`` for an earlier run's.
    """

    outputs: tuple[Any, ...]
    model_id: str | None
    request_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    run_id: str
    finished_at: datetime | None = None


class EarlierAnswers:
    """The answers of earlier runs to requests like this run's.

    They are copied into temporary tables, which DuckDB keeps within its memory limit; a lookup of a thousand keys reads
    one column of them.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, tables: Sequence[StageTable]) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # several stages ask at once; a temporary table is its connection's alone
        self._tables = {table.name: table for table in tables}
        self.found: dict[str, int] = dict.fromkeys(self._tables, 0)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        folder: Path,
        store: RunStore,
        tables: Sequence[StageTable],
        note: Callable[[str], None],
    ) -> EarlierAnswers | None:
        """What ``reuse`` asks for; ``None`` where it asks for nothing or nothing is there.

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
                answers.take(run)
                taken += 1
            except (duckdb.Error, StoreError) as error:
                note(f"reuse: {run} is left out: {' '.join(str(error).split())[:200]}")
            if experiment.reuse == "latest" and taken:
                break
        told = ", ".join(f"{rows} for {name}" for name, rows in answers.found.items() if rows)
        which = "the latest run" if taken == 1 else f"{taken} earlier runs"
        note(f"reuse: {experiment.reuse}: answers of {which}: {told or 'none that these stages could use'}")
        return answers if any(answers.found.values()) else None

    def take(self, folder: Path) -> None:
        """Copy the answers of the run in a folder; where several runs have one, the first that was taken stands."""
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
            for stage in self._tables.values():
                wanted = {column.name for column in stage.columns} - {"reused_from"}
                for table, present in columns.items():
                    if wanted <= present:
                        self._copy(stage, table, row[0], "reused_from" in present)
        finally:
            connection.execute("DETACH earlier")

    def _copy(self, stage: StageTable, table: str, run_id: str, has_origin: bool) -> None:
        mine = _name(stage.name)
        outputs = [quoted(column.name) for column in stage.outputs]
        kinds = {column.name: column.ddl for column in stage.columns}
        made = ", ".join(
            [kinds[name] for name in (*(column.name for column in stage.outputs), "request_key", *CARRIED)]
        )
        self._connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {mine} ({made}, run_id VARCHAR)")
        whose = f"coalesce(e.reused_from, {literal(run_id)})" if has_origin else literal(run_id)
        values = ", ".join(f"e.{name}" for name in (*outputs, "request_key", *CARRIED))
        copy = (
            f"INSERT INTO {mine} SELECT {values}, {whose} FROM earlier.{quoted(table)} e WHERE e.status = 'done' "
            f"AND e.request_key IS NOT NULL AND e.request_key NOT IN (SELECT request_key FROM {mine}) "
            "QUALIFY row_number() OVER (PARTITION BY e.request_key ORDER BY e.row_id) = 1"
        )
        fetch(self._connection, copy)
        row = self._connection.execute(f"SELECT count(*) FROM {mine}").fetchone()
        self.found[stage.name] = row[0] if row else 0

    def knows(self, stage: str) -> bool:
        """Whether there is any answer for a stage."""
        return self.found.get(stage, 0) > 0

    def look_up(self, stage: str, keys: Sequence[str]) -> dict[str, Answer]:
        """request_key → answer, of those that are there; from any thread."""
        outputs = self._tables[stage].outputs
        select = ", ".join([*(quoted(column.name) for column in outputs), *CARRIED, "run_id", "request_key"])
        query = f"SELECT {select} FROM {_name(stage)} WHERE request_key IN (SELECT unnest(?::VARCHAR[]))"
        with self._lock:
            rows = fetch(self._connection, query, [list(keys)])
        count = len(outputs)
        return {row[-1]: Answer(row[:count], *row[count:-1]) for row in rows}


def _name(stage: str) -> str:
    return quoted(f"answers_to_{stage}")


def _earlier_runs(experiment: Experiment, folder: Path) -> list[Path]:
    """Folders of the runs that ``reuse`` names, newest first, without this one."""
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
