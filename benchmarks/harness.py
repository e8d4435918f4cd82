"""What every benchmark shares: rounds by turns, medians and ratios, result records, and how these are written down.

A script measures and returns a :class:`Result`; :func:`script` is its command line. What is compared runs in a process
of its own each time (:func:`isolated`), so that no way pays for the imports and the garbage of another.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ROOT = Path(__file__).resolve().parent.parent
BARE = "bare pyreqwest loop"
# Script → the package that it cannot do without, of the extra "benchmarks". What it can leave out is left out.
NEEDS = {
    **dict.fromkeys(("client", "run", "inflight", "profile"), "pyreqwest"),
    "tls": "trustme",
    "embeddings": "numpy",
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """One number that is promised, and what it came to. ``bound`` is the least, or the most, that will do."""

    what: str
    measured: float
    bound: float
    unit: str = ""
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the measured number keeps the promise."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def promise(self) -> str:
        """``≥ 0.65``, ``≤ 20 ms``."""
        return f"{'≥' if self.at_least else '≤'} {_number(self.bound)}{self._unit}"

    @property
    def came_to(self) -> str:
        """The measured number with its unit."""
        return f"{_number(self.measured)}{self._unit}"

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


@dataclass(slots=True)
class Result:
    """What one script found: a table, and the targets it is held against.

    ``name`` is the module's, ``conditions`` how it was measured, ``header`` and ``rows`` the table.
    """

    name: str
    title: str
    conditions: str
    header: list[str]
    rows: list[list[str]]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quick: bool = False
    took_s: float = 0.0

    @property
    def command(self) -> str:
        """What measures it again."""
        return f"python -m benchmarks.{self.name}{' --quick' if self.quick else ''}"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def rounds(count: int, ways: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Every way once a round, by turns, so that what the machine does besides meets them all alike."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(count):
        for name, way in ways.items():
            say(f"round {number + 1} of {count}: {name}")
            found[name].append(way())
    return found


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median([a / b for a, b in zip(of, to, strict=True)])


def per_item(
    found: Mapping[str, Sequence[Mapping[str, float]]], sent: Mapping[str, int], what: str
) -> dict[str, list[float]]:
    """What each way took for one item, by round; ``what`` is ``seconds`` or ``cpu_s``."""
    return {way: [each[what] / sent[way] for each in found[way]] for way in sent}


def cpu_note(cpu: Mapping[str, Sequence[float]], base: str, ways: Sequence[str]) -> str:
    """How the CPU time of some ways compares with that of one."""
    parts = " and ".join(f"{way} {ratio(cpu[base], cpu[way]):.2f}" for way in ways)
    return f"By CPU seconds, which a busy machine changes less: {parts} of the loop's."


def peak_notes(peaks: Mapping[int, tuple[float, float, float]], noun: str) -> list[str]:
    """A line for each size: the peak of its memory, its database, its seconds."""
    return [
        f"{size:,} {noun}: peak {peak:.0f} MB, run.duckdb {database:,.0f} MB, {taken:.1f} s."
        for size, (peak, taken, database) in peaks.items()
    ]


def rate_rows(seconds: Mapping[str, Sequence[float]], base: str = BARE) -> list[list[str]]:
    """Seconds a request, by way and round → requests a second, microseconds each, and the ratio to ``base``."""
    rows = []
    for name, each in seconds.items():
        middle = statistics.median(each)
        rows.append([name, f"{1 / middle:,.0f}", f"{1e6 * middle:.1f}", f"{ratio(seconds[base], each):.2f}"])
    return rows


RATE_HEADER = ["", "requests/s", "µs a request", "ratio to bare"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A Markdown table, padded so that it reads as text too; all columns but the first are ``numbers``, or none is."""
    widths = [max(3, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]
    right = [numbers and column > 0 for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - to_right) + ":" * to_right for width, to_right in zip(widths, right, strict=True)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def markdown(result: Result) -> str:
    """One result as a section."""
    parts = [f"## {result.title}", result.conditions, f"    {result.command}", table(result.header, result.rows)]
    if result.targets:
        parts.append(targets_table([result]))
    parts += result.notes
    return "\n\n".join(parts) + "\n"


def targets_table(results: Sequence[Result]) -> str:
    """What was promised beside what was measured."""
    rows = [
        [target.what, target.promise, target.came_to, "yes" if target.met else "**no**"]
        for result in results
        for target in result.targets
    ]
    return table(["claim", "target", "measured", "met"], rows)


def say(text: str) -> None:
    """Tell on stderr what is going on."""
    print(f"  {text}", file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """This process's, with the benchmarked clone first on the path and nobody's Hydra settings or proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HYDRA") and not name.lower().endswith("_proxy")
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_COLOR": "1"}


def isolated(function: Callable[..., Any], **parameters: Any) -> Any:
    """Call a function of this package in a new process; parameters and what it returns must be JSON."""
    module = function.__module__
    if module == "__main__":
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.isolated", f"{module}:{function.__name__}"],
        input=json.dumps(parameters),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def called(spec: str, parameters: Mapping[str, Any]) -> Any:
    """The other end of :func:`isolated`."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)(**parameters)


def raise_descriptors(wanted: int) -> int:
    """Raise this process's limit of open files, which its children inherit, as far as it may; returns what it is."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def lacking(names: Iterable[str]) -> str | None:
    """The line that says what these scripts lack; ``None`` where all is there."""
    missing = {name: NEEDS[name] for name in names if name in NEEDS and find_spec(NEEDS[name]) is None}
    if not missing:
        return None
    packages = ", ".join(dict.fromkeys(missing.values()))
    return (
        f"error: {packages} not installed, which {', '.join(missing)} cannot do without: pip install -e '.[benchmarks]'"
    )


def script(measure: Callable[[bool], Result]) -> None:
    """The command line of a benchmark: measure, print; ``--json FILE`` keeps the record for the page."""
    description = (sys.modules[measure.__module__].__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast it is")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    spec = sys.modules[measure.__module__].__spec__
    if spec is not None and (words := lacking([spec.name.rpartition(".")[2]])) is not None:
        print(words, file=sys.stderr)
        sys.exit(2)
    started = time.perf_counter()
    result = measure(arguments.quick)
    result.quick = arguments.quick
    result.took_s = time.perf_counter() - started
    print(markdown(result))
    if arguments.json is not None:
        arguments.json.write_bytes(dump(result))


def dump(result: Result) -> bytes:
    """A result as JSON."""
    return _adapter().dump_json(result)


def parse(data: bytes) -> Result:
    """And back."""
    return _adapter().validate_json(data)


def _adapter() -> TypeAdapter[Result]:
    from pydantic import TypeAdapter  # here, so that the processes that measure go without

    return TypeAdapter(Result)
