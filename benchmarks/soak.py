"""A long run with faults, kills and a reader: `python -m benchmarks.soak --minutes 30`.

One run at a steady rate against a simulator in a process of its own, in which one request in twenty fails in some way.
Every few minutes the run is killed and gone on with. All the time another process's reader asks its tables. What is
looked for is growth: of memory, open files and threads, and of the event loop's lateness. In the end `infermesh verify`
has to find nothing. Not a part of `python -m benchmarks`, since it takes so long.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import environment, say, table
from benchmarks.jobs import LagProbe, command, write_rows

FOLDER = "outputs/soak"
FAULTS = {"server_error": 0.015, "unavailable": 0.01, "drop": 0.01, "truncate": 0.005, "malformed": 0.01}
_EACH_S = 10.0  # between two looks
_LATENCY_S = 0.1


def _declaration(url: str, per_second: int, memory: str) -> dict[str, Any]:
    """A generate and an embed stage, which share the rate."""
    window = max(16, round(2 * per_second * _LATENCY_S))
    return {
        "name": "soak",
        "source": {"path": "rows.jsonl"},
        "deployments": {
            "d": {"model": "hosted_vllm/any", "api_base": url, "limits": {"rpm": 60 * per_second}},
        },
        "models": {"m": {"deployments": ["d"], "max_retries": 8, "timeout": 20}},
        "stages": {
            "a": {"kind": "generate", "model": "m", "prompt": "Number {{ id }}.", "max_parallel_requests": window},
            "v": {"kind": "embed", "model": "m", "text": "{{ a.text }}", "max_parallel_requests": 16},
        },
        "store": {"memory_limit": memory},
    }


class _Probe(LagProbe):
    """Also writes, every ten seconds, how late the loop was."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._next = time.monotonic() + _EACH_S

    def tick(self, stats: object) -> None:
        if time.monotonic() >= self._next:
            self._next += _EACH_S
            with open(self._path, "a") as file:
                file.write(json.dumps(self.summary()) + "\n")
            self.late_s.clear()


def _run(declaration: str) -> None:
    """The process that is watched: the run, with a probe on its loop."""
    import infermesh

    done = infermesh.run(config=json.loads(declaration), folder=FOLDER, progress=_Probe(Path("lag.jsonl")))
    sys.exit(0 if done.status in ("done", "failed_rows") else 1)


@dataclass
class _Look:
    """One look at the process: seconds since its start, megabytes, open files, threads."""

    session: int
    seconds: float
    rss_mb: float
    files: int
    threads: int


def _look(pid: int, session: int, seconds: float) -> _Look:
    with open(f"/proc/{pid}/statm") as file:
        pages = int(file.read().split()[1])
    count = {what: len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task")}
    return _Look(session, seconds, pages * os.sysconf("SC_PAGESIZE") / 1e6, count["fd"], count["task"])


class _Reader:
    """Asks the run's tables, live or not, as fast as it is answered but for a pause of a fifth of a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over = threading.Event()
        self.answers = self.refusals = 0
        self.worst_s = 0.0
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        from infermesh.errors import StoreError
        from infermesh.query.reader import RunReader, is_live

        while not self._over.wait(0.2):
            began = time.monotonic()
            if not is_live(self._folder):  # it starts, or was just killed; who reads the file would be in its way
                self.refusals += 1
                continue
            try:
                with RunReader(self._folder) as reader:
                    reader.execute("SELECT status, count(*), avg(attempts) FROM a GROUP BY ALL").fetchall()
                    self.answers += 1
            except StoreError:
                self.refusals += 1
            self.worst_s = max(self.worst_s, time.monotonic() - began)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def soak(minutes: float, per_second: int, kill_every_s: float, memory: str) -> int:
    """Run it, print what was seen, and return the exit code."""
    rows = round(60 * minutes * per_second * 0.5)  # two requests a row, but for the batches of the second
    chance, looks, kills = random.Random(1), list[_Look](), 0
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_rows(root / "rows.jsonl", rows)
        faults = [f"faults.{name}={share}" for name, share in FAULTS.items()]
        server = subprocess.Popen(
            command("simulate", f"latency_s={_LATENCY_S}", *faults), cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        declaration = json.dumps(_declaration(server.stdout.readline().strip(), per_second, memory))
        reader = _Reader(root / FOLDER)
        started = time.monotonic()
        try:
            while True:
                child = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.soak", "--run", declaration],
                    cwd=root,
                    env=environment() | {"PYTHONPATH": str(Path(__file__).parents[1])},
                )
                begun, session = time.monotonic(), kills + 1
                until = begun + kill_every_s * chance.uniform(0.7, 1.3)
                while child.poll() is None and time.monotonic() < until:
                    try:
                        child.wait(_EACH_S)
                    except subprocess.TimeoutExpired:
                        looks.append(_look(child.pid, session, time.monotonic() - begun))
                if child.poll() is not None:
                    break
                child.send_signal(signal.SIGKILL)
                child.wait()
                kills += 1
                say(f"{(time.monotonic() - started) / 60:.1f} minutes, {kills} kills")
            took = time.monotonic() - started
        finally:
            reader.close()
            server.terminate()
            server.wait()
        checked = subprocess.run(command("verify", FOLDER), cwd=root, capture_output=True, text=True, check=False)
        lag = [json.loads(line) for line in (root / "lag.jsonl").read_text().splitlines()]
        size = (root / FOLDER / "run.duckdb").stat().st_size / 1e6
        _report(looks, lag, reader, (rows, kills, took, size))
        print(checked.stdout)
        return checked.returncode or child.returncode


def _report(
    looks: Sequence[_Look], lag: Sequence[dict[str, float]], reader: _Reader, run: tuple[int, int, float, float]
) -> None:
    rows, kills, took, size = run
    print(f"{rows:,} rows in {took / 60:.1f} minutes, {kills} kills, run.duckdb {size:.0f} MB")
    print(f"reader: {reader.answers:,} answers, {reader.refusals} times nobody there, at most {reader.worst_s:.2f} s")
    lines = []
    for session in sorted({look.session for look in looks}):
        mine = [look for look in looks if look.session == session and look.seconds > 2 * _EACH_S]
        if len(mine) > 1:
            first, last = mine[0], mine[-1]
            lines.append(
                [
                    f"session {session}, {last.seconds:.0f} s",
                    f"{first.rss_mb:.0f} → {last.rss_mb:.0f}",
                    f"{max(look.rss_mb for look in mine):.0f}",
                    f"{first.files} → {last.files}",
                    f"{first.threads} → {last.threads}",
                ]
            )
    print(table(["", "RSS MB", "at most", "open files", "threads"], lines))
    if lag:
        third = max(1, len(lag) // 3)
        words = []
        for name, part in (("first", lag[:third]), ("last", lag[-third:])):
            median = sorted(each["median_ms"] for each in part)[len(part) // 2]
            worst = sorted(each["p999_ms"] for each in part)[len(part) // 2]
            words.append(f"{name} third: median {median:.2f} ms, 99.9th percentile {worst:.1f} ms")
        print(f"lateness of the event loop, {'; '.join(words)}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--per-second", type=int, default=500, help="requests a second")
    parser.add_argument("--kill-every", type=float, default=240.0, help="seconds, about")
    parser.add_argument("--memory", default="256MB", help="store.memory_limit, up to which DuckDB keeps what it wrote")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        _run(given.run)
    sys.exit(soak(given.minutes, given.per_second, given.kill_every, given.memory))


if __name__ == "__main__":
    main()
