"""What a call to an event loop in another thread costs: `python -m benchmarks.loopthread`.

A coroutine that does nothing is awaited on the other loop, by many workers at once and by one: through the client's own
way there, which wakes a loop once for a burst, and through asyncio's, which wakes it for each call and each answer.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.harness import Result, Target, isolated, ratio, rounds, script

MANY = 64
OURS, ASYNCIOS = "LoopThread.arun", "run_coroutine_threadsafe, wrap_future"


async def _nothing() -> None:
    pass


async def _cpu(call: Callable[[], Awaitable[None]], calls: int, workers: int) -> float:
    """CPU seconds of the process for each call."""
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call()

    before = time.process_time()
    await asyncio.gather(*[worker() for _ in range(workers)])
    return (time.process_time() - before) / calls


def ours(calls: int, workers: int) -> dict[str, float]:
    """Through a LoopThread; made for ``isolated``."""
    from infermesh.runtime.loop import run_loop
    from infermesh.runtime.loopthread import LoopThread

    thread = LoopThread("other")
    try:
        return {"cpu_s": run_loop(_cpu(lambda: thread.arun(_nothing()), calls, workers))}
    finally:
        thread.close()


def asyncios(calls: int, workers: int) -> dict[str, float]:
    """Through what asyncio has for it; made for ``isolated``."""
    from infermesh.runtime.loop import new_loop, run_loop

    other = new_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    def call() -> Awaitable[None]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_nothing(), other))

    try:
        return {"cpu_s": run_loop(_cpu(call, calls, workers))}
    finally:
        other.call_soon_threadsafe(other.stop)
        thread.join()
        other.close()


def measure(quick: bool) -> Result:
    """Both ways, some rounds."""
    calls, count = (2_000, 2) if quick else (50_000, 5)

    def once(way: Callable[..., dict[str, float]], workers: int) -> float:
        return float(isolated(way, calls=calls, workers=workers)["cpu_s"])

    found = rounds(
        count,
        {
            (f"{name}, {workers} at once"): partial(once, way, workers)
            for workers in (MANY, 1)
            for name, way in ((OURS, ours), (ASYNCIOS, asyncios))
        },
    )
    mine, theirs = f"{OURS}, {MANY} at once", f"{ASYNCIOS}, {MANY} at once"
    return Result(
        "loopthread",
        "A call to an event loop in another thread",
        f"{calls:,} calls of a coroutine that does nothing, {count} rounds by turns, each in a process of its own; "
        "medians, in microseconds of CPU of both threads.",
        ["", "µs a call"],
        [[name, f"{1e6 * statistics.median(each):.1f}"] for name, each in found.items()],
        [
            Target(
                f"LoopThread.arun, {MANY} at once: of asyncio's own way",
                ratio(found[mine], found[theirs]),
                0.8,
                "",
                False,
            )
        ],
    )


if __name__ == "__main__":
    script(measure)
