"""What a run costs beside a bare HTTP loop: `python -m benchmarks.run`.

A run is everything that `infermesh run` does between its first and its last line: rows from JSONL into DuckDB, a
template for each, retries, limits, routing, typed results, every state and every attempt committed, progress counted.
The same prompts go to the same static endpoint by turns, by hand and through runs of one and of three generate stages,
with a probe on the event loop that notes how long it was ever kept from its timers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.endpoint import static_endpoint
from benchmarks.harness import BARE, RATE_HEADER, Result, Target, isolated, rate_rows, ratio, rounds, script
from benchmarks.jobs import idle, run_once
from benchmarks.loops import timed

WINDOW = 64
ONE, THREE, IDLE = "run, 1 stage", "run, 3 stages", "an idle loop"


def measure(quick: bool) -> Result:
    """The bare loop and both runs, some rounds."""
    requests, rows, rows_of_three, count = (4_000, 4_000, 1_500, 2) if quick else (20_000, 100_000, 20_000, 3)
    with static_endpoint() as url:
        ways: dict[str, Callable[[], dict[str, float]]] = {
            BARE: lambda: isolated(timed, way=BARE, url=url, requests=requests, window=WINDOW),
            ONE: lambda: isolated(run_once, url=url, rows=rows, stages=1, window=WINDOW),
            THREE: lambda: isolated(run_once, url=url, rows=rows_of_three, stages=3, window=WINDOW),
            IDLE: lambda: isolated(idle, seconds=3),
        }
        found = rounds(count, ways)
    sent = {BARE: requests, ONE: rows, THREE: 3 * rows_of_three}
    seconds = {way: [each["seconds"] / sent[way] for each in found[way]] for way in sent}
    late = [each for way in (ONE, THREE) for each in found[way]]
    idle_worst = max(each["worst_ms"] for each in found[IDLE])
    worst, usual = max(each["worst_ms"] for each in late), statistics.median([each["median_ms"] for each in late])
    rare = statistics.median([each["p999_ms"] for each in late])
    return Result(
        "run",
        "A run beside a bare loop",
        f"`run` of {rows:,} rows from JSONL through one generate stage, and of {rows_of_three:,} through three, all "
        f"committed; {WINDOW} in flight; the bare loop sends {requests:,}. {count} rounds by turns, each in a process "
        "of its own; medians for each request sent.",
        RATE_HEADER,
        rate_rows(seconds),
        [
            Target("run of one stage, of the bare pyreqwest loop", ratio(seconds[BARE], seconds[ONE]), 0.40),
            Target("run of three stages, of that, per request sent", ratio(seconds[ONE], seconds[THREE]), 0.8),
            Target("run: the event loop late by at most", worst, 20, "ms", at_least=False),
        ],
        [
            f"The event loop's timers were late by {usual:.1f} ms (median), {rare:.1f} ms (99.9 %), "
            f"{worst:.1f} ms (worst); those of a loop that does nothing else, between the runs, by at most "
            f"{idle_worst:.1f} ms."
        ],
    )


if __name__ == "__main__":
    script(measure)
