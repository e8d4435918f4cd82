"""Runs to measure: their rows, their declaration, in this process with a probe on the loop or as a user starts them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import environment

PROMPT = "What is the capital of France? Answer in one short sentence, please; this is question number {{ id }}."
_PERIOD_S = 0.005


class LagProbe:
    """Measures how late a five-millisecond timer comes; also an observer of a run that does nothing else."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def note(self, text: str) -> None:
        """Say nothing."""

    def start(self, stats: object = None) -> None:
        """Start measuring."""
        self._task = asyncio.get_running_loop().create_task(self._measure())

    def tick(self, stats: object) -> None:
        """Draw nothing."""

    def stop(self, stats: object = None) -> None:
        """End measuring."""
        if self._task is not None:
            self._task.cancel()

    async def _measure(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_PERIOD_S)
            self.late_s.append(time.perf_counter() - before - _PERIOD_S)

    def summary(self) -> dict[str, float]:
        """Median, 99.9th percentile and worst lateness in milliseconds."""
        late = sorted(self.late_s) or [0.0]
        return {
            "median_ms": 1e3 * late[len(late) // 2],
            "p999_ms": 1e3 * late[int(0.999 * (len(late) - 1))],
            "worst_ms": 1e3 * late[-1],
        }


def idle(seconds: float) -> dict[str, float]:
    """How late the timers of a loop come that does nothing else: the machine's own part; made for ``isolated``."""
    from infermesh.runtime.loop import run_loop

    async def main() -> dict[str, float]:
        probe = LagProbe()
        probe.start()
        await asyncio.sleep(seconds)
        probe.stop()
        return probe.summary()

    found: dict[str, float] = run_loop(main())
    return found


def noted(characters: int = 100) -> dict[str, Any]:
    """What all rows have beside their number: a note of so many characters."""
    from benchmarks.endpoint import long_text

    return {"note": "x" * characters if characters <= 100 else long_text(characters)}


def write_rows(path: Path, count: int, fields: dict[str, Any] | None = None) -> Path:
    """A JSONL file of so many rows: each its number, ``id``, and these fields; ``None``: a short note."""
    fields = noted() if fields is None else fields
    with path.open("w") as lines:
        lines.writelines(json.dumps({"id": number, **fields}) + "\n" for number in range(count))
    return path


def embedding_experiment(url: str, rows: str | Path, texts: int, window: int) -> dict[str, Any]:
    """A run of one embed stage, ``texts`` in a request."""
    stage = {
        "kind": "embed",
        "model": "m",
        "text": PROMPT,
        "micro_batch_size": texts,
        "max_parallel_requests": window,
    }
    return experiment(url, rows) | {"stages": {"s0": stage}}


def experiment(url: str, rows: str | Path, stages: int = 1, window: int = 64) -> dict[str, Any]:
    """A run of generate stages, each with the answer of the one before in its prompt; ``window`` in flight in all."""
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


def run_once(url: str, rows: int, stages: int, window: int) -> dict[str, float]:
    """One run in a new folder, from its declaration to its last commit; made for ``isolated``.

    A run of a few rows goes before it, so that imports and bytecode are not in the seconds.
    """
    return run_twice(experiment(url, "rows.jsonl", stages, window), rows)


def run_embedding(url: str, rows: int, texts: int, window: int) -> dict[str, float]:
    """The same of an embed stage."""
    return run_twice(embedding_experiment(url, "rows.jsonl", texts, window), rows)


def run_long(url: str, rows: int, characters: int, window: int) -> dict[str, float]:
    """The same of a generate stage with rows, and prompts, of so many characters."""
    declared = experiment(url, "rows.jsonl", 1, window)
    declared["stages"]["s0"]["prompt"] = "{{ note }} {{ id }}"
    return run_twice(declared, rows, noted(characters))


def run_twice(declared: dict[str, Any], rows: int, fields: dict[str, Any] | None = None) -> dict[str, float]:
    """A declaration with a few rows, then with so many, of these fields; what the second took."""
    _run(declared, 64, fields)
    return _run(declared, rows, fields)


def _run(declared: dict[str, Any], rows: int, fields: dict[str, Any] | None) -> dict[str, float]:
    from infermesh.config.declaration import declare
    from infermesh.runs.execute import execute

    probe = LagProbe()
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "rows.jsonl", rows, fields)
        cpu, started = time.process_time(), time.perf_counter()
        job = declare(declared | {"source": {"path": str(source)}}, [Path.cwd()])
        outcome = execute(job, Path(folder) / "r" / "1", observer=probe)
        found = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    assert outcome.exit_code == 0, outcome
    assert all(counts == {"done": rows} for counts in outcome.counts.values()), outcome.counts
    return found | probe.summary()


def bytes_a_result(url: str, results: int) -> float:
    """Bytes by which a batch of short answers makes its process grow, for each, without its text; for ``isolated``."""
    import gc

    from infermesh import LMClient

    def resident() -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    with LMClient(model="hosted_vllm/static", api_base=url, max_parallel_requests=64) as client:
        prompts = ["What is the capital of France?"] * results
        client.generate_batch(prompts[:2000])
        before = resident()
        batch = client.generate_batch(prompts)
        grown = resident() - before
        assert batch.results[0] is not None
        return grown / results - sys.getsizeof(batch.results[0].output_text)


def command(*arguments: str) -> list[str]:
    """``infermesh …`` as installed beside this interpreter."""
    installed = Path(sys.executable).with_name("infermesh")
    return [str(installed), *arguments] if installed.exists() else [sys.executable, "-m", "infermesh", *arguments]


def project(folder: Path, declared: dict[str, Any], rows: int, fields: dict[str, Any] | None = None) -> None:
    """A project of a user's: rows.jsonl and an experiment called benchmark."""
    write_rows(folder / "rows.jsonl", rows, fields)
    target = folder / "conf" / "experiment" / "benchmark.yaml"
    target.parent.mkdir(parents=True)
    target.write_text("# @package _global_\n" + json.dumps(declared, indent=1))


def peak_of_run(
    declared: dict[str, Any], rows: int, fields: dict[str, Any] | None = None
) -> tuple[float, float, float]:
    """Run a declaration as a user does: the peak of its memory in MB, its seconds, and the database's MB."""
    with tempfile.TemporaryDirectory() as folder:
        project(Path(folder), declared, rows, fields)
        peak, seconds = peak_rss(command("run", "+experiment=benchmark", "hydra.run.dir=outputs/it"), Path(folder))
        return peak, seconds, (Path(folder) / "outputs" / "it" / "run.duckdb").stat().st_size / 1e6


def launch(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in a folder, its words kept from the terminal."""
    with open(folder / "stderr.txt", "wb") as errors:
        return subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def ended(process: subprocess.Popen[bytes], folder: Path, expected: Sequence[int] = (0,)) -> None:
    """Wait for a launched command; ``RuntimeError`` with its last words where it ended with another code."""
    code = process.wait()
    if code not in expected:
        words = (folder / "stderr.txt").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"exit code {code}: {words}")


def used_by_run(declared: dict[str, Any], rows: int) -> dict[str, float]:
    """Run a declaration as a user does: its CPU seconds, its seconds, and the peak of its memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        project(Path(folder), declared, rows)
        started = time.perf_counter()
        process = launch(command("run", "+experiment=benchmark", "hydra.run.dir=outputs/it"), Path(folder))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended(process, Path(folder))
        seconds = time.perf_counter() - started
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "seconds": seconds, "peak_mb": peak_mb(usage)}


def peak_rss(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a command to its end; its peak resident memory in MB (10⁶ bytes), and its seconds.

    A process that starts another one hands it its own peak as the first value, so whoever calls this must be small.
    """
    started = time.perf_counter()
    process = launch(arguments, folder)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ended(process, folder)
    return peak_mb(usage), time.perf_counter() - started


def peak_mb(usage: Any) -> float:
    """The peak resident memory in MB (10⁶ bytes), as the operating system counts it (``getrusage``)."""
    return float(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024) / 1e6
