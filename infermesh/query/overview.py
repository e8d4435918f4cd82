"""All that a page over one run shows, read at once: numbers, stages, deployments, failures, a sample of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from infermesh.exact_json import loads
from infermesh.query import percentile
from infermesh.query.over_time import Session, Timeline, read_sessions, read_timeline
from infermesh.query.percentile import percentile_of
from infermesh.query.reader import RunReader
from infermesh.query.row_values import answer_columns, column_kinds, origins, rows_of, shown_columns
from infermesh.query.summary import RunDetails, counts, details
from infermesh.store.schema import SOURCE, quoted, status_now

__all__ = ["Failures", "Overview", "SampledRows", "read_counts", "read_overview"]

MOST_FAILURES = 20  # kinds of a stage
MOST_DEPLOYMENTS = 100
MOST_CHANGES = 300  # rows of limits_history
SAMPLED = 24  # rows of each origin
CUT = 2000  # characters of a value
_MESSAGE = 1500
_BINS = 40  # at most
_MEMORY = "1GB"


@dataclass(frozen=True, slots=True)
class Calls:
    """The requests of a stage or of a deployment. Times in seconds, ``None`` where nothing was answered."""

    name: str
    requests: int
    failed: int
    refused: int
    service_p50: float | None
    service_p95: float | None
    queue_p95: float | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Failures:
    """Rows of a stage, or requests, that failed alike: of one kind, with messages that differ in numbers alone.

    Attributes
    ----------
    example
        The message of the first one, cut.
    first_at, last_at
        UTC, without a time zone; ``None`` where it is not known.
    rows
        Numbers of the first three rows.
    """

    stage: str
    kind: str
    count: int
    example: str
    first_at: datetime | None
    last_at: datetime | None
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows of an origin, evenly spread, with their columns and what each stage has made of them.

    Attributes
    ----------
    stages
        Stage → the names of its columns that a person reads.
    rows
        Row by row: its number, the values of ``columns``, then of each stage its status, its error and its columns.
    total
        How many rows the origin has.
    hidden
        How many columns of the origin are left out.
    """

    origin: str
    columns: list[str]
    stages: dict[str, list[str]]
    rows: list[tuple[Any, ...]]
    total: int
    hidden: int


@dataclass(slots=True)
class Overview:
    """A run as its page shows it.

    Attributes
    ----------
    status
        As :func:`~infermesh.store.schema.status_now` says it; ``empty`` if there is no run in the database.
    origins
        Stage → whose rows it takes.
    limits_history
        Names of the columns, and the rows, of the table of that name, if the run has one.
    service_bins
        ``(from, to, requests)``: times at the server, in seconds.
    """

    folder: Path
    status: str
    live: bool
    run_id: str = ""
    experiment: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    git_revision: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: RunDetails = field(default_factory=RunDetails)
    sessions: list[Session] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    origins: dict[str, str] = field(default_factory=dict)
    source_rows: int = 0
    unreadable: int = 0
    calls: list[Calls] = field(default_factory=list)
    deployments: list[Calls] = field(default_factory=list)
    more_deployments: int = 0
    failures: list[Failures] = field(default_factory=list)
    more_failures: int = 0
    failed_requests: list[Failures] = field(default_factory=list)
    service_bins: list[tuple[float, float, int]] = field(default_factory=list)
    limits_history: tuple[list[str], list[tuple[Any, ...]]] | None = None
    samples: list[SampledRows] = field(default_factory=list)

    @property
    def approximate(self) -> bool:
        """Whether the percentiles are estimates, as there are too many requests."""
        return self.details.requests > percentile.MOST_EXACT


def read_overview(folder: Path, *, figures: bool = True, samples: bool = True) -> Overview:
    """Read a run, live or not. The tables are only read.

    Parameters
    ----------
    figures
        Read all that is summed up over the requests: over time, by stage, by deployment, by failure. Without it only
        the counts are there, which takes a tenth of the time.
    samples
        Read a sample of the rows.

    Raises
    ------
    StoreError
        The run's database cannot be opened, or a live run does not answer.
    """
    with RunReader(folder) as reader:
        if not reader.live:  # else DuckDB takes most of the machine's memory, if it has use for it
            reader.execute(f"SET memory_limit = '{_MEMORY}'")
        tables = {name for (name,) in reader.rows("SELECT table_name FROM duckdb_tables()")}
        columns = "run_id, experiment, status, started_at, finished_at, git_revision, config, versions, roots"
        found = reader.rows(f"SELECT {columns} FROM run") if {"run", SOURCE} <= tables else []
        if not found:
            return Overview(folder, "empty", reader.live)
        run_id, experiment, stored, started_at, finished_at, revision, config, versions, roots = found[0]
        overview = Overview(folder, status_now(stored, held=reader.live), reader.live, run_id, experiment)
        overview.started_at, overview.finished_at, overview.git_revision = started_at, finished_at, revision
        overview.config, overview.versions, overview.roots = (
            loads(text or "null") for text in (config, versions, roots)
        )
        overview.overrides, overview.facts = _later_columns(reader)
        overview.details = details(reader)
        ((overview.source_rows,),) = reader.rows("SELECT count(*) FROM source")
        if "source_errors" in tables:
            ((overview.unreadable,),) = reader.rows("SELECT count(*) FROM source_errors")
        overview.sessions = read_sessions(reader)
        for origin, over in origins(reader, list(overview.details.stages)).items():
            overview.origins |= dict.fromkeys(over, origin)
        if figures:
            _read_figures(reader, overview, tables)
        if samples:
            _read_samples(reader, overview)
        return overview


def read_counts(folder: Path, before: Overview) -> Overview:
    """An overview with the counts of now, and all else as it was: what a page over a live run asks once a second.

    Parameters
    ----------
    before
        The same run, as it was read while it went on.

    Raises
    ------
    StoreError
        As for :func:`read_overview`.
    """
    with RunReader(folder) as reader:
        found = counts(reader)
        if not reader.live:
            return read_overview(folder, figures=False, samples=False)
    now = replace(
        before.details,
        stages=found.stages,
        requests=found.requests,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        cost_usd=found.cost_usd,
    )
    if not before.sessions:
        return replace(before, details=now)
    *earlier, last = before.sessions
    lasts = (datetime.now(UTC).replace(tzinfo=None) - last.started_at) / timedelta(seconds=1)
    return replace(before, details=now, sessions=[*earlier, replace(last, length_s=max(last.length_s, lasts))])


def _read_figures(reader: RunReader, overview: Overview, tables: set[str]) -> None:
    requests = overview.details.requests
    overview.timeline = read_timeline(reader, overview.sessions)
    calls = {each.name: each for each in _calls(reader, "stage", requests, None)[0]}  # in the stages' order
    overview.calls = [calls[name] for name in dict.fromkeys((*overview.details.stages, *calls)) if name in calls]
    overview.deployments, overview.more_deployments = _calls(reader, "deployment", requests, MOST_DEPLOYMENTS)
    _read_failures(reader, overview)
    answered = "attempts WHERE error_type IS NULL AND service_s IS NOT NULL"
    overview.service_bins = _bins(reader, requests, "service_s", answered)
    if "limits_history" in tables:
        overview.limits_history = _limits_history(reader)


def _later_columns(reader: RunReader) -> tuple[list[str] | None, dict[str, dict[str, Any]]]:
    """What schema 1 does not have: the overrides, and what decides each stage's answers."""
    there = {name for (name,) in reader.rows("SELECT column_name FROM duckdb_columns() WHERE table_name = 'run'")}
    if not {"overrides", "facts"} <= there:
        return None, {}
    ((overrides, facts),) = reader.rows("SELECT overrides, facts FROM run")
    return (None if overrides is None else loads(overrides)), loads(facts or "{}")


def _calls(reader: RunReader, by: str, requests: int, most: int | None) -> tuple[list[Calls], int]:
    """The requests by stage or by deployment, those with most requests first; and how many are left out.

    ``most``: ``None`` leaves none out.
    """
    found = reader.rows(
        f"SELECT coalesce({by}, '?'), count(*) AS requests, count(error_type), count(*) FILTER (status_code = 429), "
        f"{percentile_of(requests, 'service_s', 0.5)} FILTER (error_type IS NULL), "
        f"{percentile_of(requests, 'service_s', 0.95)} FILTER (error_type IS NULL), "
        f"{percentile_of(requests, 'queue_s', 0.95)}, coalesce(sum(prompt_tokens), 0)::BIGINT, "
        "coalesce(sum(completion_tokens), 0)::BIGINT, sum(cost_usd) FROM attempts GROUP BY 1 ORDER BY requests DESC, 1"
    )
    return [Calls(*row) for row in found[:most]], 0 if most is None else max(0, len(found) - most)


def _alike(table: str, by: str, message: str, row: str, at: str) -> str:
    """SQL that groups failures ``by`` columns and by what messages that differ in numbers and ids alone have in common.

    ``count, example, first, last, rows`` follow the columns. Equal messages are put together before they are compared
    in this way, which is slow.
    """
    alike = "regexp_replace(left(message, 300), '[0-9a-f]{8,}|[0-9]+', '#', 'g')"
    return (
        f"SELECT {by}, sum(n)::BIGINT AS count, arg_min(message, first), min(first), max(last), "
        f"list_sort(flatten(list(rows)))[1:3] FROM (SELECT {by}, left(coalesce({message}, ''), {_MESSAGE}) AS message, "
        f"count(*) AS n, min({at}) AS first, max({at}) AS last, min({row}, 3) AS rows FROM {table} GROUP BY ALL) "
        f"GROUP BY {by}, {alike} ORDER BY count DESC, {by}"
    )


def _read_failures(reader: RunReader, overview: Overview) -> None:
    stages = [name for name, counts in overview.details.stages.items() if "error" in counts]
    for stage in stages:
        failed = f"(FROM {quoted(stage)} WHERE status = 'error')"
        found = reader.rows(_alike(failed, "error_type", "error", "row_id", "finished_at"))
        overview.failures += [_failures(stage, *row) for row in found[:MOST_FAILURES]]
        overview.more_failures += max(0, len(found) - MOST_FAILURES)
    columns = "SELECT 1 FROM duckdb_columns() WHERE table_name = 'attempts' AND column_name = 'error'"
    message = "error" if reader.rows(columns) else "NULL::VARCHAR"
    failed = "(FROM attempts WHERE error_type IS NOT NULL)"
    requests = reader.rows(_alike(failed, "stage, error_type", message, "row_id", "started_at"))
    overview.failed_requests = [_failures(*row) for row in requests[:MOST_FAILURES]]


def _failures(
    stage: str | None,
    kind: str | None,
    count: int,
    example: str | None,
    first: datetime | None,
    last: datetime | None,
    rows: list[int],
) -> Failures:
    return Failures(stage or "?", kind or "?", count, example or "", first, last, tuple(rows))


def _bins(reader: RunReader, requests: int, value: str, of: str) -> list[tuple[float, float, int]]:
    """Counts in equal steps of a round width, up to the 99th percentile; what is above it is in the last one."""
    most = percentile_of(requests, value, 0.99)
    ((count, low, high),) = reader.rows(f"SELECT count(*), min({value}), {most} FROM {of}")
    if not count or high <= low:
        return []
    least = (high - low) / _BINS
    unit = 10.0 ** math.floor(math.log10(least))
    width = unit * next(times for times in (1, 2, 5, 10) if unit * times >= least * 0.999)
    first, last = math.floor(low / width), math.floor(high / width)
    place = f"least(floor({value} / {width!r}), {last})::INTEGER"
    found = dict(reader.rows(f"SELECT {place}, count(*) FROM {of} GROUP BY 1"))
    return [(step * width, (step + 1) * width, found.get(step, 0)) for step in range(first, last + 1)]


def _limits_history(reader: RunReader) -> tuple[list[str], list[tuple[Any, ...]]]:
    names = list(column_kinds(reader, "limits_history"))
    texts = ", ".join(f"left({quoted(name)}::VARCHAR, 200)" for name in names)
    return names, reader.rows(f"SELECT {texts} FROM limits_history LIMIT {MOST_CHANGES + 1}")


def _read_samples(reader: RunReader, overview: Overview) -> None:
    """A sample of the rows of each origin."""
    for origin, over in origins(reader, list(overview.details.stages)).items():
        answers = {stage: answer_columns(reader, stage) for stage in over}
        overview.samples.append(_sample(reader, origin, answers))


def _sample(reader: RunReader, origin: str, answers: dict[str, list[str]]) -> SampledRows:
    """Rows at even distances. First their numbers, then each table's rows of these numbers: no table is read whole."""
    kinds = column_kinds(reader, origin)
    kept, hidden = shown_columns(kinds)
    ((total, least, most),) = reader.rows(f"SELECT count(*), min(row_id), max(row_id) FROM {quoted(origin)}")
    if not total:
        return SampledRows(origin, kept, answers, [], 0, hidden)
    places = {least + round(step * (most - least) / max(1, SAMPLED - 1)) for step in range(SAMPLED)}
    rows = rows_of(reader, origin, kept, answers, sorted(places), CUT)
    return SampledRows(origin, kept, answers, rows, total, hidden)
