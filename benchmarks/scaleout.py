"""What workers add: `python -m benchmarks.scaleout`.

Two endpoints on this machine. One answers after a second, and each worker has as many in flight: what is measured is
whether two workers send twice what one sends. The static one answers at once, so that the client's CPU is the bound:
there one process, and one and two workers, send the same rows. The rate is that of the middle eight tenths of the rows,
by the time at which each was settled, so that starting workers is not in it; that stands in a column of its own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.endpoint import static_endpoint, watching_endpoint
from benchmarks.harness import Result, Target, isolated, ratio, rounds, script
from benchmarks.jobs import LagProbe, experiment, write_rows

LATENCY_S = 1.0


def run_with(url: str, rows: int, window: int, workers: int) -> dict[str, float]:
    """A run with so many workers; 0: none. Its rate, seconds until a tenth was settled, and the loop's delays."""
    from infermesh.config.declaration import declare
    from infermesh.runs.execute import execute
    from infermesh.store.connection import connect

    engine = {"kind": "local", "workers": workers} if workers else {"kind": "process"}
    probe = LagProbe()
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "rows.jsonl", rows)
        job = declare(experiment(url, source, 1, window) | {"engine": engine}, [Path.cwd()])
        home, began = Path(folder) / "r" / "1", time.time()
        outcome = execute(job, home, observer=probe)
        assert outcome.counts["s0"] == {"done": rows}, outcome.counts
        with connect(home / "run.duckdb", read_only=True) as connection:
            query = "SELECT quantile_cont(epoch(finished_at), [0.1, 0.9]) FROM s0"
            ((first, last),) = connection.execute(query).fetchall()[0]
    return {"rate": 0.8 * rows / (last - first), "until": first - began, **probe.summary()}


def measure(quick: bool) -> Result:
    """Rounds by turns: one and two workers at the slow endpoint, none, one and two at the static one."""
    each, laps, rows, count = (64, 6, 6_000, 1) if quick else (256, 12, 60_000, 3)
    slow: dict[str, Callable[[], dict[str, float]]] = {}
    with watching_endpoint(LATENCY_S) as late, static_endpoint() as url:
        for workers in (1, 2):
            slow[f"{workers} × {each} in flight, answers after {LATENCY_S:g} s"] = partial(
                isolated, run_with, url=late, rows=workers * each * laps, window=workers * each, workers=workers
            )
        static = {
            "one process, static endpoint": partial(isolated, run_with, url=url, rows=rows, window=256, workers=0),
            "1 worker, static endpoint": partial(isolated, run_with, url=url, rows=rows, window=256, workers=1),
            "2 workers, static endpoint": partial(isolated, run_with, url=url, rows=rows, window=256, workers=2),
        }
        found = rounds(count, slow | static)
    rates = {way: [each["rate"] for each in measured] for way, measured in found.items()}
    one, two = slow
    alone, single, double = static
    return Result(
        "scaleout",
        "Several processes",
        f"Runs of one generate stage with `engine.workers`; static: {rows:,} rows, 256 in flight. {count} rounds by "
        "turns; medians.",
        ["", "rows/s", "seconds until a tenth is settled", "hub's loop late, 99.9 %, ms"],
        [
            [
                way,
                f"{statistics.median(rates[way]):,.0f}",
                f"{statistics.median([each['until'] for each in found[way]]):.1f}",
                f"{statistics.median([each['p999_ms'] for each in found[way]]):.1f}",
            ]
            for way in found
        ],
        [
            Target("two workers, of one, answers after a second", ratio(rates[two], rates[one]), 1.8),
            Target("two workers, of one process, static endpoint", ratio(rates[double], rates[alone]), 1.3),
        ],
        [f"One worker sends {ratio(rates[single], rates[alone]):.2f} of what one process does at the static one."],
    )


if __name__ == "__main__":
    script(measure)
