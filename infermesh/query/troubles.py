"""The requests of a run's last session that failed: where, how, and how many rows still wait for another try."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from infermesh.query.reader import RunReader
from infermesh.store.schema import literal, quoted

__all__ = ["Failed", "failed_requests", "waiting_rows"]

_SESSION = "(SELECT max(started_at) FROM sessions)"
_FAILED = f"error_type IS NOT NULL AND error_type <> 'stopped' AND started_at >= {_SESSION}"


@dataclass(frozen=True, slots=True)
class Failed:
    """Requests that failed alike.

    Attributes
    ----------
    message
        The last one's; ``None`` where an older version has sent them.
    last_at
        When the last of them was sent, in UTC without a time zone.
    """

    stage: str
    deployment: str
    kind: str
    requests: int
    message: str | None
    last_at: datetime


def failed_requests(reader: RunReader, most: int = 5) -> list[Failed]:
    """The failed requests of a run's last session, the most frequent kinds first."""
    columns = "SELECT column_name FROM duckdb_columns() WHERE table_name = 'attempts' AND column_name = 'error'"
    message = "arg_max(error, started_at)" if reader.rows(columns) else "NULL"
    found = reader.rows(
        f"SELECT stage, deployment, error_type, count(*) AS requests, {message}, max(started_at) FROM attempts "
        f"WHERE {_FAILED} GROUP BY ALL ORDER BY requests DESC LIMIT {most}"
    )
    return [Failed(*row) for row in found]


def waiting_rows(reader: RunReader, stage: str) -> int:
    """How many rows of a stage have failed requests in the last session, and no state since."""
    ((rows,),) = reader.rows(
        f"SELECT count(DISTINCT row_id) FROM attempts a WHERE stage = {literal(stage)} AND {_FAILED} AND NOT EXISTS "
        f"(SELECT 1 FROM {quoted(stage)} s WHERE s.row_id = a.row_id AND s.finished_at >= {_SESSION})"
    )
    return int(rows)
