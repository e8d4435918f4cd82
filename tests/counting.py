"""A chat server of its own thread that keeps what it was asked, and when: for counts that no client can know."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Self

_HEAD = "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"


class CountingServer:
    """Answers each chat with ``answer to`` and its last message.

    Parameters
    ----------
    delay_s
        Seconds before each answer.

    Attributes
    ----------
    seen
        (``time.monotonic()``, the last message) of each request.
    most
        The most requests at once.
    refuse_next
        How many of the next requests are turned away, with these headers.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.seen: list[tuple[float, str]] = []
        self.most = 0
        self.refuse_next = 0
        self.refusal: Mapping[str, str] = {}
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    @property
    def counts(self) -> Counter[str]:
        """Message → how often it came."""
        return Counter(text for _, text in self.seen)

    def most_within(self, seconds: float) -> int:
        """The most requests in any window of so many seconds."""
        window: deque[float] = deque()
        most = 0
        for at, _ in self.seen:
            window.append(at)
            while window[0] <= at - seconds:
                window.popleft()
            most = max(most, len(window))
        return most

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the connections' last turn

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._talk(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, EOFError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
                text = json.loads(await reader.readexactly(length))["messages"][-1]["content"]
                self.seen.append((time.monotonic(), text))
                self._now += 1
                self.most = max(self.most, self._now)
                try:
                    writer.write(await self._answer(text))
                finally:
                    self._now -= 1
                await writer.drain()

    async def _answer(self, text: str) -> bytes:
        if self.refuse_next:
            self.refuse_next -= 1
            return _response(429, {"error": {"message": "slow down"}}, self.refusal)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        choice = {"index": 0, "message": {"role": "assistant", "content": f"answer to {text}"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        return _response(
            200, {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
        )


def _response(status: int, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    data = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return _HEAD.format(status=status, reason="any", length=len(data), more=more).encode() + data


def repeated(counts: Mapping[str, int], rows: Sequence[str]) -> int:
    """How many requests came beyond one for each of these messages."""
    return sum(counts[row] - 1 for row in rows)
