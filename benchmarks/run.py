"""What a run costs beside a bare HTTP loop: `python -m benchmarks.run`.

A run is everything that `infermesh run` does between its first and its last line: rows from JSONL into DuckDB, a
template for each, retries, limits, routing, typed results, every state and every attempt committed, progress counted.
The same prompts go to the same static endpoint by turns, by hand and through runs of one and of three generate stages.
Printed are medians, microseconds a request, the ratio to the bare loop of the same round, and how long the event loop
was ever kept from its timers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.client import bare
from benchmarks.endpoint import static_endpoint
from infermesh.execution import execute
from infermesh.runner import RunStats

PROMPT = "What is the capital of France? Answer in one short sentence, please; this is question number {{ id }}."


class LagProbe:
    """An observer that does nothing but measure how late a five-millisecond timer comes."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def note(self, text: str) -> None:
        """Say nothing."""

    def start(self, stats: RunStats) -> None:
        """Start measuring."""
        self._task = asyncio.get_running_loop().create_task(self._measure())

    def tick(self, stats: RunStats) -> None:
        """Draw nothing."""

    def stop(self, stats: RunStats) -> None:
        """End measuring."""
        if self._task is not None:
            self._task.cancel()

    async def _measure(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            self.late_s.append(time.perf_counter() - before - 0.005)


def experiment(url: str, rows: Path, stages: int, window: int) -> dict[str, Any]:
    """A run of generate stages, each with the answer of the one before in its prompt."""
    chain: dict[str, Any] = {}
    for number in range(stages):
        before = f" {{{{ s{number - 1}.text }}}}" if number else ""
        chain[f"s{number}"] = {
            "kind": "generate",
            "model": "m",
            "prompt": PROMPT + before,
            "max_parallel_requests": max(window // stages, 1),
        }
    return {
        "name": "benchmark",
        "source": {"path": str(rows)},
        "deployments": {"d": {"model": "hosted_vllm/static", "api_base": url}},
        "models": {"m": {"deployments": ["d"]}},
        "stages": chain,
    }


def run(url: str, rows: Path, stages: int, window: int) -> tuple[float, list[float]]:
    """One run in a new folder: its seconds, and the lateness of the probe's timers."""
    probe = LagProbe()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        outcome = execute(
            experiment(url, rows, stages, window), Path(folder) / "r" / "1", roots=[Path.cwd()], observer=probe
        )
        took = time.perf_counter() - started
    assert outcome.exit_code == 0, outcome
    return took, probe.late_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"bare pyreqwest loop": [], "run, 1 stage": [], "run, 3 stages": []}
    late: list[float] = []
    with tempfile.TemporaryDirectory() as folder, static_endpoint() as url:
        rows = Path(folder) / "rows.jsonl"
        rows.write_text("".join(json.dumps({"id": i, "note": "x" * 100}) + "\n" for i in range(arguments.rows)))
        prompts = [PROMPT.replace("{{ id }}", str(i)) for i in range(arguments.rows)]
        for number in range(arguments.rounds + 1):
            started = time.perf_counter()
            bare(url, prompts, arguments.window)
            taken = {"bare pyreqwest loop": time.perf_counter() - started}
            for name, stages in (("run, 1 stage", 1), ("run, 3 stages", 3)):
                took, lateness = run(url, rows, stages, arguments.window)
                taken[name] = took / stages
                if number:
                    late += lateness
            if number:  # the first round warms up
                for name, took in taken.items():
                    seconds[name].append(took)
    print(
        f"{arguments.rows} rows, {arguments.window} in flight, {arguments.rounds} rounds by turns, medians per request"
    )
    for name, times in seconds.items():
        ratio = statistics.median([b / t for b, t in zip(seconds["bare pyreqwest loop"], times, strict=True)])
        each = statistics.median(times) / arguments.rows
        print(f"{name:22} {1 / each:8.0f} requests/s {1e6 * each:8.1f} µs each   ratio {ratio:.2f}")
    late.sort()
    print(f"event loop late by: median {1e3 * late[len(late) // 2]:.1f} ms, worst {1e3 * late[-1]:.1f} ms")


if __name__ == "__main__":
    main()
