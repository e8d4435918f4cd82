"""The event loop: uvloop's where it is installed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from infermesh.runtime.garbage import rare_collections

T = TypeVar("T")


logger = logging.getLogger("infermesh")

_LAST_S = 1.0  # seconds that tasks get to end, once they are cancelled


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new loop, uvloop's where it is installed, with rare garbage collections meanwhile.

    Tasks that it leaves are cancelled. One that ignores that, such as a user's function, is left behind after one
    second with a warning: it does not keep the process. Ctrl-C while the loop's threads end ends the waiting for them,
    and the coroutine's result is returned all the same.
    """
    with rare_collections():
        runner = asyncio.Runner(loop_factory=new_loop)
        try:
            result = runner.run(_with_an_end(main))
        except BaseException:
            runner.close()
            raise
        try:
            runner.close()
        except (KeyboardInterrupt, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "loop stopped" not in str(error):  # uvloop's word for Ctrl-C
                raise
        return result


async def _with_an_end(main: Coroutine[Any, Any, T]) -> T:
    try:
        return await main
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=_LAST_S)
        for task in left:
            logger.warning("%s ignores its cancellation, and is left behind", task.get_name())
            asyncio._unregister_task(task)  # or the loop would wait for its end: "Task lifetime support" in its docs


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
