"""What being asked costs a run: `python -m benchmarks.live`.

The same run goes by turns with and without a second process that asks it every 100 milliseconds how far it is, and
what its last rows are. Printed are rows a second and the ratio of each round, for two services: one that takes its
time, as models do, so that the run waits for it (``--latency``), and a static one, so that the processor is the limit;
there the asking process itself takes its share of the machine, which is told beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.endpoint import static_endpoint
from benchmarks.jobs import LagProbe, experiment
from infermesh.execution import execute
from infermesh.simulator.process import SimulatorProcess
from infermesh.simulator.settings import SimulatorSettings
from infermesh.store.live import SOCKET
from infermesh.store.reader import is_live, open_run

EVERY_S = 0.1
QUERIES = ("FROM progress", "SELECT id, s0_text FROM results WHERE s0_status = 'done' ORDER BY row_id DESC LIMIT 20")


def ask_on(folder: Path) -> None:
    """Ask while the run goes on; prints how many answers there were, the processor's seconds and the slowest."""
    while not (folder / SOCKET).exists():
        time.sleep(0.005)
    times: list[float] = []
    done = [0]
    began = time.process_time()
    with open_run(folder) as reader:
        while is_live(folder):
            started = time.perf_counter()
            rows = reader.execute(QUERIES[len(times) % len(QUERIES)]).fetchall()
            times.append(time.perf_counter() - started)
            if len(times) % 2:
                done.append(sum(count for _, status, count in rows if status == "done"))
            time.sleep(max(EVERY_S - times[-1], 0))
    assert done == sorted(done), done
    print(json.dumps([len(times), time.process_time() - began, statistics.median(times), max(times)]))


def one(url: str, rows: Path, window: int, asked: bool) -> tuple[float, list[float]]:
    """Seconds of one run, and what the asking process told."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "r" / "1"
        asker = None
        if asked:
            asker = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.live", "--ask", str(folder)], stdout=subprocess.PIPE, text=True
            )
            time.sleep(1.5)  # its imports are not the run's affair
        outcome = execute(experiment(url, rows, 1, window), folder, roots=[Path.cwd()], observer=LagProbe())
        assert outcome.exit_code == 0, outcome
        told: list[float] = json.loads(asker.communicate(timeout=30)[0]) if asker is not None else []
        return outcome.elapsed_s, told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask is not None:
        ask_on(arguments.ask)
        return
    print(f"{arguments.window} in flight, {arguments.rounds} rounds by turns, medians")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        slow = stack.enter_context(SimulatorProcess(SimulatorSettings(latency_s=arguments.latency)))
        static = stack.enter_context(static_endpoint())
        waiting_rows = min(arguments.rows, int(10 * arguments.window / arguments.latency))
        for name, url, count in (
            (f"a service that takes {arguments.latency:g} s", slow.url, waiting_rows),
            ("a static service", static, arguments.rows),
        ):
            rows = home / f"{count}.jsonl"
            rows.write_text("".join(json.dumps({"id": i, "note": "x" * 100}) + "\n" for i in range(count)))
            measure(name, url, rows, count, arguments.window, arguments.rounds)


def measure(name: str, url: str, rows: Path, count: int, window: int, rounds: int) -> None:
    """Rounds on one service; the order within a round changes from one to the next."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    answers: list[list[float]] = []
    for number in range(rounds + 1):
        for asked in (False, True) if number % 2 else (True, False):
            took, told = one(url, rows, window, asked)
            if number:  # the first round warms up
                speeds[asked].append(count / took)
                if asked:
                    answers.append([*told, took])
    ratios = sorted(with_ / without for with_, without in zip(speeds[True], speeds[False], strict=True))
    print(f"{name}, {count} rows:")
    alone, with_questions = statistics.median(speeds[False]), statistics.median(speeds[True])
    print(f"  alone {alone:8.0f} rows/s   asked {with_questions:8.0f} rows/s")
    print(f"  ratio {statistics.median(ratios):.3f}   (from {ratios[0]:.3f} to {ratios[-1]:.3f})")
    queries, cpu, median, worst, took = (statistics.median(column) for column in zip(*answers, strict=True))
    print(
        f"  {queries:.0f} answers in {took:.1f} s, each after {1e3 * median:.0f} ms, the slowest {1e3 * worst:.0f} ms; "
        f"the asking process itself took {cpu / took:.1%} of a core"
    )


if __name__ == "__main__":
    main()
