"""Questions about what is pending in a run, and about what earlier runs have measured: for planning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.errors import StoreError, StoreInUseError
from infermesh.store.database import connect
from infermesh.store.folders import run_folders
from infermesh.store.pending import SETTLED, SETTLED_WITH_ERRORS
from infermesh.store.schema import DATABASE, SOURCE, StageTable, live, quoted

__all__ = ["Measured", "Survey", "measured"]

_FEWEST_REQUESTS = 5
_MOST_RUNS = 20
_ATTEMPTS = """
SELECT stage, count(*), avg(service_s), quantile_cont(service_s, 0.95), sum(request_rows),
    sum(prompt_tokens) / sum(request_rows), sum(completion_tokens) / sum(request_rows)
FROM attempts WHERE error_type IS NULL AND service_s IS NOT NULL GROUP BY stage"""


class Survey:
    """Counts and finds the rows of a run that a stage has to go through yet.

    Parameters
    ----------
    connection
        A cursor of a run's database, as a session has prepared it.
    keep_errors
        Count failed rows as settled.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, keep_errors: bool) -> None:
        self._connection = connection
        self._settled = SETTLED_WITH_ERRORS if keep_errors else SETTLED

    def pending(self, stage: StageTable, *, stale: bool, where: str | None) -> int | None:
        """How many rows a stage has to look at; malformed lines and rows that ``where`` leaves out do not count.

        Parameters
        ----------
        stale
            Count rows with a state too: the stage's declaration has changed.
        where
            A condition over the columns of the stage's rows.

        Returns
        -------
        int | None
            ``None`` where the condition cannot be decided for all rows at once.
        """
        found = self._tried(f"SELECT count(*) FROM {quoted(stage.origin)} s WHERE {self._pending(stage, stale)}", where)
        return None if found is None else int(found[0][0])

    def spread(self, stage: StageTable, most: int, *, stale: bool, where: str | None) -> list[int]:
        """At most so many row_ids of these rows, evenly spread over them."""
        inner = (
            "SELECT s.row_id, row_number() OVER (ORDER BY s.row_id) - 1 AS n, count(*) OVER () AS total FROM "
            f"{quoted(stage.origin)} s WHERE {self._pending(stage, stale)}"
        )
        every = f"n = 0 OR total <= {most} OR (n * {most}) // total <> ((n - 1) * {most}) // total"
        found = self._tried(f"SELECT row_id FROM ({inner}\n) WHERE {every} ORDER BY n LIMIT {most}", where)
        return [row_id for (row_id,) in found or ()]

    def _pending(self, stage: StageTable, stale: bool) -> str:
        parts = [live(stage.origin), "__WHERE__"]
        if stage.origin == SOURCE:
            parts.append("s.row_id NOT IN (SELECT row_id FROM source_errors)")
        if not stale:
            parts.append(
                f"NOT EXISTS (SELECT 1 FROM {quoted(stage.name)} t WHERE t.row_id = s.row_id AND {self._settled})"
            )
        return " AND ".join(parts)

    def _tried(self, sql: str, where: str | None) -> list[Any] | None:
        """With the condition put in; a row for which it fails does not pass."""
        forms = ["true"] if where is None else [f"coalesce(TRY(({where}\n)), false)", f"coalesce(({where}\n), false)"]
        for form in forms:  # TRY takes no subqueries
            try:
                return self._connection.execute(sql.replace("__WHERE__", form)).fetchall()
            except duckdb.Error:
                continue
        return None


@dataclass(frozen=True, slots=True)
class Measured:
    """What an earlier run has measured of a stage: seconds a request, tokens a row; its config as it was."""

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
    """For each stage the newest run of an experiment below ``outputs`` that has sent requests of it.

    Runs that another process is at are passed over.
    """
    found: dict[str, Measured] = {}
    opened = 0
    # By its folder's name a run is guessed to be of the experiment; its table decides.
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
            continue  # no run, or one that ended before its tables were there
    return found


def _measurements(
    connection: duckdb.DuckDBPyConnection, folder: Path, experiment: str
) -> Sequence[tuple[str, Measured]]:
    row = connection.execute("SELECT experiment, config, signatures FROM run").fetchone()
    if row is None or row[0] != experiment:
        return []
    config, signatures = orjson.loads(row[1]), orjson.loads(row[2] or "{}")
    return [
        (stage, Measured(folder, requests, mean, p95, prompt, completion, signatures.get(stage), config))
        for stage, requests, mean, p95, _, prompt, completion in connection.execute(_ATTEMPTS).fetchall()
        if requests >= _FEWEST_REQUESTS
    ]
