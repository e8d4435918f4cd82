"""A service that repeats what it is asked, and remembers how often it was asked each thing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any

from aiohttp import web


class CountingService:
    """Chat completions, embeddings and transcriptions on the loopback interface, in a thread of its own.

    Attributes
    ----------
    asked
        What was asked, as (endpoint, text) → how often. A clip's text is its name.
    answered
        The same for answers that were written to the end → when the last one was, by ``time.monotonic()``.
    latency_s, unavailable
        Seconds before an answer; the share of requests that get a 503 instead.
    """

    def __init__(self, latency_s: float = 0.02, unavailable: float = 0.0) -> None:
        self.latency_s = latency_s
        self.unavailable = unavailable
        self.asked: Counter[tuple[str, str]] = Counter()
        self.requests: Counter[str] = Counter()
        self.answered: dict[tuple[str, str], float] = {}
        self.in_flight = 0
        self.url = ""
        self._chance = random.Random(7)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> CountingService:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/v1/audio/transcriptions", self._transcriptions)
        runner = web.AppRunner(app, access_log=None)

        async def start() -> None:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            self._ready.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(
        self, request: web.Request, endpoint: str, texts: list[str], body: dict[str, Any]
    ) -> web.StreamResponse:
        things = [(endpoint, text) for text in texts]
        self.asked.update(things)
        self.requests[endpoint] += 1
        self.in_flight += 1
        try:
            await asyncio.sleep(self.latency_s)
            if self._chance.random() < self.unavailable:
                return web.json_response({"error": {"message": "overloaded"}}, status=503)
            response = web.json_response(body)
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                await response.write_eof()
                self.answered.update(dict.fromkeys(things, time.monotonic()))
            return response
        finally:
            self.in_flight -= 1

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        text = (await request.json())["messages"][-1]["content"]
        choice = {"index": 0, "message": {"role": "assistant", "content": f"re: {text}"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return await self._answer(
            request, "chat", [text], {"id": "c", "model": "m", "choices": [choice], "usage": usage}
        )

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        texts = (await request.json())["input"]
        # The vector says which text it is of.
        data = [{"index": n, "embedding": [float(text.rpartition(" ")[2]), 1.0]} for n, text in enumerate(texts)]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return await self._answer(request, "embed", texts, {"model": "m", "data": data, "usage": usage})

    async def _transcriptions(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        clip: Any = form["file"]
        return await self._answer(request, "speech", [clip.filename], {"text": f"heard {clip.filename}"})
