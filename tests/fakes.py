"""Stand-ins for time and the network, so that tests of hours and thousands of requests run in milliseconds."""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from infermesh.results import TokenUsage
from infermesh.types import Reply, Request

START = 1000.0


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: the time that the loop wants to wait is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: every task waits for something that no timer will bring")
        if not ready and timeout:
            # Beyond the timer by a microsecond, as on a real clock: a sum of waits must not stop just short of its aim.
            self.now += max(timeout, 0.0) + 1e-6
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps from timer to timer."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def advance(self, seconds: float) -> None:
        """Let time pass without running anything."""
        self._jumping.now += seconds


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an ``async def`` test in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    assert inspect.iscoroutinefunction(test)
    return run


def now() -> float:
    """The virtual clock."""
    return asyncio.get_running_loop().time()


def advance(seconds: float) -> None:
    """Let virtual time pass without running anything."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.advance(seconds)


async def settle(turns: int = 10) -> None:
    """Let every task that can run do so, at the same virtual time."""
    for _ in range(turns):
        await asyncio.sleep(0)


def header(headers: Mapping[str, str] | None = None) -> Callable[[str], str | None]:
    """A reply's header lookup."""
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    return lambda name: lower.get(name.lower())


def reply(body: dict[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(200, body or {}, header(headers))


def request(prompt_tokens: int = 0, output_tokens: int | None = None, **fields: Any) -> Request:
    return Request("chat_completion", {}, prompt_tokens=prompt_tokens, output_tokens=output_tokens, **fields)


def parse_ok(answer: Reply) -> tuple[dict[str, Any], TokenUsage | None]:
    """The body itself; its ``usage``, where there is one, as ``[prompt tokens, completion tokens]``."""
    usage = answer.body.get("usage")
    if usage is None:
        return answer.body, None
    prompt, completion = usage
    return answer.body, TokenUsage(prompt, completion, prompt + completion)


class InstantTransport:
    """Answers at once, always."""

    def __init__(self) -> None:
        self._reply = reply()

    async def send(self, request: Request, timeout: float | None) -> Reply:
        return self._reply

    async def aclose(self) -> None:
        pass


Step = Reply | BaseException | Callable[[], Awaitable[Reply]]


class ScriptedTransport:
    """Plays a script, one step a request, each after ``service_s`` virtual seconds; after the script it answers.

    ``sent_at`` holds the time of each request, ``peak`` the most that were in flight at once.
    """

    def __init__(self, script: Iterable[Step] = (), service_s: float = 0.0) -> None:
        self.script = deque(script)
        self.service_s = service_s
        self.sent_at: list[float] = []
        self.timeouts: list[float | None] = []
        self.in_flight = 0
        self.peak = 0

    async def send(self, request: Request, timeout: float | None) -> Reply:
        self.sent_at.append(now())
        self.timeouts.append(timeout)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            step = self.script.popleft() if self.script else reply()
            if self.service_s:
                await asyncio.sleep(self.service_s)
            if isinstance(step, BaseException):
                raise step
            return step if isinstance(step, Reply) else await step()
        finally:
            self.in_flight -= 1

    async def aclose(self) -> None:
        pass


def worst_window(times: Iterable[float], window_s: float = 60.0) -> int:
    """The most events within any window of that length, both ends included: what a strict server counts."""
    recent: deque[float] = deque()
    worst = 0
    for time in sorted(times):
        recent.append(time)
        while recent[0] < time - window_s:
            recent.popleft()
        worst = max(worst, len(recent))
    return worst
