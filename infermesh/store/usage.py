"""What the present UTC day has already used of the deployments' quotas, in this run and in others."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.config.schema import Experiment
from infermesh.errors import StoreError, StoreInUseError
from infermesh.limits import DayUsage
from infermesh.store.database import connect
from infermesh.store.folders import run_folders, written_at
from infermesh.store.schema import DATABASE

__all__ = ["day_limited", "used_today"]

# A limiter takes back what was turned away or never arrived; so does this count.
_NOT_COUNTED = ("rate_limit", "connection", "input", "stopped")
_CONFIG = "SELECT config FROM run"
_TODAY = (
    "SELECT deployment, count(*), sum(coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0))::BIGINT "
    "FROM attempts WHERE started_at >= TIMESTAMP '{}' AND (error_type IS NULL OR error_type NOT IN {}) "
    "GROUP BY deployment"
)

Rows = Sequence[tuple[Any, ...]]
Ask = Callable[[str], Rows]
_Identity = tuple[str, str | None, str | None]


def day_limited(experiment: Experiment) -> set[str]:
    """The labels of the deployments that have a quota a day, of their own or through an account."""
    found = set()
    for label in experiment.deployments:
        limits = experiment.limits_of(label)
        if limits is not None and (limits.rpd is not None or limits.tpd is not None):
            found.add(label)
    return found


def used_today(
    experiment: Experiment,
    own: duckdb.DuckDBPyConnection | None,
    outputs: Path,
    own_folder: Path | None,
    note: Callable[[str], None],
    *,
    live: Callable[[Path, str], Rows | None] | None = None,
    wall: Callable[[], float] = time.time,
) -> dict[str, DayUsage]:
    """Count what each deployment with a quota a day has used since midnight UTC, over all runs.

    A deployment of another run is the same one if its ``model``, ``api_base`` and ``api_key_env`` are.

    Parameters
    ----------
    own
        A cursor of the run's own database, which this process has open; ``None`` to read ``own_folder`` like any other.
    outputs
        The runs below it are looked at, those written since midnight.
    note
        Told of runs that could not be asked.
    live
        Asks a run that another process is at, by its folder, a query; ``None`` where it does not answer either.

    Returns
    -------
    dict
        Label → today's count. Empty, and no file was opened, where no deployment has a quota a day.
    """
    labels = day_limited(experiment)
    if not labels:
        return {}
    today = dt.datetime.fromtimestamp(wall(), dt.UTC).date()
    midnight = dt.datetime.combine(today, dt.time(), dt.UTC).timestamp()
    counts = {label: [0, 0] for label in labels}
    for ask in _runs(own, outputs, own_folder, midnight, note, live):
        for label, requests, tokens in _asked(ask, experiment, today):
            if label in counts:
                counts[label][0] += requests
                counts[label][1] += tokens
    return {label: DayUsage(today, requests, tokens) for label, (requests, tokens) in counts.items()}


def _runs(
    own: duckdb.DuckDBPyConnection | None,
    outputs: Path,
    own_folder: Path | None,
    midnight: float,
    note: Callable[[str], None],
    live: Callable[[Path, str], Rows | None] | None,
) -> Iterator[Ask]:
    if own is not None:
        yield lambda sql: own.execute(sql).fetchall()
    mine = None if own is None or own_folder is None else own_folder.resolve()
    for folder in run_folders(outputs):
        if written_at(folder) < midnight:
            return  # the rest is older
        if folder.resolve() == mine:
            continue
        try:
            with connect(folder / DATABASE, read_only=True) as connection:
                yield lambda sql, connection=connection: connection.execute(sql).fetchall()  # type: ignore[misc]
        except StoreError as error:
            if not isinstance(error, StoreInUseError):
                note(f"{folder}: not counted to today's quotas: {error}")
            elif live is not None and live(folder, _CONFIG) is not None:
                yield lambda sql, folder=folder: live(folder, sql) or ()  # type: ignore[misc]
            else:
                note(f"{folder} is running: what it uses of today's quotas is not counted here")


def _asked(ask: Ask, experiment: Experiment, today: dt.date) -> Iterable[tuple[str, int, int]]:
    """``(label, requests, tokens)`` of one run, under this experiment's labels."""
    try:
        config = ask(_CONFIG)
        used = ask(_TODAY.format(today.isoformat(), _NOT_COUNTED))
    except duckdb.Error:
        return  # its process ended before the tables were there
    if not config or not used:
        return
    theirs: Mapping[str, Any] = orjson.loads(config[0][0]).get("deployments") or {}
    for name, requests, tokens in used:
        label = _label(name, theirs.get(name), experiment)
        if label is not None:
            yield label, int(requests), int(tokens)


def _label(name: str | None, entry: Any, experiment: Experiment) -> str | None:
    """What this experiment calls a deployment of another run. Each is counted once: where the label agrees, there."""
    if name is None or not isinstance(entry, Mapping):
        return None
    identity: _Identity = (str(entry.get("model")), _base(entry.get("api_base")), entry.get("api_key_env"))
    same = [
        label
        for label, ours in experiment.deployments.items()
        if (ours.model, _base(ours.api_base), ours.api_key_env) == identity
    ]
    return name if name in same else same[0] if same else None


def _base(url: str | None) -> str | None:
    return None if url is None else url.rstrip("/")
