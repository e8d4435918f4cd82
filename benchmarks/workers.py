"""What it costs to hand items to a bounded number of workers: `python -m benchmarks.workers`.

The items are numbers, and to handle one is to wait one turn of the event loop, so what is timed is the handing out. The
worker pool that stages and batches run on is held against the ways that one would write by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.harness import Result, isolated, rate_rows, rounds, script

WINDOW = 64
POOL = "the worker pool"


async def _handle(item: int) -> None:
    await asyncio.sleep(0)


async def _pool(items: int) -> None:
    from infermesh.runtime.workers import run_window

    left = iter(range(items))

    async def pull() -> int:
        for item in left:
            return item
        raise StopAsyncIteration

    await run_window(pull, _handle, WINDOW)


async def _task_group(items: int) -> None:
    """Workers over one iterator: for a list that is there as a whole."""
    left = iter(range(items))

    async def worker() -> None:
        for item in left:
            await _handle(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(WINDOW):
            group.create_task(worker())


async def _queue(items: int) -> None:
    """Workers over a bounded queue that one task fills."""
    queue: asyncio.Queue[int | None] = asyncio.Queue(WINDOW)

    async def worker() -> None:
        while (item := await queue.get()) is not None:
            await _handle(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(WINDOW):
            group.create_task(worker())
        for item in range(items):
            await queue.put(item)
        for _ in range(WINDOW):
            await queue.put(None)


async def _task_per_item(items: int) -> None:
    """A task for every item, and a semaphore that lets some of them through."""
    free = asyncio.Semaphore(WINDOW)

    async def one(item: int) -> None:
        try:
            await _handle(item)
        finally:
            free.release()

    async with asyncio.TaskGroup() as group:
        for item in range(items):
            await free.acquire()
            group.create_task(one(item))


WAYS: dict[str, Callable[[int], Awaitable[None]]] = {
    "a TaskGroup of workers over an iterator": _task_group,
    POOL: _pool,
    "workers over an asyncio.Queue": _queue,
    "a task for each item": _task_per_item,
}


async def _timed(way: str, items: int) -> float:
    before = time.process_time()
    await WAYS[way](items)
    return (time.process_time() - before) / items


def cpu_seconds(way: str, items: int) -> float:
    """CPU seconds an item; made for ``isolated``."""
    from infermesh.runtime.loop import run_loop

    return float(run_loop(_timed(way, items)))


def measure(quick: bool) -> Result:
    """Every way, some rounds."""
    items, count = (2_000, 1) if quick else (200_000, 5)
    seconds = rounds(count, {way: partial(isolated, cpu_seconds, way=way, items=items) for way in WAYS})
    return Result(
        "workers",
        "Handing items to workers",
        f"{items:,} items, {WINDOW} workers, each item one turn of the event loop, {count} rounds by turns, each way "
        "in a process of its own; medians of CPU time.",
        ["", "items/s", "µs an item", "ratio to the pool"],
        rate_rows(seconds, POOL),
        notes=[
            "The pool also takes items that come later, asks for one at a time, and starts a worker only when an item "
            "waits for it: docs/decisions/0004."
        ],
    )


if __name__ == "__main__":
    script(measure)
