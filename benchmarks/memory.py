"""Peak memory over the size of the input: `python -m benchmarks.memory`.

`infermesh run` as a user starts it, from JSONL through one generate stage, each size in a process of its own; the
endpoint is another's process and does not count. Nothing of infermesh is loaded here: see `jobs.peak_rss`. Then what a
batch of the client keeps for each of its results.
"""

from __future__ import annotations

from benchmarks.endpoint import static_endpoint
from benchmarks.harness import Result, Target, isolated, say, script
from benchmarks.jobs import bytes_a_result, experiment, peak_of_run


def measure(quick: bool) -> Result:
    """Every size once."""
    sizes = (10_000, 100_000) if quick else (10_000, 200_000, 1_000_000)
    peaks: dict[int, float] = {}
    rows = []
    with static_endpoint() as url:
        for size in sizes:
            say(f"{size:,} rows")
            peaks[size], seconds, database = peak_of_run(experiment(url, "rows.jsonl"), size)
            rows.append([f"{size:,} rows", f"{peaks[size]:.0f}", f"{database:.0f}", f"{seconds:.1f}"])
        results = sizes[0] if quick else 200_000
        say(f"a batch of {results:,}")
        each = isolated(bytes_a_result, url=url, results=results)
    growth = peaks[sizes[-1]] - peaks[sizes[0]]
    return Result(
        "memory",
        "Memory",
        "`infermesh run`, one generate stage, 64 in flight, DuckDB's memory limit as it ships (256 MB): the peak of "
        "the process's resident memory.",
        ["", "peak MB", "run.duckdb MB", "seconds"],
        rows,
        [
            Target(f"peak at {sizes[-1]:,} rows over that at {sizes[0]:,}", growth, 150, "MB", at_least=False),
            Target("generate_batch: what a result takes beyond its text", each, 400, "B", at_least=False),
        ],
        [f"The last figure is by how much resident memory grows with a batch of {results:,} short answers, for each."],
    )


if __name__ == "__main__":
    script(measure)
