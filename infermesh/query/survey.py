"""What a plan asks: which rows are pending in a run, and what earlier runs have measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from infermesh.errors import StoreError, StoreInUseError
from infermesh.exact_json import loads
from infermesh.query.percentile import percentile
from infermesh.store.connection import connect
from infermesh.store.folders import run_folders
from infermesh.store.pending import settled_state
from infermesh.store.schema import DATABASE, SOURCE, StageTable, not_retired, quoted

__all__ = ["Measured", "Survey", "measured"]

_FEWEST_REQUESTS = 5  # for a measurement
_MOST_RUNS = 20  # that are opened
_ATTEMPTS = f"""
SELECT stage, count(*), avg(service_s), {percentile("service_s", 0.95)},
    sum(prompt_tokens) / sum(request_rows), sum(completion_tokens) / sum(request_rows)
FROM attempts WHERE error_type IS NULL AND service_s IS NOT NULL GROUP BY stage"""

_WHERE = "__WHERE__"


class Survey:
    """The rows of a run that a stage still has to work on: how many they are, and some of them.

    Parameters
    ----------
    connection
        A cursor of the run's database, as a session has prepared it.
    keep_errors
        Count failed rows as settled.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, keep_errors: bool) -> None:
        self._connection = connection
        self._keep_errors = keep_errors

    def pending(self, stage: StageTable, *, stale: bool, where: str | None) -> int | None:
        """How many rows a stage still has to work on, without malformed lines and rows that ``where`` leaves out.

        Parameters
        ----------
        stale
            The stage's declaration has changed, so rows that have a state count too.
        where
            A condition over the columns of the stage's rows.

        Returns
        -------
        int | None
            ``None`` if the condition cannot be decided here: it names another stage's columns, or fails on a row.
        """
        found = self._fetch(f"SELECT count(*) FROM {quoted(stage.origin)} s WHERE {self._pending(stage, stale)}", where)
        return None if found is None else int(found[0][0])

    def spread(self, stage: StageTable, most: int, *, stale: bool, where: str | None) -> list[int]:
        """The row_ids of at most ``most`` of these rows, evenly spread over them."""
        inner = (
            "SELECT s.row_id, row_number() OVER (ORDER BY s.row_id) - 1 AS n, count(*) OVER () AS total FROM "
            f"{quoted(stage.origin)} s WHERE {self._pending(stage, stale)}"
        )
        every = f"n = 0 OR total <= {most} OR (n * {most}) // total <> ((n - 1) * {most}) // total"
        found = self._fetch(f"SELECT row_id FROM ({inner}\n) WHERE {every} ORDER BY n LIMIT {most}", where)
        return [row_id for (row_id,) in found or ()]

    def _pending(self, stage: StageTable, stale: bool) -> str:
        parts = [not_retired(stage.origin), _WHERE]
        if stage.origin == SOURCE:
            parts.append("s.row_id NOT IN (SELECT row_id FROM source_errors)")
        if not stale:
            settled = settled_state(stage.name, keep_errors=self._keep_errors)
            parts.append(f"NOT EXISTS (SELECT 1 FROM {quoted(stage.name)} t WHERE t.row_id = s.row_id AND {settled})")
        return " AND ".join(parts)

    def _fetch(self, sql: str, where: str | None) -> list[Any] | None:
        """The rows of a query with the condition put in; a row on which the condition fails is left out."""
        # TRY takes no subqueries. A condition that has one goes without, and may fail on a row.
        forms = ["true"] if where is None else [f"coalesce(TRY(({where}\n)), false)", f"coalesce(({where}\n), false)"]
        for form in forms:
            try:
                return self._connection.execute(sql.replace(_WHERE, form)).fetchall()
            except duckdb.Error:
                continue
        return None


@dataclass(frozen=True, slots=True)
class Measured:
    """What an earlier run has measured of a stage.

    Attributes
    ----------
    mean_s, p95_s
        Seconds at the server per request; the percentile is nearest-rank.
    prompt_tokens, completion_tokens
        Per row.
    signature, config
        The stage's signature and the whole config, as they were in that run.
    """

    folder: Path
    requests: int
    mean_s: float
    p95_s: float
    prompt_tokens: float | None
    completion_tokens: float | None
    signature: str | None
    config: dict[str, Any]


def measured(
    outputs: Path, experiment: str, stages: Collection[str], note: Callable[[str], None]
) -> dict[str, Measured]:
    """What was measured of each stage by the newest run of the experiment that has sent requests of it.

    Parameters
    ----------
    outputs
        The folder that holds the runs.
    note
        Called with a line for each run that is left out because it is going on.
    """
    found: dict[str, Measured] = {}
    opened = 0
    # Folders that have the experiment's name in their path come first, as a guess; the run's table decides.
    for folder in sorted(run_folders(outputs), key=lambda folder: experiment not in folder.parts):
        if opened == _MOST_RUNS or found.keys() >= set(stages):
            break
        opened += 1
        try:
            with connect(folder / DATABASE, read_only=True) as connection:
                for stage, measurement in _measurements(connection, folder, experiment):
                    if stage in stages:
                        found.setdefault(stage, measurement)
        except StoreInUseError:
            note(f"{folder} is running: it is not looked at")
        except (StoreError, duckdb.Error):
            continue  # damaged, no run, or one that ended before its tables were there
    return found


def _measurements(
    connection: duckdb.DuckDBPyConnection, folder: Path, experiment: str
) -> Sequence[tuple[str, Measured]]:
    row = connection.execute("SELECT experiment, config, signatures FROM run").fetchone()
    if row is None or row[0] != experiment:
        return []
    config, signatures = loads(row[1]), loads(row[2] or "{}")
    return [
        (stage, Measured(folder, requests, mean, p95, prompt, completion, signatures.get(stage), config))
        for stage, requests, mean, p95, prompt, completion in connection.execute(_ATTEMPTS).fetchall()
        if requests >= _FEWEST_REQUESTS
    ]
