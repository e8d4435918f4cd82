"""A concurrency sweep: throughput and latency of each level, and the level to choose.

It measures this client with the endpoint, through the same window of workers that a run uses. The recommendation is a
rule on the measured figures, stated in :func:`choose`; nothing is modelled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infermesh.errors import RequestError
from infermesh.results import TokenUsage
from infermesh.runs.direct import DirectStage
from infermesh.runtime.workers import run_window

NEAR_BEST = 0.95  # choose the first level with this share of the best throughput
P95_GROWTH = 4.0  # the highest acceptable p95, as a multiple of the lowest level's
MAX_ERRORS = 0.01  # the highest acceptable share of failed requests
QUEUE_SHARE = 0.5  # the client is the bottleneck if q_p95 is at least this share of svc_p95,
CPU_SHARE = 0.9  # or if its process uses this share of one core
SHORTEST_S = 0.5  # a shorter level is mostly its beginning and its end, where fewer requests are in flight


@dataclass(frozen=True, slots=True)
class Level:
    """The figures of one concurrency. Times in seconds; percentiles over the requests that were answered, else NaN.

    Attributes
    ----------
    rps
        Answered requests per second.
    p50_s, p95_s, p99_s
        End to end.
    svc_p95_s, queue_p95_s
        Time at the server, and time waiting in the client.
    cpu
        This process's CPU time divided by elapsed time; 1.0 is one core.
    first_error
        The first failed request's message; ``None`` if none failed.
    prompt_tokens_per_s, completion_tokens_per_s
        Tokens of the answered requests per second; NaN where no answer says how many there were.
    """

    concurrency: int
    requests: int
    errors: int
    elapsed_s: float
    rps: float
    p50_s: float
    p95_s: float
    p99_s: float
    svc_p95_s: float
    queue_p95_s: float
    cpu: float
    first_error: str | None = None
    prompt_tokens_per_s: float = math.nan
    completion_tokens_per_s: float = math.nan

    def line(self) -> str:
        """The level as a line of the printed table."""
        return (
            f"c={self.concurrency:<4} rps={self.rps:.2f}  p50={_seconds(self.p50_s)}  p95={_seconds(self.p95_s)}  "
            f"p99={_seconds(self.p99_s)}  svc_p95={_seconds(self.svc_p95_s)}  q_p95={_seconds(self.queue_p95_s)}  "
            f"err={self.errors}/{self.requests}  elapsed={self.elapsed_s:.1f}s"
        )

    @property
    def bottleneck(self) -> str | None:
        """How the client limited this level, in words; ``None`` if the server did."""
        if self.cpu >= CPU_SHARE:
            return f"this process used {self.cpu:.0%} of a CPU core"
        if self.queue_p95_s >= QUEUE_SHARE * self.svc_p95_s > 0:
            return f"requests waited here (q_p95 {self.queue_p95_s:.3f} s against svc_p95 {self.svc_p95_s:.3f} s)"
        return None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The level to choose, or ``None`` if no level is acceptable, and notes for the user.

    ``short``: there is none, since a level was too short to be measured.
    """

    concurrency: int | None
    notes: tuple[str, ...]
    short: bool = False


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}s"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``share`` of the values do not exceed."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A measured setting for :func:`choose`: its ``name`` in notes, and its ``rate``, work per second."""

    name: str
    rate: float
    p95_s: float
    errors: int
    requests: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate's index, or ``None`` if none is acceptable, and notes for the user."""

    index: int | None
    notes: tuple[str, ...]


def choose(
    candidates: Sequence[Candidate],
    max_p95_s: float | None = None,
    *,
    unit: str,
    grows: str | None,
    settings: str = "level",
) -> Choice:
    """Choose the first candidate whose rate is within 5 % of the best rate of all acceptable candidates.

    A candidate is acceptable if its p95 is at most ``max_p95_s`` and at most 1 % of its requests failed.

    Parameters
    ----------
    candidates
        From the smallest setting to the largest.
    max_p95_s
        In seconds. ``None`` is four times the p95 of the first candidate that has answers.
    unit
        The unit of the rates, for the notes.
    grows
        Advice for the note if the last candidate is chosen, so that a larger setting might be better. ``None`` adds no
        such note.
    settings
        The notes' word for a candidate.

    Examples
    --------
    >>> slow, fast, faster = [
    ...     Candidate("c=1", 10.0, 0.1, 0, 100),
    ...     Candidate("c=4", 39.0, 0.1, 0, 100),
    ...     Candidate("c=8", 40.0, 0.2, 0, 100),
    ... ]
    >>> choose([slow, fast, faster], unit="requests/s", grows=None)
    Choice(index=1, notes=())
    """
    lowest = next((found for found in candidates if found.errors < found.requests), None)
    if lowest is None:
        return Choice(None, ("every request failed: no recommendation",))
    bound = max_p95_s if max_p95_s is not None else P95_GROWTH * lowest.p95_s
    acceptable = [found for found in candidates if found.p95_s <= bound and found.errors <= MAX_ERRORS * found.requests]
    if not acceptable:
        return Choice(
            None,
            (f"no {settings} has a p95 of at most {bound:.3f} s and at most {MAX_ERRORS:.0%} failed requests",),
        )
    best = max(found.rate for found in acceptable)
    chosen = next(found for found in acceptable if found.rate >= NEAR_BEST * best)
    notes = []
    fastest = max(candidates, key=lambda found: found.rate)
    if fastest not in acceptable:
        notes.append(
            f"{fastest.name} was faster ({fastest.rate:.2f} {unit}), but its p95 is above {bound:.3f} s or "
            "requests failed"
        )
    elif grows is not None and len(candidates) > 1 and chosen is candidates[-1]:
        notes.append(f"throughput was still growing at {chosen.name}: {grows}")
    return Choice(next(index for index, found in enumerate(candidates) if found is chosen), tuple(notes))


def recommend(levels: Sequence[Level], max_p95_s: float | None = None) -> Recommendation:
    """Recommend the smallest acceptable concurrency within 5 % of the best throughput, by the rule of :func:`choose`.

    Parameters
    ----------
    levels
        One for each concurrency, in any order.
    max_p95_s
        The highest acceptable p95, in seconds; ``None`` as in :func:`choose`.
    """
    ordered = sorted(levels, key=lambda level: level.concurrency)
    candidates = [
        Candidate(f"c={level.concurrency}", level.rps, level.p95_s, level.errors, level.requests) for level in ordered
    ]
    found = choose(candidates, max_p95_s, unit="requests/s", grows="measure higher levels (--concurrency)")
    if found.index is None:
        return Recommendation(None, found.notes)
    shortest = min(filter(_is_sound, ordered), key=lambda level: level.elapsed_s)
    if shortest.elapsed_s < SHORTEST_S:
        enough = _rounded_up(shortest.requests * SHORTEST_S / shortest.elapsed_s * 2)
        words = f"c={shortest.concurrency} took {shortest.elapsed_s:.2f} s, and a level has to take {SHORTEST_S:g} s"
        return Recommendation(None, (f"no recommendation: {words} to be measured: --requests {enough}",), short=True)
    chosen = ordered[found.index]
    notes = list(found.notes)
    if chosen.bottleneck:
        notes.append(f"at c={chosen.concurrency} the client, not the server, is the bottleneck: {chosen.bottleneck}")
    else:
        limited = next((level for level in ordered if level.bottleneck), None)
        if limited is not None:
            notes.append(
                f"from c={limited.concurrency} on the client, not the server, is the bottleneck: {limited.bottleneck}"
            )
    return Recommendation(chosen.concurrency, tuple(notes))


def _is_sound(level: Level) -> bool:
    """Whether a level could be chosen: those that fail may end at once."""
    return level.errors <= MAX_ERRORS * level.requests


def _rounded_up(count: float) -> int:
    """A count with one digit that is not zero."""
    step: int = 10 ** max(len(str(math.ceil(count))) - 1, 0)
    return math.ceil(count / step) * step


async def measure(
    stage: DirectStage,
    rows: Sequence[Mapping[str, Any]],
    concurrency: int,
    requests: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Level:
    """Send ``requests`` requests, ``concurrency`` at once, and measure them.

    Each request carries ``batch_size`` rows of the stage. ``rows`` is repeated as often as needed.
    """
    size = stage.stage.batch_size
    numbers = iter(range(requests))
    latencies: list[float] = []
    services: list[float] = []
    queues: list[float] = []
    errors: list[RequestError] = []
    usages: list[TokenUsage] = []

    async def pull() -> int:
        number = next(numbers, None)
        if number is None:
            raise StopAsyncIteration
        return number

    async def handle(number: int) -> None:
        batch = [rows[(number * size + offset) % len(rows)] for offset in range(size)]
        results = await stage.ask(batch)
        failure = next((result for result in results if isinstance(result, RequestError)), None)
        metrics = results[0].metrics
        if failure is not None or metrics is None:
            errors.append(failure or RequestError("the answer has no metrics"))
            return
        latencies.append(metrics.end_to_end_s)
        services.append(metrics.service_s)
        queues.append(metrics.queue_s)
        usages.extend(
            result.token_usage
            for result in results
            if not isinstance(result, RequestError) and result.token_usage is not None
        )

    started, cpu_started = clock(), cpu_clock()
    await run_window(pull, handle, concurrency)
    elapsed = max(clock() - started, 1e-9)
    return Level(
        concurrency,
        requests,
        len(errors),
        elapsed,
        len(latencies) / elapsed,
        percentile(latencies, 0.5),
        percentile(latencies, 0.95),
        percentile(latencies, 0.99),
        percentile(services, 0.95),
        percentile(queues, 0.95),
        (cpu_clock() - cpu_started) / elapsed,
        errors[0].message if errors else None,
        sum(usage.prompt_tokens for usage in usages) / elapsed if usages else math.nan,
        sum(usage.completion_tokens for usage in usages) / elapsed if usages else math.nan,
    )


async def sweep(
    stage: DirectStage,
    rows: Sequence[Mapping[str, Any]],
    levels: Sequence[int],
    *,
    requests: int,
    warmup: int,
    report: Callable[[Level], None],
) -> list[Level]:
    """Warm up, measure each level, then close the stage.

    Parameters
    ----------
    levels
        Concurrencies, measured in this order.
    requests
        Requests of each level.
    warmup
        Requests before the first level, which are not measured; 0 for none.
    report
        Called with each level when it has been measured.
    """
    try:
        if warmup:
            await measure(stage, rows, min(max(levels), warmup), warmup)
        measured = []
        for concurrency in levels:
            level = await measure(stage, rows, concurrency, requests)
            report(level)
            measured.append(level)
        return measured
    finally:
        await stage.aclose()


def as_json(levels: Sequence[Level], recommendation: Recommendation, **about: Any) -> dict[str, Any]:
    """All figures as JSON values; a figure that could not be measured is ``None``. ``about`` is added at the top."""
    return {
        **about,
        "levels": [
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in item.items()}
            | {"bottleneck": level.bottleneck}
            for level, item in ((level, asdict(level)) for level in levels)
        ],
        "recommended_max_parallel_requests": recommendation.concurrency,
        "notes": list(recommendation.notes),
    }
