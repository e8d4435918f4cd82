"""Embeddings, 32 texts a request, beside bare loops: `python -m benchmarks.embeddings`.

Every way asks the same endpoint for vectors of 1,024 numbers: a loop over aiohttp that asks for base64 and decodes it
with numpy, one that asks for JSON, `embed_batch`, and a run, which stores the vectors. Then the memory of runs of
several sizes, as a user starts them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.endpoint import embedding_endpoint
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
from benchmarks.jobs import embedding_experiment, peak_of_run, run_embedding

TEXTS, DIMENSIONS, WINDOW = 32, 1024, 16
PACKED, NUMBERS, BATCH, RUN = "bare aiohttp loop, base64", "bare aiohttp loop, JSON", "embed_batch", "run"


def bare(url: str, requests: int, packed: bool) -> dict[str, float]:
    """A loop by hand; made for ``isolated``."""
    import aiohttp
    import orjson
    import uvloop

    async def main() -> list[Any]:
        left = iter(range(requests))
        kept: list[Any] = []
        connector = aiohttp.TCPConnector(limit=WINDOW)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def worker() -> None:
                for number in left:
                    texts = [f"This is text number {number * TEXTS + at}." for at in range(TEXTS)]
                    body: dict[str, Any] = {"model": "static", "input": texts}
                    if packed:
                        body["encoding_format"] = "base64"
                    async with session.post(f"{url}/embeddings", data=orjson.dumps(body)) as response:
                        answer = orjson.loads(await response.read())
                    kept.extend(_decoded(item["embedding"]) for item in answer["data"])

            await asyncio.gather(*[worker() for _ in range(WINDOW)])
        return kept

    uvloop.run(main())
    cpu, started = time.process_time(), time.perf_counter()
    assert len(uvloop.run(main())) == requests * TEXTS
    return {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}


def _decoded(vector: Any) -> Any:
    if not isinstance(vector, str):
        return vector
    from base64 import b64decode

    import numpy as np

    return np.frombuffer(b64decode(vector), dtype=np.float32)


def batch(url: str, requests: int) -> dict[str, float]:
    """`embed_batch`; made for ``isolated``."""
    from infermesh import LMClient

    texts = [f"This is text number {number}." for number in range(requests * TEXTS)]
    with LMClient("hosted_vllm/static", api_base=url, max_parallel_requests=WINDOW) as client:
        client.embed_batch(texts[: 32 * TEXTS], micro_batch_size=TEXTS)
        cpu, started = time.process_time(), time.perf_counter()
        found = client.embed_batch(texts, micro_batch_size=TEXTS)
        taken = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    assert not found.failures
    assert all(result is not None and result.dimensions == DIMENSIONS for result in found)
    return taken


def measure(quick: bool) -> Result:
    """Every way, some rounds; then the memory."""
    requests, count, sizes = (100, 2, (3_200, 9_600)) if quick else (1_000, 3, (10_016, 100_000, 1_000_000))
    with embedding_endpoint(TEXTS, DIMENSIONS) as url:
        ways: dict[str, Callable[[], dict[str, float]]] = {
            PACKED: partial(isolated, bare, url=url, requests=requests, packed=True),
            NUMBERS: partial(isolated, bare, url=url, requests=requests // 2, packed=False),
            BATCH: partial(isolated, batch, url=url, requests=requests),
            RUN: partial(isolated, run_embedding, url=url, rows=requests * TEXTS, texts=TEXTS, window=WINDOW),
        }
        found = rounds(count, ways)
        peaks: dict[int, tuple[float, float, float]] = {}
        for size in sizes:
            say(f"memory: {size:,} texts")
            peaks[size] = peak_of_run(embedding_experiment(url, "rows.jsonl", TEXTS, WINDOW), size)
    sent = dict.fromkeys(ways, requests * TEXTS) | {NUMBERS: requests // 2 * TEXTS}
    seconds, cpu = per_item(found, sent, "seconds"), per_item(found, sent, "cpu_s")
    stored = 4 * DIMENSIONS * sizes[-1] / 1e6 / peaks[sizes[-1]][1]
    growth = peaks[sizes[-1]][0] - peaks[sizes[0]][0]
    return Result(
        "embeddings",
        "Embeddings",
        f"{requests * TEXTS:,} texts, {TEXTS} a request, {WINDOW} in flight, {DIMENSIONS:,} numbers each; {count} "
        "rounds by turns, each in a process of its own; medians.",
        ["", "texts/s", "µs a text", "ratio to base64"],
        rate_rows(seconds, PACKED),
        [
            Target("embed_batch, of the loop that asks for base64", ratio(seconds[PACKED], seconds[BATCH]), 0.8),
            Target("run of an embed stage, of that", ratio(seconds[PACKED], seconds[RUN]), 0.5),
            Target(f"embeddings: peak at {sizes[-1]:,} over that at {sizes[0]:,}", growth, 300, "MB", at_least=False),
        ],
        [
            cpu_note(cpu, PACKED, (BATCH, RUN)),
            *peak_notes(peaks, "texts"),
            f"A whole run of {sizes[-1]:,} texts stored {stored:.0f} MB of vectors a second.",
        ],
    )


if __name__ == "__main__":
    script(measure)
