"""What a run in batches takes beside the same run, live: `python -m benchmarks.batches`.

The server is the simulator, in a process of its own. It answers a batch in a second, so that the time is that of making
lines, sending files and taking results. The peak is that of the run's process, with all rows waiting at once: 50,000 in
a batch.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from benchmarks.endpoint import simulator_endpoint
from benchmarks.harness import Result, Target, rounds, script
from benchmarks.jobs import experiment, used_by_run

WAYS = ("live", "in batches")


def declared(url: str, way: str) -> dict[str, Any]:
    """Two stages, sent one way or the other."""
    batch = {"enabled": way == "in batches", "poll": 0.2}
    entry = {"model": "openai/gpt-4.1-mini", "api_base": url, "batch": batch}
    return experiment(url, "rows.jsonl", 2) | {"deployments": {"d": entry}, "report": False}


def measure(quick: bool) -> Result:
    """Rounds by turns: live and in batches, few rows and many."""
    few, many, count = (1_000, 5_000, 1) if quick else (20_000, 200_000, 3)
    sizes = [(rows, way) for rows in (few, many) for way in WAYS]
    with simulator_endpoint("batches.processing_s=1") as url:
        ways = {f"{rows:,} rows, {way}": partial(used_by_run, declared(url, way), rows) for rows, way in sizes}
        found = rounds(count, ways)
    shown = {
        name: {key: statistics.median(each[key] for each in measured) for key in measured[0]}
        for name, measured in found.items()
    }
    live, batched = (shown[f"{many:,} rows, {way}"] for way in WAYS)
    over = batched["peak_mb"] - live["peak_mb"]
    return Result(
        "batches",
        "Batches",
        "`infermesh run`, two generate stages over the simulator's batch API, which answers a batch in a second, and "
        f"the same run live. {count} rounds by turns; medians.",
        ["", "CPU seconds", "µs of CPU a request", "seconds", "peak MB"],
        [
            [
                name,
                f"{each['cpu_s']:.1f}",
                f"{each['cpu_s'] / (2 * rows) * 1e6:.0f}",
                f"{each['seconds']:.1f}",
                f"{each['peak_mb']:.0f}",
            ]
            for (rows, _), (name, each) in zip(sizes, shown.items(), strict=True)
        ],
        [
            Target("CPU in batches, of the same run live", batched["cpu_s"] / live["cpu_s"], 2.0, at_least=False),
            Target(f"peak at {many:,} rows in batches, over live", over, 300, "MB", at_least=False),
        ],
    )


if __name__ == "__main__":
    script(measure)
