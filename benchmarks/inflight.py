"""Thousands in flight against a slow endpoint: `python -m benchmarks.inflight`.

The endpoint answers after a second, give or take half of one: with the same second for all, the first burst would come
back as a burst for ever, whatever the client does. The ideal is the number in flight over the mean latency. Evenness is
read off the endpoint's own record of when requests came in, in buckets of some four hundred, once the start has faded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.endpoint import Arrivals, arrivals, watching_endpoint
from benchmarks.harness import BARE, Result, Target, isolated, raise_descriptors, script
from benchmarks.jobs import run_once
from benchmarks.loops import timed

LATENCY_S, SPREAD_S = 1.0, 0.5
ARRIVALS_A_BUCKET = 410
BATCH, RUN = "generate_batch", "run, 1 stage"


def measure(quick: bool) -> Result:
    """The bare loop, a batch and a run, once each: they last many times the latency."""
    window, laps = (512, 8) if quick else (4096, 14)
    descriptors = raise_descriptors(2 * window + 512)
    if descriptors < window + 256:
        raise SystemExit(f"{window} connections need more than the {descriptors} open files that ulimit -Hn allows")
    requests, ideal = window * laps, window / LATENCY_S
    width_s = round(ARRIVALS_A_BUCKET / ideal, 2)
    ways: dict[str, Callable[[str], Any]] = {
        BARE: lambda url: isolated(timed, way=BARE, url=url, requests=requests, window=window),
        BATCH: lambda url: isolated(timed, way=BATCH, url=url, requests=requests, window=window),
        RUN: lambda url: isolated(run_once, url=url, rows=requests, stages=1, window=window),
    }
    rows, targets, notes = [], [], []
    for name, way in ways.items():
        with watching_endpoint(LATENCY_S, SPREAD_S) as url:
            found = way(url)
            buckets = steady(arrivals(url), requests, laps, width_s)
        rate, mean = sum(buckets) / (len(buckets) * width_s), statistics.mean(buckets)
        variation, least = statistics.pstdev(buckets) / mean, min(buckets) / mean
        rows.append([name, f"{rate:,.0f}", f"{rate / ideal:.1%}", f"{variation:.2f}", f"{least:.0%}"])
        if name != BARE:
            targets += [
                Target(f"{name}, {window:,} in flight: of the ideal rate", 100 * rate / ideal, 90, "%"),
                Target(f"{name}: the emptiest {width_s:g} s, of the mean", 100 * least, 50, "%"),
            ]
        if "worst_ms" in found:
            notes.append(f"The event loop of the run was late by at most {found['worst_ms']:.1f} ms.")
    return Result(
        "inflight",
        f"{window:,} in flight",
        f"{requests:,} requests to an endpoint on the other core that answers after {LATENCY_S:g} ± {SPREAD_S:g} s, "
        f"{window:,} in flight: ideally {ideal:,.0f} requests/s. Arrivals at the endpoint, the first third left out.",
        ["", "requests/s", "of the ideal", f"variation of {width_s:g} s buckets", "least / mean"],
        rows,
        targets,
        notes,
    )


def steady(seen: Arrivals, requests: int, laps: int, width_s: float) -> list[int]:
    """Arrivals in each bucket between the end of the start (warming up included) and the last request."""
    slots = sorted(seen.counts)
    passed, start = 0, slots[0]
    for slot in slots:
        passed += seen.counts[slot]
        if passed >= seen.total - requests + requests * (laps // 3) / laps:
            start = slot
            break
    buckets = seen.buckets(start / 100 + 0.01, seen.last, width_s)
    if not buckets:
        raise RuntimeError("the run was over before it was steady")
    return buckets


if __name__ == "__main__":
    script(measure)
