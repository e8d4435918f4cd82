"""How soon things begin: `python -m benchmarks.start`.

From the start of a process to its end (`--help`, an import) or to the moment when the endpoint has the first request
of a run: a new one of ten rows, and a large one that is resumed when 99 % of it is done. Everything is warm: each has
run before.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.endpoint import arrivals, first_arrival, watching_endpoint
from benchmarks.harness import Result, Target, rounds, say, script
from benchmarks.jobs import command, ended, experiment, launch, project

RUN = "outputs/benchmark/it"
_INTERRUPTED = (0, 130)


def to_end(arguments: Sequence[str], folder: Path) -> float:
    """Seconds from a command's start to its end."""
    started = time.monotonic()
    ended(launch(arguments, folder), folder)
    return time.monotonic() - started


def to_first_request(arguments: Sequence[str], folder: Path, url: str) -> float:
    """Seconds from a command's start to its first request; it is interrupted after that."""
    arrivals(url)
    started = time.monotonic()
    process = launch(arguments, folder)
    try:
        first = first_arrival(url)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        ended(process, folder, _INTERRUPTED)
    finally:
        process.kill()
        process.wait()
    return first - started


def new_run(folder: Path, url: str) -> float:
    """Seconds to the first request of a run in a new folder."""
    return to_first_request(command("run", "+experiment=benchmark"), folder, url)


def nearly_done(folder: Path, url: str, rows: int) -> None:
    """A run of so many rows of which 1 % is pending: half of that strewn over it, half at its end.

    It is begun as any run, interrupted, and its tables filled up with SQL instead of a million requests.
    """
    from infermesh.store.connection import connect

    project(folder, experiment(url, "rows.jsonl"), rows)
    begin = command("run", "+experiment=benchmark", f"hydra.run.dir={RUN}")
    to_first_request(begin, folder, url)
    pending = f"row_id % 200 = 7 OR row_id >= {rows - rows // 200}"
    with connect(folder / RUN / "run.duckdb") as connection:
        connection.execute(f"DELETE FROM s0 WHERE {pending}")
        connection.execute(
            "INSERT INTO s0 BY NAME SELECT row_id, 'done' AS status, 'The capital of France is Paris, on the Seine.' "
            "AS text, 'stop' AS finish_reason, 1 AS attempts, 'd' AS deployment, 'static' AS model_id, "
            "'chatcmpl-1' AS request_id, md5(row_id::VARCHAR) AS request_key, 12 AS prompt_tokens, "
            "11 AS completion_tokens, 0.0 AS queue_s, 0.01 AS service_s, now()::TIMESTAMP AS finished_at, "
            "true AS sole_request "
            f"FROM source WHERE NOT ({pending}) AND row_id NOT IN (SELECT row_id FROM s0)"
        )
        ((done,),) = connection.execute("SELECT count(*) FROM s0 WHERE status = 'done'").fetchall()
    assert 0.985 * rows < done < 0.995 * rows, done


def measure(quick: bool) -> Result:
    """Everything some rounds; the medians."""
    count, rows = (2, 100_000) if quick else (5, 1_000_000)
    with ExitStack() as stack:
        url = stack.enter_context(watching_endpoint())
        small, large = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        project(small, experiment(url, "rows.jsonl"), 10)
        say(f"making a run of {rows:,} rows that is 99 % done")
        nearly_done(large, url, rows)
        shown, imported, first, resumed = (
            "infermesh --help",
            "import infermesh",
            "run of 10 rows, new: first request",
            f"run of {rows:,} rows, 99 % done: first request",
        )
        ways: dict[str, Callable[[], float]] = {
            "python, nothing imported": partial(to_end, [sys.executable, "-c", "pass"], small),
            shown: partial(to_end, command("--help"), small),
            imported: partial(to_end, [sys.executable, "-c", "import infermesh"], small),
            first: partial(new_run, small, url),
            resumed: partial(to_first_request, command("resume", RUN), large, url),
        }
        rounds(1, ways)
        found = rounds(count, ways)
    middle = {name: statistics.median(each) for name, each in found.items()}
    bounds = {shown: 0.4, imported: 0.35, first: 1.5, resumed: 5.0}
    return Result(
        "start",
        "Starting and resuming",
        f"Seconds from the start of the process, warm; {count} rounds by turns. The endpoint says when the first "
        "request came.",
        ["", "median s", "worst s"],
        [[name, f"{middle[name]:.3f}", f"{max(each):.3f}"] for name, each in found.items()],
        [Target(name, middle[name], bound, "s", at_least=False) for name, bound in bounds.items()],
    )


if __name__ == "__main__":
    script(measure)
