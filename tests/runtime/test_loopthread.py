"""An event loop in a thread of its own, called from other threads and loops."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from infermesh.runtime.loopthread import LoopThread

name: contextvars.ContextVar[str] = contextvars.ContextVar("name")


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    opened = LoopThread("test")
    yield opened
    opened.close()


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    raise LookupError("no such row")


def test_threads_and_loops_call_it_at_once(thread: LoopThread) -> None:
    async def many() -> list[int]:
        return await asyncio.gather(*(thread.arun(double(number)) for number in range(500)))

    expected = [2 * number for number in range(500)]
    with ThreadPoolExecutor(8) as pool:
        loops = [pool.submit(lambda: asyncio.run(many())) for _ in range(4)]
        assert list(pool.map(lambda number: thread.run(double(number)), range(500))) == expected
        assert [loop.result() for loop in loops] == [expected] * 4


async def test_errors_and_context_pass_between(thread: LoopThread) -> None:
    async def read() -> str:
        return name.get()

    name.set("caller's")
    assert thread.run(read()) == await thread.arun(read()) == "caller's"
    with pytest.raises(LookupError, match="no such row"):
        thread.run(fail())
    with pytest.raises(LookupError, match="no such row"):
        await thread.arun(fail())


async def test_a_cancelled_caller_waits_until_the_coroutine_has_cleaned_up(thread: LoopThread) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    call = asyncio.create_task(thread.arun(slow()))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert cleaned.is_set()


async def test_a_task_that_is_cancelled_before_it_begins_has_ended_too(thread: LoopThread) -> None:
    for _ in range(100):
        task = thread.submit(asyncio.sleep(60))
        await thread.acancel(task)
        with pytest.raises(RuntimeError, match="cancelled"):
            task.future.result()


def test_nothing_is_left_waiting_when_calls_and_a_close_meet() -> None:
    async def nap() -> None:
        await asyncio.sleep(60)

    for _ in range(50):
        thread = LoopThread("test")
        ended = threading.Barrier(5)

        def call(thread: LoopThread = thread, ended: threading.Barrier = ended) -> None:
            ended.wait()
            with pytest.raises(RuntimeError, match="closed"):
                thread.run(nap())

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(call) for _ in range(4)]
            ended.wait()
            thread.close()
            for future in futures:
                future.result(timeout=10)
