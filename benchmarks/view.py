"""How long a page of `infermesh view` takes over a run of a million rows: `python -m benchmarks.view`.

The run has two stages. A thousand rows are really run; the others are made of them by DuckDB, with times and numbers of
their own. Each page is asked for over HTTP, a few times, by who has the token: the first time after the server began,
and then again.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.harness import Result, Target, environment, say, script
from benchmarks.jobs import LagProbe, write_rows
from infermesh.config.declaration import declare
from infermesh.runs.execute import execute
from infermesh.simulator import Simulator, SimulatorSettings

SEED, TIMES, QUICK_TIMES, AGAIN = 1000, 1000, 5, 5
RUN = "big/2026-01-01_00-00-00"
# What makes another row of each, in place of a column's value; k counts the copies.
OTHER = {
    "row_id": f"row_id + {SEED} * k",
    "row_key": "row_key || k",
    "id": f"id + {SEED} * k",
    "text": "text || ' ' || k",
    "request_id": "request_id || k",
    "request_key": "request_key || k",
    "service_s": "service_s * (0.5 + random())",
    "finished_at": "finished_at + to_microseconds(k * 300000)",
}


def make_run(root: Path, times: int) -> None:
    """A run of ``times`` thousand rows, one in a thousand of which has failed."""
    rows = write_rows(root / "rows.jsonl", SEED, {"text": "The parcel came late and the box was open."})
    with Simulator(SimulatorSettings(latency_s=0.01)) as simulator:
        prices = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
        deployment = {"model": "hosted_vllm/any", "api_base": simulator.url}
        stages = {
            "answers": {"kind": "generate", "model": "m", "prompt": "{{ text }} {{ id }}"},
            "replies": {"kind": "generate", "model": "m", "prompt": "{{ answers.text }}"},
        }
        declared = {
            "name": "big",
            "source": {"path": str(rows)},
            "deployments": {"d": deployment | prices, "e": deployment},
            "models": {"m": {"deployments": ["d", "e"]}},
            "stages": stages,
            "report": False,
        }
        execute(declare(declared, [root]), root / "outputs" / RUN, observer=LagProbe(), environ={})
    with duckdb.connect(str(root / "outputs" / RUN / "run.duckdb")) as connection:
        for table in ("source", *stages):
            names = [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]
            values = ", ".join(f"{OTHER[name]} AS {name}" if name in OTHER else name for name in names)
            connection.execute(f"INSERT INTO {table} SELECT {values} FROM {table}, range(1, {times}) c(k)")
        connection.execute(
            "UPDATE answers SET status = 'error', error_type = 'timeout', text = NULL, "
            f"error = 'it took longer than ' || row_id % 7 || ' s' WHERE row_id % {SEED} = 5"
        )
        connection.execute(f"UPDATE sessions SET elapsed_s = {0.3 * times + 20}")


def pages(rows: int) -> dict[str, str]:
    """What is asked for, by what it is."""
    late = urlsafe_b64encode(f"[null, {rows * 7 // 10}, {rows}]".encode()).decode()
    return {
        "overview": f"/overview/{RUN}",
        "its charts, which come after it": f"/api/overview/{RUN}",
        "the first rows": f"/rows/{RUN}",
        "rows in the middle": f"/rows/{RUN}?after={late}",
        "the slowest rows": f"/rows/{RUN}?sort=answers.service_s&desc=1",
        "failed rows": f"/rows/{RUN}?status.answers=error",
        "rows by an SQL condition": f"/rows/{RUN}?where=answers_completion_tokens+%3E+5",
        "one row's story": f"/row/{rows // 2}/{RUN}",
        "failures": f"/failures/{RUN}",
        "rows that hold a text": f"/rows/{RUN}?q=+{rows // SEED - 1}",
    }


def measured(root: Path, rows: int) -> dict[str, list[float]]:
    """Page → seconds of each time that it was asked for."""
    command = [sys.executable, "-m", "infermesh", "view", "--no-open", "--outputs", str(root / "outputs")]
    found: dict[str, list[float]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=root) as server:
        try:
            assert server.stdout is not None
            address, _, token = server.stdout.readline().strip().partition("/?token=")
            _get(f"{address}/", token)  # its imports are nobody's page
            for _ in range(AGAIN):
                for name, path in pages(rows).items():
                    found.setdefault(name, []).append(_get(address + path, token))
        finally:
            server.terminate()
    return found


def _get(url: str, token: str) -> float:
    began = time.perf_counter()
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        answer.read()
    return time.perf_counter() - began


def measure(quick: bool) -> Result:
    """Every page."""
    times = QUICK_TIMES if quick else TIMES
    rows = SEED * times
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        say(f"a run of {rows:,} rows")
        make_run(root, times)
        size = os.path.getsize(root / "outputs" / RUN / "run.duckdb")
        found = measured(root, rows)
    table: list[list[str]] = [
        [name, f"{1000 * seconds[0]:.0f}", f"{1000 * statistics.median(seconds):.0f}"]
        for name, seconds in found.items()
    ]
    searched = "rows that hold a text"
    bounded: Any = {name: seconds for name, seconds in found.items() if name not in (searched, list(pages(rows))[1])}
    worst = max(statistics.median(seconds) for seconds in bounded.values())
    return Result(
        "view",
        "The app",
        f"`infermesh view` over a run of {rows:,} rows and two stages ({size >> 20} MB), over HTTP; the median is of "
        f"{AGAIN} times.",
        ["page", "first ms", "median ms"],
        table,
        [
            Target("the overview, the first time", 1000 * found["overview"][0], 300, "ms", at_least=False),
            Target("the slowest page of a run but a search in all texts", 1000 * worst, 300, "ms", at_least=False),
        ],
        [
            "The overview of a large run is sent with its counts; its charts follow, and are kept until the run is "
            "written to again. A search reads every text of the run."
        ],
    )


if __name__ == "__main__":
    script(measure)
