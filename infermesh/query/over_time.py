"""A run over its time, from the table attempts: rates, requests in flight, waits, tokens, cost, in at most 500 steps.

The axis is the run's own time, in seconds: its sessions one behind the other, without the pauses between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from infermesh.query.percentile import percentile_of
from infermesh.query.reader import RunReader
from infermesh.store.schema import literal

__all__ = ["Session", "Timeline", "read_sessions", "read_timeline"]

MOST_STEPS = 500  # a screen has few more pixels than this across a chart
_REQUESTS_A_STEP = 40  # with fewer, a rate is mostly noise
_FEWEST_STEPS = 20
_SHORTEST_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Session:
    """One session of a run.

    Attributes
    ----------
    began_s
        Where it begins on the run's own time axis.
    length_s
        How long it took; up to its last answer, if it has not ended or was killed.
    status, reason
        As the table has them; ``running`` for one that was killed, too.
    """

    number: int
    started_at: datetime
    began_s: float
    length_s: float
    status: str
    reason: str | None


@dataclass(slots=True)
class Timeline:
    """The steps of a run's time. Every list has one value for each step; ``None`` where there is nothing to tell.

    Attributes
    ----------
    step_s
        How long a step is.
    middle_s
        Seconds from the run's start to the middle of each step.
    rows
        Stage → rows answered a second.
    answered, failed, refused
        Requests a second: with an answer, with an error, and those of the latter with status 429.
    in_flight, waiting
        Requests that had been sent and not answered; that were waiting on this side for a slot or a limit. On average
        over the step. A request is known once it has ended, so a live run's last steps show too few.
    service_p50, service_p95
        Seconds at the server, of requests with an answer that ended in the step.
    queue_p50, queue_p95
        Seconds that requests which ended in the step had waited on this side.
    prompt_tokens, completion_tokens
        A second.
    cost_usd
        Since the run's start; ``None`` in all steps if no price is known.
    """

    step_s: float = 1.0
    middle_s: list[float] = field(default_factory=list)
    rows: dict[str, list[float | None]] = field(default_factory=dict)
    answered: list[float | None] = field(default_factory=list)
    failed: list[float | None] = field(default_factory=list)
    refused: list[float | None] = field(default_factory=list)
    in_flight: list[float | None] = field(default_factory=list)
    waiting: list[float | None] = field(default_factory=list)
    service_p50: list[float | None] = field(default_factory=list)
    service_p95: list[float | None] = field(default_factory=list)
    queue_p50: list[float | None] = field(default_factory=list)
    queue_p95: list[float | None] = field(default_factory=list)
    prompt_tokens: list[float | None] = field(default_factory=list)
    completion_tokens: list[float | None] = field(default_factory=list)
    cost_usd: list[float | None] = field(default_factory=list)


def read_sessions(reader: RunReader) -> list[Session]:
    """The sessions of a run, in their order; none for a database of schema 1."""
    if not reader.rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'sessions'"):
        return []
    found = reader.rows("SELECT session, started_at, elapsed_s, status, reason FROM sessions ORDER BY session")
    last: dict[int, datetime] = {}
    if any(row[2] is None for row in found):
        ended = "max(a.started_at + to_microseconds((coalesce(a.service_s, 0) * 1e6)::BIGINT))"
        last = dict(
            reader.rows(
                f"SELECT s.session, {ended} FROM attempts a ASOF JOIN sessions s ON a.started_at >= s.started_at "
                "GROUP BY ALL"
            )
        )
    sessions: list[Session] = []
    began = 0.0
    for number, started_at, elapsed_s, status, reason in found:
        if elapsed_s is None:
            elapsed_s = max(0.0, (last.get(number, started_at) - started_at) / timedelta(seconds=1))
        sessions.append(Session(number, started_at, began, elapsed_s, status or "running", reason))
        began += elapsed_s
    return sessions


def read_timeline(reader: RunReader, sessions: Sequence[Session]) -> Timeline:
    """Sum up the attempts in steps of equal length. An empty timeline if nothing was sent."""
    length = sum(session.length_s for session in sessions)
    ((requests,),) = reader.rows("SELECT count(*) FROM attempts")
    if not requests or length <= 0:
        return Timeline()
    most = min(MOST_STEPS, max(1, int(length / _SHORTEST_STEP_S)))
    steps = max(1, min(most, max(_FEWEST_STEPS, requests // _REQUESTS_A_STEP)))
    width = length / steps
    placed = _placed(sessions)
    timeline = Timeline(width, [(step + 0.5) * width for step in range(steps)])

    bucket = f"least(greatest(floor(ended / {width!r}), 0), {steps - 1})::INTEGER"
    by_step = reader.rows(f"{placed} SELECT {bucket}, {', '.join(_figures(requests))} FROM placed GROUP BY 1")
    found = {row[0]: row[1:] for row in by_step}
    nothing = (0, 0, 0, 0.0, 0.0, None, None, None, None, None)
    values = [found.get(step, nothing) for step in range(steps)]
    rates = ("answered", "failed", "refused", "prompt_tokens", "completion_tokens")
    for name, column in zip(rates, zip(*(row[:5] for row in values), strict=True), strict=True):
        setattr(timeline, name, [value / width for value in column])
    timeline.cost_usd = _added_up([row[5] for row in values])
    for place, name in enumerate(("service_p50", "service_p95", "queue_p50", "queue_p95"), start=6):
        setattr(timeline, name, [row[place] for row in values])

    rows = f"SELECT stage, {bucket}, sum(coalesce(request_rows, 1)) FILTER (error_type IS NULL)::DOUBLE"
    for stage, step, answered in reader.rows(f"{placed} {rows} FROM placed GROUP BY 1, 2"):
        line = timeline.rows.setdefault(stage, [0.0] * steps)
        line[step] = (answered or 0.0) / width
    asked, sent, ended = (_moments(reader, placed, name, width, steps) for name in ("asked", "sent", "ended"))
    timeline.in_flight = _on_average(sent, ended, width, steps)
    timeline.waiting = _on_average(asked, sent, width, steps)
    return timeline


def _figures(requests: int) -> list[str]:
    """SQL for what is told of the requests that end in a step."""
    service, queue = (
        [percentile_of(requests, value, share) for share in (0.5, 0.95)] for value in ("service_s", "queue_s")
    )
    return [
        "count(*) FILTER (error_type IS NULL)",
        "count(*) FILTER (error_type IS NOT NULL)",
        "count(*) FILTER (status_code = 429)",
        "coalesce(sum(prompt_tokens), 0)::DOUBLE",
        "coalesce(sum(completion_tokens), 0)::DOUBLE",
        "sum(cost_usd)",
        *(f"{sql} FILTER (error_type IS NULL)" for sql in service),
        *queue,
    ]


def _placed(sessions: Sequence[Session]) -> str:
    """A WITH clause: the attempts, and when each was asked for, sent and answered on the run's own axis."""
    if len(sessions) == 1:
        moments = f"SELECT *, epoch(started_at - {_timestamp(sessions[0])}) AS sent FROM attempts"
    else:
        starts = ", ".join(f"({_timestamp(session)}, {session.began_s!r}::DOUBLE)" for session in sessions)
        moments = (
            f"SELECT a.*, epoch(a.started_at - s.began) + s.shift AS sent FROM attempts a ASOF JOIN "
            f"(VALUES {starts}) s(began, shift) ON a.started_at >= s.began"
        )
    return (
        "WITH placed AS (SELECT *, sent - coalesce(queue_s, 0) AS asked, sent + coalesce(service_s, 0) AS ended "
        f"FROM ({moments}))"
    )


def _timestamp(session: Session) -> str:
    return f"TIMESTAMP {literal(session.started_at.isoformat(sep=' '))}"


def _moments(reader: RunReader, placed: str, name: str, width: float, steps: int) -> dict[int, tuple[int, float]]:
    """Step → how many such moments are in it, and the seconds from each of them to the step's end, added up."""
    bucket = f"least(greatest(floor({name} / {width!r}), 0), {steps - 1})"
    found = reader.rows(
        f"{placed} SELECT {bucket}::INTEGER, count(*), "
        f"sum(least(greatest(({bucket} + 1) * {width!r} - {name}, 0), {width!r})) FROM placed GROUP BY 1"
    )
    return {step: (count, seconds) for step, count, seconds in found}


def _on_average(
    begins: dict[int, tuple[int, float]], ends: dict[int, tuple[int, float]], width: float, steps: int
) -> list[float | None]:
    """How many intervals are open on average over each step, from their first and last moments.

    Those open at a step's start count for all of it, one that begins in it from there to its end, and one that ends in
    it is taken off from there. This is exact, and needs no join of every request with every step.
    """
    found: list[float | None] = []
    open_now = 0
    for step in range(steps):
        begun, added = begins.get(step, (0, 0.0))
        ended, taken = ends.get(step, (0, 0.0))
        found.append(max(0.0, open_now + (added - taken) / width))
        open_now += begun - ended
    return found


def _added_up(costs: Sequence[Any]) -> list[float | None]:
    if all(cost is None for cost in costs):
        return [None] * len(costs)
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + (cost or 0.0))
    return [after for _, after in pairwise(sums)]
