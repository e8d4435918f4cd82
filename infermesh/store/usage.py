"""How much of the deployments' daily quotas (rpd, tpd) this and other runs have used in the present UTC day."""

from __future__ import annotations

import datetime as dt
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson

from infermesh.config.schema import Experiment
from infermesh.errors import StoreError, StoreInUseError
from infermesh.limits import DayUsage
from infermesh.store.connection import connect, in_words
from infermesh.store.folders import run_folders, written_at
from infermesh.store.schema import DATABASE

__all__ = ["day_limited", "used_today"]

# Attempts that a limiter refunds: rate-limited, not arrived, or never sent.
_NOT_COUNTED = ("rate_limit", "connection", "input", "stopped")
_CONFIG = "SELECT config FROM run"
_TODAY = (
    "SELECT deployment, count(*), sum(coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0))::BIGINT "
    "FROM attempts WHERE started_at >= TIMESTAMP '{}' AND (error_type IS NULL OR error_type NOT IN {}) "
    "GROUP BY deployment"
)

Rows = Sequence[tuple[Any, ...]]
_Query = Callable[[str], Rows]
_Identity = tuple[str, str | None, str | None]


def day_limited(experiment: Experiment) -> set[str]:
    """The labels of the deployments that have a daily quota, of their own or through an account."""
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
    """Count the requests and tokens of each deployment with a daily quota since midnight UTC, over all runs.

    A deployment of another run is the same if its ``model``, ``api_base`` and ``api_key_env`` are the same.

    Parameters
    ----------
    own
        A cursor of the run's own database, if this process has it open. ``None`` reads it like any other run's.
    outputs
        The runs below this folder are counted, if they were written to since midnight.
    own_folder
        The run's own folder, which is skipped below ``outputs`` if ``own`` is given.
    note
        Gets a line for each run that could not be queried.
    live
        Queries a run in another process: ``live(folder, sql)`` returns the rows, or ``None`` if it does not answer.
        Without it, such runs are not counted.
    wall
        Seconds since the epoch.

    Returns
    -------
    dict
        Label → today's usage. Empty if no deployment has a daily quota; then no file is opened.
    """
    labels = day_limited(experiment)
    if not labels:
        return {}
    today = dt.datetime.fromtimestamp(wall(), dt.UTC).date()
    midnight = dt.datetime.combine(today, dt.time(), dt.UTC).timestamp()
    counts = {label: [0, 0] for label in labels}
    for query in _readable_runs(own, outputs, own_folder, midnight, note, live):
        try:
            used = list(_used_in_run(query, experiment, today))
        except StoreError as error:
            note(f"not counted against today's quotas: {error}")
            continue
        for label, requests, tokens in used:
            if label in counts:
                counts[label][0] += requests
                counts[label][1] += tokens
    return {label: DayUsage(today, requests, tokens) for label, (requests, tokens) in counts.items()}


def _readable_runs(
    own: duckdb.DuckDBPyConnection | None,
    outputs: Path,
    own_folder: Path | None,
    midnight: float,
    note: Callable[[str], None],
    live: Callable[[Path, str], Rows | None] | None,
) -> Iterator[_Query]:
    """For each run that was written to since midnight, a function that queries it."""
    if own is not None:
        yield lambda sql: own.execute(sql).fetchall()
    mine = None if own is None or own_folder is None else own_folder.resolve()
    for folder in run_folders(outputs):
        if written_at(folder) < midnight:
            return  # run_folders yields the newest first, so the others are older
        if folder.resolve() == mine:
            continue
        try:
            with connect(folder / DATABASE, read_only=True) as connection:
                yield functools.partial(_rows, connection, folder / DATABASE)
        except StoreError as error:
            if not isinstance(error, StoreInUseError):
                note(f"{folder}: not counted against today's quotas: {error}")
            elif live is not None and live(folder, _CONFIG) is not None:
                yield lambda sql, folder=folder: live(folder, sql) or ()  # type: ignore[misc]
            else:
                note(f"{folder} is running: what it uses of today's quotas is not counted here")


def _rows(connection: duckdb.DuckDBPyConnection, path: Path, sql: str) -> Rows:
    with in_words(path):
        return connection.execute(sql).fetchall()


def _used_in_run(query: _Query, experiment: Experiment, today: dt.date) -> Iterable[tuple[str, int, int]]:
    """``(label, requests, tokens)`` of one run, under this experiment's labels."""
    try:
        config = query(_CONFIG)
        used = query(_TODAY.format(today.isoformat(), _NOT_COUNTED))
    except duckdb.Error:
        return  # the run's process ended before it had created the tables
    if not config or not used:
        return
    theirs: Mapping[str, Any] = orjson.loads(config[0][0]).get("deployments") or {}
    for name, requests, tokens in used:
        label = _label(name, theirs.get(name), experiment)
        if label is not None:
            yield label, int(requests), int(tokens)


def _label(name: str | None, entry: object, experiment: Experiment) -> str | None:
    """This experiment's label for a deployment of another run; ``None`` if it has no such deployment.

    If several of its deployments are the same endpoint, the usage is counted once: under the same label if there is
    one, else under the first.
    """
    if name is None or not isinstance(entry, Mapping):
        return None
    identity: _Identity = (str(entry.get("model")), _normal_url(entry.get("api_base")), entry.get("api_key_env"))
    same = [
        label
        for label, ours in experiment.deployments.items()
        if (ours.model, _normal_url(ours.api_base), ours.api_key_env) == identity
    ]
    return name if name in same else same[0] if same else None


def _normal_url(url: str | None) -> str | None:
    return None if url is None else url.rstrip("/")
