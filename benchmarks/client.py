"""What the client costs beside a bare HTTP loop: `python -m benchmarks.client`.

The same prompts go to the same static endpoint, by turns: through a hand-written pyreqwest loop (serialize, post, read,
decode, keep), and through the client's faces. Printed are the median of the rounds, the microseconds a request, and the
ratio to the bare loop of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import orjson
import uvloop

from benchmarks.endpoint import static_endpoint
from infermesh import LMClient

PROMPT = "What is the capital of France? Answer in one short sentence, please; this is question number"


async def _bare(url: str, prompts: list[str], window: int) -> list[Any]:
    from pyreqwest.client import ClientBuilder
    from pyreqwest.http import Url

    answers: list[Any] = [None] * len(prompts)
    todo = iter(enumerate(prompts))
    target = Url(f"{url}/chat/completions")
    async with ClientBuilder().build() as client:

        async def worker() -> None:
            for index, prompt in todo:
                body = orjson.dumps({"model": "static", "messages": [{"role": "user", "content": prompt}]})
                request = client.post(target).body_bytes(body).timeout(timedelta(seconds=600)).build()
                response = await request.send()
                answers[index] = orjson.loads(memoryview(await response.bytes()))

        await asyncio.gather(*[worker() for _ in range(window)])
    return answers


def bare(url: str, prompts: list[str], window: int) -> list[Any]:
    """What a user would write by hand for speed alone."""
    return uvloop.run(_bare(url, prompts, window))


def _client(url: str, window: int, **options: Any) -> LMClient:
    return LMClient("hosted_vllm/static", api_base=url, max_parallel_requests=window, **options)


def batch(url: str, prompts: list[str], window: int) -> list[Any]:
    """generate_batch of a list."""
    with _client(url, window) as client:
        return list(client.generate_batch(prompts))


def batch_limited(url: str, prompts: list[str], window: int) -> list[Any]:
    """The same, under limits that do not bind."""
    with _client(url, window, rpm=10_000_000, tpm=10_000_000_000, default_output_tokens=16) as client:
        return list(client.generate_batch(prompts))


def batch_watched(url: str, prompts: list[str], window: int) -> list[Any]:
    """The same, with on_result called in the caller's thread."""
    seen: list[int] = []
    with _client(url, window) as client:
        results = client.generate_batch(prompts, on_result=lambda index, result, error: seen.append(index))
    assert len(seen) == len(prompts)
    return list(results)


def stream(url: str, prompts: list[str], window: int) -> list[Any]:
    """generate_stream of a generator."""
    with _client(url, window) as client:
        return [item.result for item in client.generate_stream(prompt for prompt in prompts)]


def async_batch(url: str, prompts: list[str], window: int) -> list[Any]:
    """agenerate_batch from a loop of the caller's."""

    async def main() -> list[Any]:
        async with _client(url, window) as client:
            return list(await client.agenerate_batch(prompts))

    return asyncio.run(main())


def async_single(url: str, prompts: list[str], window: int) -> list[Any]:
    """agenerate for each prompt, by as many workers in a loop of the caller's."""

    async def main() -> list[Any]:
        todo = iter(prompts)
        answers: list[Any] = []

        async def worker() -> None:
            for prompt in todo:
                answers.append(await client.agenerate(prompt))  # noqa: PERF401

        async with _client(url, window) as client:
            await asyncio.gather(*[worker() for _ in range(window)])
        return answers

    return asyncio.run(main())


WAYS: dict[str, Callable[[str, list[str], int], list[Any]]] = {
    "bare pyreqwest loop": bare,
    "generate_batch": batch,
    "generate_batch, rpm and tpm": batch_limited,
    "generate_batch, on_result": batch_watched,
    "generate_stream": stream,
    "agenerate_batch": async_batch,
    "agenerate, one by one": async_single,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="a part of the names to measure beside the bare loop")
    arguments = parser.parse_args()
    prompts = [f"{PROMPT} {i}." for i in range(arguments.requests)]
    ways = {name: way for name, way in WAYS.items() if way is bare or (arguments.only or "") in name}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with static_endpoint() as url:
        for number in range(arguments.rounds + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                answers = way(url, prompts, arguments.window)
                took = time.perf_counter() - started
                assert len(answers) == len(prompts)
                assert None not in answers
                if number:  # the first round warms up
                    seconds[name].append(took)
    print(f"{arguments.requests} requests, {arguments.window} in flight, {arguments.rounds} rounds by turns, medians")
    for name, times in seconds.items():
        ratio = statistics.median([b / t for b, t in zip(seconds["bare pyreqwest loop"], times, strict=True)])
        median = statistics.median(times)
        rate, each = arguments.requests / median, 1e6 * median / arguments.requests
        print(f"{name:30} {rate:8.0f} requests/s {each:8.1f} µs each   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
