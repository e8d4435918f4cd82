"""How near `infermesh plan` comes to the truth: `python -m benchmarks.plan`.

Each shape of a job is planned, then run against the embedded simulator. Those marked "again" are planned a second time,
with the first run as evidence.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Target, say, script
from benchmarks.jobs import LagProbe
from infermesh.config.compose import compose
from infermesh.config.declaration import declare
from infermesh.config.project import shipped_project
from infermesh.plan import Plan, make_plan
from infermesh.runs.execute import execute


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

    def row(self) -> list[str]:
        """As it stands in the table."""
        tokens = f"{self.estimate_tokens / self.truth_tokens:.2f}" if self.truth_tokens else "-"
        return [self.name, self.binding, f"{self.estimate_s:.2f}", f"{self.truth_s:.2f}", f"{self.ratio:.2f}", tokens]


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


def shapes(root: Path, quick: bool = False) -> Iterator[Shape]:
    """The jobs, over rows that are written to ``root``; of the quick ones each is planned once."""
    sentence = "The parcel came late and the box was open, but nothing was missing. "
    with open(root / "rows.jsonl", "w", encoding="utf-8") as rows:
        for n in range(160 if quick else 180):
            rows.write(json.dumps({"n": n, "text": f"Number {n}. {sentence * (1 + n % 7)}"}) + "\n")
    slow = {"latency_s": 0.2, "latency_spread": 0.4}
    yield Shape("concurrency", declared("concurrency", {"a": generate(8)}, simulator=slow), 1 if quick else 2)
    limited = {"d": {"model": "hosted_vllm/any", "api_base": "simulator", "limits": {"rpm": 2400}}}
    yield Shape("rpm", declared("rpm", {"a": generate(32)}, simulator=slow, deployments=limited))
    yield Shape("capacity", declared("capacity", {"a": generate(64)}, simulator={**slow, "capacity": 8}))
    if quick:
        return
    tokens = {"d": {"model": "hosted_vllm/any", "api_base": "simulator", "limits": {"tpm": 250_000}}}
    yield Shape("tpm", declared("tpm", {"a": generate(32)}, simulator=slow, deployments=tokens))
    chain = {
        "a": generate(16),
        "b": generate(8, "Once more: {{ a.text }}"),
        "c": {"kind": "embed", "text": "{{ b.text }}", "micro_batch_size": 8},
    }
    yield Shape("chain, decoding", declared("chain", chain, simulator={**slow, "tokens_per_second": 150}))
    yield Shape("quickstart, 180 rows", quickstart(root), 2)


def quickstart(root: Path) -> dict[str, Any]:
    """The shipped experiment over three copies of its tickets."""
    lines = (shipped_project() / "pipelines/quickstart/data/tickets.jsonl").read_text(encoding="utf-8").splitlines()
    with open(root / "tickets.jsonl", "w", encoding="utf-8") as rows:
        for copy in range(3):
            for line in lines:
                ticket = json.loads(line)
                rows.write(json.dumps({**ticket, "subject": f"{ticket['subject']} ({copy})"}) + "\n")
    with chdir(root):
        return compose(["+experiment=quickstart", "source.path=tickets.jsonl"]).mapping


def planned(shape: Shape, root: Path) -> Iterator[Found]:
    """Plan and run a shape as often as it asks for."""
    for time in range(shape.times):
        folder = root / "outputs" / str(shape.mapping["name"]) / str(time)
        job = declare(shape.mapping, [root, shipped_project()])
        plan: Plan = make_plan(job, folder, environ={})
        with redirect_stderr(io.StringIO()):
            outcome = execute(job, folder, observer=LagProbe(), environ={})
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


def measure(quick: bool) -> Result:
    """Every shape."""
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes(Path(folder), quick):
            say(shape.name)
            found += planned(shape, Path(folder))
    off = 100 * max(abs(each.ratio - 1) for each in found)
    return Result(
        "plan",
        "The plan",
        "What `infermesh plan` says of a job before anything is sent, and what the run then took, against the embedded "
        "simulator; the ratios are estimated over measured, once each.",
        ["", "bound by", "estimated s", "measured s", "ratio", "tokens' ratio"],
        [each.row() for each in found],
        [Target("the estimate of the worst shape is off by", off, 15, "%", at_least=False)],
    )


if __name__ == "__main__":
    script(measure)
