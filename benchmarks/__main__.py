"""All benchmarks, and the page of what they found: `python -m benchmarks`.

Each script runs in a process of its own, one after the other. `--quick` tries whether they work, in small sizes, and
prints the page instead of writing it. `pip install -e '.[dev,benchmarks]'` brings every peer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import ROOT, Result, environment, lacking, markdown, parse, table, targets_table
from benchmarks.machine import describe

SCRIPTS = (
    "client",
    "tls",
    "run",
    "embeddings",
    "longtexts",
    "images",
    "inflight",
    "store",
    "memory",
    "pauses",
    "loopthread",
    "start",
    "limits",
    "live",
    "view",
    "plan",
    "profile",
    "workers",
    "scaleout",
    "batches",
)
PAGE = ROOT / "docs" / "benchmarks.md"


def measured(name: str, quick: bool) -> Result | None:
    """Run one script; ``None`` where it failed, which it has said on stderr."""
    print(f"{name} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "result.json"
        options = ["--json", str(record), *(["--quick"] if quick else [])]
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment(), check=False)
        if done.returncode:
            return None
        result = parse(record.read_bytes())
    print(f"{name}: {result.took_s:.0f} s", file=sys.stderr, flush=True)
    return result


def page(results: Sequence[Result], machine: Sequence[Sequence[str]], took_s: float, quick: bool = False) -> str:
    """The whole page."""
    took = f"{took_s / 60:.0f} minutes" if took_s >= 90 else f"{took_s:.0f} seconds"
    intro = (
        f"Written by `python -m benchmarks`, which took {took}. Every number is measured in that "
        "one go, beside its peers, by turns: a ratio holds for other machines too, a rate only for this one. Each "
        "section has the command that measures it again; `--quick` tries it in small sizes."
    )
    warning = ["**In small sizes (`--quick`): these show that the scripts work, and nothing else.**"] if quick else []
    parts = [
        "# Benchmarks",
        *warning,
        intro,
        table(["machine", ""], machine, numbers=False),
        "## Targets",
        targets_table(results),
        *(markdown(result).strip() for result in results),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Measure everything; 1 where a script failed, 2 where one cannot begin: then nothing is measured.

    A target that is missed stands in the page and is no failure. Where a script failed, no file is written.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run all benchmarks and write the page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these, printed: {', '.join(SCRIPTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, printed instead of written")
    parser.add_argument("--output", type=Path, help=f"where the page goes (default: {PAGE.relative_to(ROOT)})")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SCRIPTS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there is: {', '.join(SCRIPTS)}")
    names = arguments.names or SCRIPTS
    if (words := lacking(names)) is not None:
        print(words, file=sys.stderr)
        return 2
    machine, started = describe(), time.perf_counter()
    found = [measured(name, arguments.quick) for name in names]
    results = [result for result in found if result is not None]
    failed = [name for name, result in zip(names, found, strict=True) if result is None]
    if not results:
        return 1
    text = page(results, machine, time.perf_counter() - started, arguments.quick)
    whole = len(results) == len(SCRIPTS) and not arguments.quick
    output = arguments.output or (PAGE if whole else None)
    if output is None or failed:
        print(text)
        if failed:
            print(f"no page is written: {', '.join(failed)} failed", file=sys.stderr)
    else:
        output.write_text(text, encoding="utf-8")
        print(f"written: {output}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
