from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from infermesh.runtime.workers import Channel, Window, run_window
from tests.fakes import now, settle, virtual


def counter(n: int) -> Callable[[], Awaitable[int]]:
    items = iter(range(n))

    async def pull() -> int:
        for item in items:
            return item
        raise StopAsyncIteration

    return pull


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("window", [1, 3, 8, 100, None])
@virtual
async def test_every_item_once_and_no_more_than_the_window_at_once(window: int | None) -> None:
    seen: list[int] = []
    busy = peak = 0

    async def handle(item: int) -> None:
        nonlocal busy, peak
        busy += 1
        peak = max(peak, busy)
        await asyncio.sleep(1)
        seen.append(item)
        busy -= 1

    await run_window(counter(50), handle, window)
    assert sorted(seen) == list(range(50))
    assert peak == min(window or 50, 50)
    assert not others()


@virtual
async def test_the_window_stays_full_while_items_last() -> None:
    start = now()

    async def handle(item: int) -> None:
        await asyncio.sleep(1 + item % 2)

    await run_window(counter(1000), handle, 10)
    assert now() - start == pytest.approx(150, rel=0.02)


@virtual
async def test_no_task_for_each_item() -> None:
    workers = set()

    async def handle(item: int) -> None:
        workers.add(asyncio.current_task())
        await asyncio.sleep(1)

    await run_window(counter(100), handle, 4)
    assert len(workers) == 4


@virtual
async def test_workers_are_started_as_needed() -> None:
    workers = set()

    async def handle(item: int) -> None:
        workers.add(asyncio.current_task())

    await run_window(counter(1000), handle, 100)
    assert len(workers) < 10


@virtual
async def test_a_burst_after_a_quiet_time_fills_the_window_again() -> None:
    channel: Channel[int] = Channel()
    busy = peak = 0

    async def handle(item: int) -> None:
        nonlocal busy, peak
        busy += 1
        peak = max(peak, busy)
        await asyncio.sleep(1)
        busy -= 1

    running = asyncio.create_task(run_window(channel.get, handle, 20))
    for _ in range(3):
        peak = 0
        for item in range(100):
            channel.put_nowait(item)
        await asyncio.sleep(5.1)
        assert not busy
        assert len(channel) == 0
        assert peak == 20
    channel.close()
    await running


@virtual
async def test_pull_is_never_called_twice_at_once() -> None:
    async def items() -> AsyncIterator[int]:
        for item in range(100):
            await asyncio.sleep(0.01 * (item % 3))
            yield item

    seen: list[int] = []

    async def handle(item: int) -> None:
        await asyncio.sleep(0.1 * (item % 7))
        seen.append(item)

    await run_window(items().__anext__, handle, 8)
    assert sorted(seen) == list(range(100))


@virtual
async def test_a_slow_source_is_handled_item_by_item() -> None:
    done: list[float] = []

    async def items() -> AsyncIterator[int]:
        for item in range(5):
            await asyncio.sleep(10)
            yield item

    async def handle(item: int) -> None:
        await asyncio.sleep(1)
        done.append(now())

    start = now()
    await run_window(items().__anext__, handle, 3)
    assert [round(t - start) for t in done] == [11, 21, 31, 41, 51]


@pytest.mark.parametrize("window", [4, None])
@virtual
async def test_an_error_cancels_the_others_and_propagates(window: int | None) -> None:
    ended: list[int] = []

    async def handle(item: int) -> None:
        try:
            await asyncio.sleep(1 if item == 2 else 100)
            raise ValueError(item)
        finally:
            await asyncio.sleep(0.5)
            ended.append(item)

    with pytest.raises(ValueError, match="2"):
        await run_window(counter(10), handle, window)
    assert len(ended) == (window or 10)
    assert not others()


@virtual
async def test_an_error_of_pull_propagates() -> None:
    async def pull() -> int:
        raise OSError("disk")

    async def handle(item: int) -> None:
        raise AssertionError

    with pytest.raises(OSError, match="disk"):
        await run_window(pull, handle, 2)


@virtual
async def test_several_errors_at_once_leave_none_unretrieved() -> None:
    async def handle(item: int) -> None:
        await asyncio.sleep(1)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        await run_window(counter(10), handle, 10)
    assert not others()


@pytest.mark.parametrize("window", [4, None])
@virtual
async def test_cancelling_the_caller_ends_every_worker(window: int | None) -> None:
    ended: list[int] = []

    async def handle(item: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            ended.append(item)

    task = asyncio.create_task(run_window(counter(10), handle, window))
    await asyncio.sleep(5)
    task.cancel()
    await settle()
    task.cancel()  # impatient: the workers are waited for all the same
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == (window or 10)
    assert not others()


@virtual
async def test_a_worker_cancelled_by_itself_is_not_a_lost_item() -> None:
    async def handle(item: int) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run_window(counter(3), handle, 2)


@virtual
async def test_items_that_never_wait_let_others_run() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def handle(item: int) -> None:
        pass

    ticker = asyncio.create_task(tick())
    await run_window(counter(10_000), handle, 1)
    ticker.cancel()
    assert ticks >= 30


@virtual
async def test_no_items_and_no_window() -> None:
    async def handle(item: int) -> None:
        raise AssertionError

    await run_window(counter(0), handle, 3)
    await run_window(counter(0), handle, None)
    with pytest.raises(ValueError, match="window"):
        await run_window(counter(0), handle, 0)


@virtual
async def test_channel_gives_items_in_order_and_ends() -> None:
    channel: Channel[int] = Channel()
    got: list[int] = []

    async def read() -> None:
        while True:
            try:
                got.append(await channel.get())
            except StopAsyncIteration:
                return

    reader = asyncio.create_task(read())
    await settle()
    for item in range(5):
        channel.put_nowait(item)
    assert len(channel) == 5
    await settle()
    channel.close()
    await reader
    assert got == [0, 1, 2, 3, 4]
    with pytest.raises(StopAsyncIteration):
        await channel.get()
    with pytest.raises(RuntimeError, match="closed"):
        channel.put_nowait(6)


@virtual
async def test_channel_serves_many_getters_first_come_first_served() -> None:
    channel: Channel[int] = Channel()
    getters = [asyncio.create_task(channel.get()) for _ in range(3)]
    await settle()
    for item in range(3):
        channel.put_nowait(item)
    assert await asyncio.gather(*getters) == [0, 1, 2]


@virtual
async def test_close_wakes_every_getter() -> None:
    channel: Channel[int] = Channel()
    getters = [asyncio.create_task(channel.get()) for _ in range(3)]
    batch = asyncio.create_task(channel.get_batch(3, 5))
    await settle()
    channel.close()
    results = await asyncio.gather(*getters, batch, return_exceptions=True)
    assert all(isinstance(result, StopAsyncIteration) for result in results)


@virtual
async def test_a_cancelled_get_loses_no_item() -> None:
    channel: Channel[int] = Channel()
    first, second = asyncio.create_task(channel.get()), asyncio.create_task(channel.get())
    await settle()
    channel.put_nowait(1)  # wakes the first …
    first.cancel()  # … which is cancelled before it runs
    assert await second == 1
    third = asyncio.create_task(channel.get())
    await settle()
    third.cancel()
    await settle()
    channel.put_nowait(2)
    assert await channel.get() == 2


@virtual
async def test_batches_take_what_is_there_and_linger_for_the_rest() -> None:
    channel: Channel[int] = Channel()
    loop = asyncio.get_running_loop()
    for item in range(3):
        channel.put_nowait(item)
    assert await channel.get_batch(2) == [0, 1]
    start = now()
    loop.call_later(1, channel.put_nowait, 3)
    loop.call_later(4, channel.put_nowait, 4)
    assert await channel.get_batch(10, 3) == [2, 3]
    assert now() - start == pytest.approx(3, abs=0.01)
    assert await channel.get_batch(1, 100) == [4]
    loop.call_later(1, channel.put_nowait, 5)
    loop.call_later(2, channel.close)
    assert await channel.get_batch(10, 100) == [5]  # closed: nothing to linger for
    with pytest.raises(StopAsyncIteration):
        await channel.get_batch(1)
    with pytest.raises(ValueError, match="n"):
        await channel.get_batch(0)


@virtual
async def test_a_cancelled_batch_returns_its_items_in_order() -> None:
    channel: Channel[int] = Channel()
    for item in range(3):
        channel.put_nowait(item)
    batch = asyncio.create_task(channel.get_batch(10, 100))
    await settle()
    getter = asyncio.create_task(channel.get())
    await settle()
    batch.cancel()
    assert await getter == 0
    channel.put_nowait(3)
    assert await channel.get_batch(10) == [1, 2, 3]


@virtual
async def test_a_channel_feeds_a_window() -> None:
    channel: Channel[int] = Channel()
    seen: list[int] = []

    async def handle(item: int) -> None:
        await asyncio.sleep(0.1)
        seen.append(item)
        if item < 50:
            channel.put_nowait(item + 50)
        if len(seen) == 100:
            channel.close()

    for item in range(50):
        channel.put_nowait(item)
    await run_window(channel.get, handle, 7)
    assert sorted(seen) == list(range(100))


@virtual
async def test_a_window_that_changes() -> None:
    window, busy, peaks = Window(2), 0, list[int]()

    async def handle(item: int) -> None:
        nonlocal busy
        busy += 1
        peaks.append(busy)
        await asyncio.sleep(1)
        busy -= 1

    work = asyncio.create_task(run_window(counter(100), handle, window))
    await asyncio.sleep(2.5)
    assert max(peaks) == 2
    window.resize(10)
    await asyncio.sleep(3)
    assert max(peaks) == busy == 10
    window.resize(3)
    await asyncio.sleep(1)
    peaks.clear()
    await work
    assert max(peaks) == 3
    assert not others()
