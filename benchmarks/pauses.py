"""How long the garbage collector stops a program that keeps its results: `python -m benchmarks.pauses`.

Results as a batch makes them are made and kept, with the collector as Python sets it and as it is while a batch runs;
then some more objects, when the batch is over. Each collection is timed in CPU seconds of the thread that it stops.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from benchmarks.harness import Result, Target, isolated, rounds, script

OBJECTS_A_RESULT = 6
PLAIN, TUNED = "as Python sets it", "while a batch runs"


class _Pauses:
    """The CPU seconds of every collection."""

    def __init__(self) -> None:
        self._started = 0.0
        self.seconds: list[float] = []
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._started = time.thread_time()
        else:
            self.seconds.append(time.thread_time() - self._started)

    def take(self) -> list[float]:
        """Those since the last call."""
        taken, self.seconds = self.seconds, []
        return taken


def _result() -> Any:
    from infermesh.results import Attempt, GenerationResult, RequestMetrics, TokenUsage

    attempts = [Attempt(1, "d", 1.0, 0.0, 0.01, 200, None, 12, 11)]
    metrics = RequestMetrics("d", 0.0, 0.01, 0.01, 0, attempts)
    return GenerationResult("chatcmpl-1", "m", TokenUsage(12, 11, 23), None, metrics, b"{}", "Paris.")


def keeping(objects: int, tuned: bool) -> dict[str, float]:
    """Keep so many objects, and some more afterwards; made for ``isolated``."""
    import infermesh.client.client  # noqa: F401  # as much is loaded as a program has that uses it
    from infermesh.runtime.garbage import rare_collections

    pauses = _Pauses()
    with rare_collections() if tuned else nullcontext():
        kept = [_result() for _ in range(objects // OBJECTS_A_RESULT)]
    during = pauses.take()
    after: list[Any] = [[] for _ in range(20_000)]
    assert len(kept) + len(after)
    return {"longest": max(during), "whole": sum(during), "after": max(pauses.take())}


def measure(quick: bool) -> Result:
    """Both ways, some rounds."""
    objects, count = (60_000, 2) if quick else (600_000, 5)
    ways = {PLAIN: False, TUNED: True}
    found = rounds(
        count, {name: partial(isolated, keeping, objects=objects, tuned=tuned) for name, tuned in ways.items()}
    )
    middle = {
        name: {what: 1e3 * statistics.median(each[what] for each in runs) for what in runs[0]}
        for name, runs in found.items()
    }
    return Result(
        "pauses",
        "Pauses of the garbage collector",
        f"{objects:,} objects made and kept, {OBJECTS_A_RESULT} a result, then 20,000 more with it as before; "
        f"{count} rounds by turns, each in a process of its own; medians, in milliseconds.",
        ["", "longest pause", "all pauses", "longest afterwards"],
        [[name, *(f"{ms:.1f}" for ms in each.values())] for name, each in middle.items()],
        [Target("longest pause while results are kept", middle[TUNED]["longest"], 5, "ms", at_least=False)],
    )


if __name__ == "__main__":
    script(measure)
