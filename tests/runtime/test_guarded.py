"""Threads that tell of their end."""

from __future__ import annotations

import pytest

from infermesh.runtime.guarded import start_thread
from infermesh.runtime.loopthread import LoopThread
from tests.support import DEADLINE_S


@pytest.mark.parametrize("end", [ValueError("no"), SystemExit(0), KeyboardInterrupt(), MemoryError()])
def test_a_thread_that_dies_says_so(end: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def dies() -> None:
        raise end

    told: list[BaseException] = []
    start_thread("a-thread", dies, died=told.append).join(DEADLINE_S)
    assert told == [end]
    assert f"the thread a-thread has died: {type(end).__name__}" in caplog.text


def test_an_exit_on_a_loop_is_its_tasks_end_and_not_the_loops() -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    async def stays() -> int:
        return 1

    thread = LoopThread("a-loop")
    with pytest.raises(SystemExit):
        thread.run(leaves())
    assert thread.run(stays()) == 1
    thread.close()
