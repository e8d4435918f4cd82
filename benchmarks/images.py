"""Pictures in files, sent as data URLs, beside a bare loop: `python -m benchmarks.images`.

Each request carries a file of a million bytes, 1.33 MB as a data URL, over plain HTTP: through a loop over aiohttp that
reads, encodes and sends it, through `generate_batch` of a generator, and through a run, whose mapper makes the message
as docs/howto/images.md shows it. Then the memory of both with few and with many rows, and what a run stores of each.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.endpoint import watching_endpoint
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
from benchmarks.jobs import experiment, peak_mb, peak_of_run, run_twice
from benchmarks.loops import by_workers, request_body

BYTES, FILES, WINDOW = 1_000_000, 16, 64
BARE, BATCH, RUN = "bare aiohttp loop", "generate_batch", "run"
QUESTION = "What is in this picture? This is question number"
_WARM_UP = 64


def write_pictures(folder: Path) -> None:
    """Files that begin as PNG does, and go on with what no encoding makes shorter."""
    chosen = random.Random(7)
    for number in range(FILES):
        (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chosen.randbytes(BYTES - 8))


def _picture(folder: str, number: int) -> Path:
    return Path(folder, f"{number % FILES}.png")


def conversation(folder: str, number: int) -> list[dict[str, Any]]:
    """A question about one of the pictures, as a user makes it."""
    from infermesh import image_block

    content = [{"type": "text", "text": f"{QUESTION} {number}."}, image_block(_picture(folder, number))]
    return [{"role": "user", "content": content}]


def ask(row: Mapping[str, Any]) -> dict[str, Any]:
    """The mapper of the run."""
    return {"input": conversation(row["folder"], row["id"])}


def bare(url: str, folder: str, requests: int) -> dict[str, float]:
    """A loop by hand; made for ``isolated``."""
    import aiohttp
    import orjson
    import uvloop

    async def main(count: int) -> list[Any]:
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=WINDOW), headers=headers) as session:

            async def ask(number: str) -> Any:
                encoded = b64encode(_picture(folder, int(number)).read_bytes()).decode()
                body = request_body("")
                body["messages"][0]["content"] = [
                    {"type": "text", "text": f"{QUESTION} {number}."},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
                ]
                async with session.post(f"{url}/chat/completions", data=orjson.dumps(body)) as response:
                    return orjson.loads(await response.read())

            return await by_workers([str(number) for number in range(count)], WINDOW, ask)

    uvloop.run(main(_WARM_UP))
    cpu, started = time.process_time(), time.perf_counter()
    assert None not in uvloop.run(main(requests))
    return _taken(cpu, started)


def batch(url: str, folder: str, requests: int) -> dict[str, float]:
    """`generate_batch` of a generator, so that the pictures need not be in memory at once; made for ``isolated``."""
    import resource

    from infermesh import LMClient

    def conversations(count: int) -> Iterator[list[dict[str, Any]]]:
        return (conversation(folder, number) for number in range(count))

    with LMClient("hosted_vllm/static", api_base=url, max_parallel_requests=WINDOW) as client:
        client.generate_batch(conversations(_WARM_UP))
        cpu, started = time.process_time(), time.perf_counter()
        found = client.generate_batch(conversations(requests))
        taken = _taken(cpu, started)
    assert len(found.results) == requests
    assert not found.failures
    return taken | {"peak_mb": peak_mb(resource.getrusage(resource.RUSAGE_SELF))}


def declared(url: str) -> dict[str, Any]:
    """The run."""
    stage = {"kind": "generate", "model": "m", "mapper": "benchmarks.images:ask", "max_parallel_requests": WINDOW}
    return experiment(url, "rows.jsonl") | {"stages": {"s0": stage}}


def run(url: str, folder: str, requests: int) -> dict[str, float]:
    """A run, from its declaration to its last commit; made for ``isolated``."""
    return run_twice(declared(url), requests, {"folder": folder})


def _taken(cpu: float, started: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}


def measure(quick: bool) -> Result:
    """Every way, some rounds; then the memory."""
    requests, count, sizes = (200, 2, (100, 400)) if quick else (1_000, 3, (200, 2_000))
    with tempfile.TemporaryDirectory() as folder, watching_endpoint() as url:
        write_pictures(Path(folder))
        ways: dict[str, Callable[[], dict[str, float]]] = {
            name: partial(isolated, way, url=url, folder=folder, requests=requests)
            for name, way in {BARE: bare, BATCH: batch, RUN: run}.items()
        }
        found = rounds(count, ways)
        peaks: dict[int, tuple[float, float, float]] = {}
        batches: dict[int, float] = {}
        for size in sizes:
            say(f"memory: {size:,} pictures")
            peaks[size] = peak_of_run(declared(url), size, {"folder": folder})
            batches[size] = isolated(batch, url=url, folder=folder, requests=size)["peak_mb"]
    sent = dict.fromkeys(ways, requests)
    seconds, cpu = per_item(found, sent, "seconds"), per_item(found, sent, "cpu_s")
    few, many = sizes
    stored = 1e3 * (peaks[many][2] - peaks[few][2]) / (many - few)
    more = f"peak at {many:,} pictures over that at {few:,}"
    return Result(
        "images",
        "Pictures",
        f"{requests:,} files of {BYTES / 1e6:.0f} MB as data URLs of {BYTES * 4 / 3e6:.2f} MB, plain HTTP, {WINDOW} in "
        f"flight; {count} rounds by turns, each in a process of its own; medians.",
        ["", "requests/s", "µs a request", "ratio to bare"],
        rate_rows(seconds, BARE),
        [
            Target("pictures: generate_batch, a second", 1 / statistics.median(seconds[BATCH]), 200),
            Target("pictures: run, a second", 1 / statistics.median(seconds[RUN]), 200),
            Target(f"generate_batch: {more}", batches[many] - batches[few], 150, "MB", at_least=False),
            Target(f"run: {more}", peaks[many][0] - peaks[few][0], 150, "MB", at_least=False),
            Target("run.duckdb: what a row with a picture adds", stored, 10, "kB", at_least=False),
        ],
        [
            f"Of the bare loop's rate: generate_batch {ratio(seconds[BARE], seconds[BATCH]):.2f}, "
            f"run {ratio(seconds[BARE], seconds[RUN]):.2f}.",
            cpu_note(cpu, BARE, (BATCH, RUN)),
            *peak_notes(peaks, "pictures"),
            *(f"{size:,} pictures through generate_batch: peak {peak:.0f} MB." for size, peak in batches.items()),
        ],
    )


if __name__ == "__main__":
    script(measure)
