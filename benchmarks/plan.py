"""How near `infermesh plan` comes to the truth: `python -m benchmarks.plan`.

Each shape is planned, then run against the embedded simulator: estimated and measured seconds and tokens, and their
ratios. Shapes marked "again" are planned a second time, with the first run as evidence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infermesh.compose import compose, shipped_project
from infermesh.execution import execute
from infermesh.plan import Plan, make_plan
from infermesh.runstats import RunStats


class Silent:
    """An observer that says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def start(self, stats: RunStats) -> None:
        """Draw nothing."""

    def tick(self, stats: RunStats) -> None:
        """Draw nothing."""

    def stop(self, stats: RunStats) -> None:
        """Draw nothing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A job: its declaration, and how often it is planned and run."""

    name: str
    mapping: dict[str, Any]
    times: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """What was estimated, and what was measured."""

    name: str
    binding: str
    estimate_s: float
    truth_s: float
    estimate_tokens: float
    truth_tokens: int

    @property
    def ratio(self) -> float:
        """Estimated over measured seconds."""
        return self.estimate_s / self.truth_s

    def line(self) -> str:
        """As it is printed."""
        tokens = f"{self.estimate_tokens / self.truth_tokens:.2f}" if self.truth_tokens else "-"
        return (
            f"{self.name:34} {self.estimate_s:7.2f} s {self.truth_s:7.2f} s   ratio {self.ratio:.2f}   "
            f"tokens {tokens}   {self.binding}"
        )


def declared(name: str, stages: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A declaration over the embedded simulator."""
    mapping: dict[str, Any] = {
        "name": name,
        "source": {"path": "rows.jsonl"},
        "deployments": {"d": {"model": "hosted_vllm/any", "api_base": "simulator"}},
        "models": {"m": {"deployments": ["d"]}},
        "stages": {stage: {"model": "m", **fields} for stage, fields in stages.items()},
    }
    return mapping | sections


def generate(window: int, prompt: str = "Summarise this:\n\n{{ text }}") -> dict[str, Any]:
    return {"kind": "generate", "prompt": prompt, "max_parallel_requests": window}


def shapes(root: Path) -> Iterator[Shape]:
    """The jobs, over rows that are written to ``root``."""
    sentence = "The parcel came late and the box was open, but nothing was missing. "
    with open(root / "rows.jsonl", "w", encoding="utf-8") as rows:
        for n in range(400):
            rows.write(json.dumps({"n": n, "text": f"Number {n}. {sentence * (1 + n % 7)}"}) + "\n")
    slow = {"latency_s": 0.2, "latency_spread": 0.4}
    yield Shape("concurrency", declared("concurrency", {"a": generate(8)}, simulator=slow), 2)
    limited = {"d": {"model": "hosted_vllm/any", "api_base": "simulator", "limits": {"rpm": 2400}}}
    yield Shape("rpm", declared("rpm", {"a": generate(32)}, simulator=slow, deployments=limited), 2)
    tokens = {"d": {"model": "hosted_vllm/any", "api_base": "simulator", "limits": {"tpm": 250_000}}}
    yield Shape("tpm", declared("tpm", {"a": generate(32)}, simulator=slow, deployments=tokens))
    yield Shape("capacity", declared("capacity", {"a": generate(64)}, simulator={**slow, "capacity": 8}), 2)
    chain = {
        "a": generate(16),
        "b": generate(8, "Once more: {{ a.text }}"),
        "c": {"kind": "embed", "text": "{{ b.text }}", "micro_batch_size": 8},
    }
    yield Shape("chain, decoding", declared("chain", chain, simulator={**slow, "tokens_per_second": 150}))
    yield Shape("quickstart, 300 rows", quickstart(root), 2)


def quickstart(root: Path) -> dict[str, Any]:
    """The shipped experiment over five copies of its tickets."""
    lines = (shipped_project() / "pipelines/quickstart/data/tickets.jsonl").read_text(encoding="utf-8").splitlines()
    with open(root / "tickets.jsonl", "w", encoding="utf-8") as rows:
        for copy in range(5):
            for line in lines:
                ticket = json.loads(line)
                rows.write(json.dumps({**ticket, "subject": f"{ticket['subject']} ({copy})"}) + "\n")
    with chdir(root):
        return compose(["+experiment=quickstart", "source.path=tickets.jsonl"]).mapping


def measure(shape: Shape, root: Path) -> Iterator[Found]:
    """Plan and run a shape as often as it asks for."""
    roots = [root, shipped_project()]
    for time in range(shape.times):
        folder = root / "outputs" / str(shape.mapping["name"]) / str(time)
        plan: Plan = make_plan(shape.mapping, folder, roots=roots, environ={})
        with redirect_stderr(io.StringIO()):
            outcome = execute(shape.mapping, folder, roots=roots, observer=Silent(), environ={})
        estimate = plan.estimate
        tokens = sum((stage.prompt_tokens or 0) + (stage.completion_tokens or 0) for stage in estimate.stages)
        yield Found(
            shape.name + (", again" if time else ""),
            estimate.binding.name if estimate.binding else "nothing",
            estimate.wall_s or 0.0,
            outcome.elapsed_s,
            tokens,
            outcome.totals["prompt_tokens"] + outcome.totals["completion_tokens"],
        )


def main() -> None:
    """Measure every shape, or those whose names hold a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="only shapes whose names hold this")
    arguments = parser.parse_args()
    print(f"{'':34} {'estimate':>9} {'truth':>9}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        for shape in shapes(Path(folder)):
            if arguments.name in shape.name:
                for found in measure(shape, Path(folder)):
                    print(found.line(), flush=True)
                    worst = max(worst, abs(found.ratio - 1))
    print(f"at most {100 * worst:.0f} % off")


if __name__ == "__main__":
    main()
