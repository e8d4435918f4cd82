"""What being asked costs a run: `python -m benchmarks.live`.

The same run goes by turns with and without a second process that asks it every 100 milliseconds how far it is, and
what its last rows are: on a service that takes its time, as models do, so that the run waits for it, and on a static
one, so that the processor is the limit; there the asking process takes its own share of the machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.endpoint import static_endpoint
from benchmarks.harness import Result, Target, environment, isolated, ratio, rounds, script
from benchmarks.jobs import LagProbe, experiment, write_rows
from infermesh.config.declaration import declare
from infermesh.query.reader import RunReader, is_live
from infermesh.query.server import SOCKET
from infermesh.runs.execute import execute
from infermesh.simulator.process import SimulatorProcess
from infermesh.simulator.settings import SimulatorSettings

ALONE, ASKED = "alone", "asked"
EVERY_S = 0.1
WINDOW = 64
LATENCY_S = 0.1
_READY = "ready"
QUERIES = ("FROM progress", "SELECT id, s0_text FROM results WHERE s0_status = 'done' ORDER BY row_id DESC LIMIT 20")


def ask_on(folder: str) -> dict[str, Any]:
    """Ask while the run goes on; the seconds of each answer, and the processor's seconds for all."""
    home = Path(folder)
    print(_READY, flush=True)
    while not (home / SOCKET).exists():
        time.sleep(0.005)
    times: list[float] = []
    done = [0]
    began = time.process_time()
    with RunReader(home) as reader:
        while is_live(home):
            started = time.perf_counter()
            rows = reader.execute(QUERIES[len(times) % len(QUERIES)]).fetchall()
            times.append(time.perf_counter() - started)
            if len(times) % 2:
                done.append(sum(count for _, status, count in rows if status == "done"))
            time.sleep(max(EVERY_S - times[-1], 0))
    assert done == sorted(done), done
    return {"answers": times, "cpu_s": time.process_time() - began}


def one(url: str, rows: int, asked: bool) -> dict[str, Any]:
    """Seconds a row of one run, and what the asking process told; made for ``isolated``."""
    with tempfile.TemporaryDirectory() as home:
        source = write_rows(Path(home) / "rows.jsonl", rows)
        _run(url, write_rows(Path(home) / "few.jsonl", WINDOW), Path(home) / "r" / "0")  # imports, bytecode, sockets
        folder = Path(home) / "r" / "1"
        if not asked:
            return {"seconds": _run(url, source, folder) / rows}
        command = [sys.executable, "-m", "benchmarks.isolated", f"{__name__}:{ask_on.__name__}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        ) as asker:
            assert asker.stdin is not None
            assert asker.stdout is not None
            asker.stdin.write(json.dumps({"folder": str(folder)}))
            asker.stdin.close()
            assert asker.stdout.readline().strip() == _READY  # its imports are not the run's affair
            seconds = _run(url, source, folder)
            told: dict[str, Any] = json.loads(asker.stdout.readline())
        return {"seconds": seconds / rows, "cpu_share": told["cpu_s"] / seconds} | told


def _run(url: str, rows: Path, folder: Path) -> float:
    outcome = execute(declare(experiment(url, rows, 1, WINDOW), [Path.cwd()]), folder, observer=LagProbe())
    assert outcome.exit_code == 0, outcome
    return outcome.elapsed_s


def measure(quick: bool) -> Result:
    """Both services, a run alone and a run asked by turns."""
    slow_rows, static_rows, count = 2_000, 10_000, 1 if quick else 3
    with ExitStack() as stack:
        slow = stack.enter_context(SimulatorProcess(SimulatorSettings(latency_s=LATENCY_S)))
        static = stack.enter_context(static_endpoint())
        services = {
            f"a service that takes {LATENCY_S:g} s": (slow.url, slow_rows),
            "a static one": (static, static_rows),
        }
        table, notes, kept = [], [], []
        for name, (url, rows) in services.items():
            ways = {way: partial(isolated, one, url=url, rows=rows, asked=way == ASKED) for way in (ALONE, ASKED)}
            found = rounds(count, ways)
            seconds = {way: [each["seconds"] for each in found[way]] for way in ways}
            kept.append(ratio(seconds[ALONE], seconds[ASKED]))
            speeds = [f"{1 / statistics.median(seconds[way]):,.0f}" for way in ways]
            table.append([name, f"{rows:,}", *speeds, f"{kept[-1]:.3f}"])
            notes.append(f"On {name}, {_told(found[ASKED])}.")
    return Result(
        "live",
        "Being asked",
        f"Rows a second of a run of one generate stage, {WINDOW} in flight, alone and asked from another process every "
        f"{1e3 * EVERY_S:.0f} ms how far it is or what its last rows are; {count} rounds by turns; medians.",
        ["", "rows", "alone", "asked", "ratio"],
        table,
        [Target("a run that waits for its service, asked: of its rows a second it keeps", kept[0], 0.98)],
        notes,
    )


def _told(asked: list[dict[str, Any]]) -> str:
    answers = [each for way in asked for each in way["answers"]]
    share = statistics.median([way["cpu_share"] for way in asked])
    return (
        f"answers came after {1e3 * statistics.median(answers):.0f} ms, the slowest after {1e3 * max(answers):.0f} ms; "
        f"the asking process took {share:.0%} of a core"
    )


if __name__ == "__main__":
    script(measure)
