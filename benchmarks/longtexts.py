"""Long prompts and answers beside bare loops: `python -m benchmarks.longtexts`.

Prompts of 32,000 characters and answers of 16,000, over plain HTTP: a loop over aiohttp, `generate_batch`, and a run,
which reads the rows from JSONL and stores the answers. Then the memory of runs of several sizes, as a user starts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.endpoint import long_endpoint, long_text
from benchmarks.harness import (
    Result,
    Target,
    cpu_note,
    isolated,
    peak_notes,
    per_item,
    rate_rows,
    ratio,
    rounds,
    say,
    script,
)
from benchmarks.jobs import experiment, noted, peak_of_run, run_long
from benchmarks.loops import WAYS

PROMPT, ANSWER, WINDOW = 32_000, 16_000, 64
BARE, BATCH, RUN = "bare aiohttp loop", "generate_batch", "run"
_WARM_UP = 64


def asked(way: str, url: str, requests: int) -> dict[str, float]:
    """Put long prompts by one of the ways of :mod:`benchmarks.loops`; made for ``isolated``."""
    text = long_text(PROMPT)
    todo = [f"{text} {number}" for number in range(requests)]
    ask: Callable[..., list[Any]] = WAYS[way]
    ask(url, todo[:_WARM_UP], WINDOW)
    cpu, started = time.process_time(), time.perf_counter()
    answers = ask(url, todo, WINDOW)
    found = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    assert len(answers) == requests
    assert None not in answers
    return found


def measure(quick: bool) -> Result:
    """Every way, some rounds; then the memory."""
    requests, count, sizes = (300, 2, (300, 900)) if quick else (4_000, 3, (1_000, 10_000))
    with long_endpoint(ANSWER) as url:
        ways: dict[str, Callable[[], dict[str, float]]] = {
            BARE: partial(isolated, asked, way=BARE, url=url, requests=requests),
            BATCH: partial(isolated, asked, way=BATCH, url=url, requests=requests),
            RUN: partial(isolated, run_long, url=url, rows=requests, characters=PROMPT, window=WINDOW),
        }
        found = rounds(count, ways)
        peaks = {}
        declared = experiment(url, "rows.jsonl", 1, WINDOW)
        declared["stages"]["s0"]["prompt"] = "{{ note }} {{ id }}"
        for size in sizes:
            say(f"memory: {size:,} rows")
            peaks[size] = peak_of_run(declared, size, noted(PROMPT))
    sent = dict.fromkeys(ways, requests)
    seconds, cpu = per_item(found, sent, "seconds"), per_item(found, sent, "cpu_s")
    growth = peaks[sizes[-1]][0] - peaks[sizes[0]][0]
    return Result(
        "longtexts",
        "Long texts",
        f"{requests:,} prompts of {PROMPT:,} characters, answers of {ANSWER:,}, {WINDOW} in flight; {count} rounds by "
        "turns, each in a process of its own; medians.",
        ["", "requests/s", "µs a request", "ratio to bare"],
        rate_rows(seconds, BARE),
        [
            Target("long texts: generate_batch, of the bare aiohttp loop", ratio(seconds[BARE], seconds[BATCH]), 1),
            Target("long texts: run, of that", ratio(seconds[BARE], seconds[RUN]), 0.6),
            Target(f"long texts: peak at {sizes[-1]:,} over that at {sizes[0]:,}", growth, 300, "MB", at_least=False),
        ],
        [
            cpu_note(cpu, BARE, (BATCH, RUN)),
            *peak_notes(peaks, "rows"),
        ],
    )


if __name__ == "__main__":
    script(measure)
