"""Ways to put a list of prompts to an endpoint: by hand, through other clients, and through infermesh's faces.

Each takes the base URL, the prompts and how many may be in flight, and returns the answers. All imports are the way's
own: what it does not need, its process does not load.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import BARE

PROMPT = "What is the capital of France? Answer in one short sentence, please; this is question number"
_WARM_UP = 128
FLEXLLM, FLEXLLM_FILE = "flexllm batch", "flexllm batch, to its file"

Way = Callable[[str, list[str], int], list[Any]]


def prompts(count: int) -> list[str]:
    """So many different prompts."""
    return [f"{PROMPT} {number}." for number in range(count)]


def timed(way: str, url: str, requests: int, window: int) -> dict[str, float]:
    """Seconds and CPU seconds of one way, after a few requests to warm it up; made for ``isolated``."""
    ask, todo = WAYS[way], prompts(requests)
    ask(url, todo[:_WARM_UP], min(window, _WARM_UP))
    cpu, started = time.process_time(), time.perf_counter()
    answers = ask(url, todo, window)
    found = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    assert len(answers) == requests
    assert None not in answers
    return found


def _on_uvloop(main: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    import uvloop

    return uvloop.run(main)


async def by_workers(todo: list[str], window: int, ask: Callable[[str], Awaitable[Any]]) -> list[Any]:
    """Ask for each prompt, by so many workers."""
    answers: list[Any] = [None] * len(todo)
    left = iter(enumerate(todo))

    async def worker() -> None:
        for index, prompt in left:
            answers[index] = await ask(prompt)

    await asyncio.gather(*[worker() for _ in range(window)])
    return answers


def request_body(prompt: str) -> dict[str, Any]:
    """A chat completion's."""
    return {"model": "static", "messages": [{"role": "user", "content": prompt}]}


def bare(url: str, todo: list[str], window: int) -> list[Any]:
    """What a user would write by hand for speed alone: the yardstick."""
    import orjson

    try:
        from pyreqwest.client import ClientBuilder
        from pyreqwest.http import Url
    except ImportError:
        raise SystemExit(f"the {BARE} needs pyreqwest: pip install -e '.[benchmarks]'") from None

    async def main() -> list[Any]:
        target, forever = Url(f"{url}/chat/completions"), timedelta(seconds=600)
        async with ClientBuilder().build() as client:

            async def ask(prompt: str) -> Any:
                request = client.post(target).body_bytes(orjson.dumps(request_body(prompt))).timeout(forever).build()
                response = await request.send()
                return orjson.loads(memoryview(await response.bytes()))

            return await by_workers(todo, window, ask)

    return _on_uvloop(main())


def bare_aiohttp(url: str, todo: list[str], window: int) -> list[Any]:
    """The same over aiohttp."""
    import aiohttp
    import orjson

    async def main() -> list[Any]:
        headers = {"content-type": "application/json"}
        connector = aiohttp.TCPConnector(limit=window)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def ask(prompt: str) -> Any:
                async with session.post(f"{url}/chat/completions", data=orjson.dumps(request_body(prompt))) as response:
                    return orjson.loads(await response.read())

            return await by_workers(todo, window, ask)

    return _on_uvloop(main())


def openai_sdk(url: str, todo: list[str], window: int) -> list[Any]:
    """AsyncOpenAI."""
    from openai import AsyncOpenAI

    async def main() -> list[Any]:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:

            async def ask(prompt: str) -> Any:
                return await client.chat.completions.create(
                    model="static", messages=[{"role": "user", "content": prompt}]
                )

            return await by_workers(todo, window, ask)

    return _on_uvloop(main())


def litellm_loop(url: str, todo: list[str], window: int) -> list[Any]:
    """litellm.acompletion."""
    import litellm

    async def ask(prompt: str) -> Any:
        return await litellm.acompletion(
            model="hosted_vllm/static", api_base=url, api_key="none", messages=[{"role": "user", "content": prompt}]
        )

    return _on_uvloop(by_workers(todo, window, ask))


def flexllm(url: str, todo: list[str], window: int, **options: Any) -> list[Any]:
    """flexllm's batch of conversations."""
    from flexllm import LLMClient

    client = LLMClient(base_url=url, api_key="none", model="static", concurrency_limit=window, max_qps=None)
    conversations = [[{"role": "user", "content": prompt}] for prompt in todo]
    return [answer.content for answer in client.chat_batch_sync(conversations, show_progress=False, **options)]


def flexllm_with_file(url: str, todo: list[str], window: int) -> list[Any]:
    """The same, with the file from which it resumes."""
    with tempfile.TemporaryDirectory() as folder:
        return flexllm(url, todo, window, output_jsonl=f"{folder}/answers.jsonl")


def _client(url: str, window: int, **options: Any) -> Any:
    from infermesh import LMClient

    return LMClient("hosted_vllm/static", api_base=url, max_parallel_requests=window, **options)


def batch(url: str, todo: list[str], window: int, **options: Any) -> list[Any]:
    """generate_batch of a list."""
    with _client(url, window, **options) as client:
        return list(client.generate_batch(todo))


def batch_limited(url: str, todo: list[str], window: int) -> list[Any]:
    """generate_batch with limits that never bind."""
    return batch(url, todo, window, rpm=10_000_000, tpm=10_000_000_000, default_output_tokens=16)


def batch_watched(url: str, todo: list[str], window: int) -> list[Any]:
    """generate_batch with a callback per row."""
    count = 0

    def on_result(index: int, result: Any, error: Any) -> None:
        nonlocal count
        count += 1

    with _client(url, window) as client:
        answers = list(client.generate_batch(todo, on_result=on_result))
    assert count == len(todo)
    return answers


def stream(url: str, todo: list[str], window: int) -> list[Any]:
    """generate_stream of a generator."""
    with _client(url, window) as client:
        return [item.result for item in client.generate_stream(prompt for prompt in todo)]


def async_batch(url: str, todo: list[str], window: int) -> list[Any]:
    """agenerate_batch from a loop of the caller's."""

    async def main() -> list[Any]:
        async with _client(url, window) as client:
            return list(await client.agenerate_batch(todo))

    return asyncio.run(main())


def async_single(url: str, todo: list[str], window: int) -> list[Any]:
    """agenerate for each prompt, by as many workers in a loop of the caller's."""

    async def main() -> list[Any]:
        async with _client(url, window) as client:
            return await by_workers(todo, window, client.agenerate)

    return asyncio.run(main())


WAYS: dict[str, Way] = {
    BARE: bare,
    "bare aiohttp loop": bare_aiohttp,
    "OpenAI SDK loop": openai_sdk,
    "LiteLLM loop": litellm_loop,
    FLEXLLM: flexllm,
    FLEXLLM_FILE: flexllm_with_file,
    "generate_batch": batch,
    "generate_batch, rpm and tpm": batch_limited,
    "generate_batch, on_result": batch_watched,
    "generate_stream": stream,
    "agenerate_batch": async_batch,
    "agenerate, one by one": async_single,
}
if not find_spec("flexllm"):  # the extra "benchmarks" brings it
    del WAYS[FLEXLLM], WAYS[FLEXLLM_FILE]
SLOW = ("OpenAI SDK loop", "LiteLLM loop", FLEXLLM, FLEXLLM_FILE)
