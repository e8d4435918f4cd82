"""Collections while many results are made: rare, never through what is kept, and everything as it was afterwards."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from infermesh.runtime.garbage import rare_collections

OBJECTS = 600_000


class Node:
    """An object that can be weakly referred to, and can refer to itself."""

    me: Any = None


def kept_objects() -> list[Any]:
    return [[[], {"a": []}] for _ in range(OBJECTS // 4)]


@pytest.fixture
def generations() -> Iterator[list[int]]:
    """The generations of the collections that happen meanwhile."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


@pytest.fixture(autouse=True)
def _as_python_sets_it() -> Iterator[None]:
    """The collector of a fresh interpreter, whatever a test does to it."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.unfreeze()
    gc.enable()
    gc.set_threshold(*before)


def collector() -> tuple[Any, ...]:
    """What a program can see of the collector."""
    return gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)


def test_what_is_kept_is_looked_through_once(generations: list[int]) -> None:
    before = collector()
    with rare_collections():
        kept = [kept_objects(), kept_objects()]
        assert set(generations) == {0}
        assert gc.get_freeze_count() == 0
    assert len(gc.get_objects(1)) < OBJECTS // 2
    after: list[Any] = [[] for _ in range(20_000)]  # enough for several collections
    assert 2 not in generations
    assert collector() == before
    assert (len(kept), len(after)) == (2, 20_000)


def test_a_little_garbage_makes_no_difference(generations: list[int]) -> None:
    """Such as an import before the batch leaves, or a failed request now and then."""
    with rare_collections():
        kept = []
        for number in range(OBJECTS // 4):
            kept.append([[], {"a": []}])
            if not number % 500:
                node = Node()
                node.me = node
        del node
        assert set(generations) == {0}
    assert kept


def test_cycles_are_found(generations: list[int]) -> None:
    alive = []
    with rare_collections():
        for _ in range(2 * OBJECTS):
            node = Node()
            node.me = node
            alive.append(weakref.ref(node))
        assert 1 in generations
        assert sum(ref() is not None for ref in alive) < 50_000


@pytest.mark.parametrize("error", [None, KeyError("bug"), KeyboardInterrupt()])
def test_all_is_as_it_was_found(error: BaseException | None) -> None:
    gc.set_threshold(5_000, 7, 9)
    before = collector()
    with pytest.raises(type(error)) if error else ExitStack(), rare_collections():
        assert collector() != before
        with rare_collections():
            assert gc.get_threshold()[0] > 5_000
        assert gc.get_threshold()[0] > 5_000
        if error is not None:
            raise error
    assert collector() == before


def test_the_last_of_several_threads_puts_it_back() -> None:
    before, inside, leave = collector(), threading.Barrier(5), [threading.Event() for _ in range(4)]

    def work(mine: threading.Event) -> None:
        with rare_collections():
            inside.wait()
            mine.wait()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in leave]
    for thread in threads:
        thread.start()
    inside.wait()
    tuned = collector()
    for thread, mine in zip(threads, leave, strict=True):
        assert collector() == tuned != before
        mine.set()
        thread.join()
    assert collector() == before


def test_threads_that_come_and_go_at_once_leave_it_as_it_was() -> None:
    before, start = collector(), threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(500):
            with rare_collections():
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector() == before


def test_nobody_waits_for_a_thread_that_is_about_to_change_it() -> None:
    """A collection may start just then, and finalize a stream, which waits for its job in another thread to leave."""
    ended = []

    def come_and_go() -> None:
        with rare_collections():
            pass
        ended.append(True)

    def interrupt() -> None:
        thread = threading.Thread(target=come_and_go)
        thread.start()
        thread.join(10)

    class Interrupted(list[Any]):
        """In place of gc.callbacks, which is changed in the midst of it all."""

        def append(self, item: Any) -> None:
            interrupt()
            super().append(item)

        def remove(self, item: Any) -> None:
            interrupt()
            super().remove(item)

    before = collector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "callbacks", Interrupted(gc.callbacks))
        with rare_collections():
            assert ended == [True]
        assert ended == [True, True]
        assert len(gc.callbacks) == before[3]
    assert collector() == before


def test_what_the_program_froze_stays_frozen() -> None:
    frozen_object: Any = []
    gc.freeze()
    with rare_collections():
        kept = [kept_objects(), kept_objects()]
        assert not any(item is frozen_object for item in gc.get_objects())
    assert not any(item is frozen_object for item in gc.get_objects())
    assert any(item is kept for item in gc.get_objects())  # and nothing else is


def test_what_the_program_does_meanwhile_stands() -> None:
    with rare_collections():
        gc.set_threshold(1_234, 5, 6)
    assert gc.get_threshold() == (1_234, 5, 6)

    with rare_collections():
        gc.disable()
    assert not gc.isenabled()
    with rare_collections():
        gc.enable()
    assert gc.isenabled()

    frozen_object: Any = []
    with rare_collections():
        first = kept_objects()
        gc.freeze()
        second = [kept_objects(), kept_objects()]
    assert not any(item is frozen_object for item in gc.get_objects())
    assert any(item is second for item in gc.get_objects())
    assert first


@pytest.mark.parametrize("thresholds", [(0, 10, 10), (1_000_000, 200, 300)])
def test_thresholds_are_never_lowered(thresholds: tuple[int, int, int]) -> None:
    gc.set_threshold(*thresholds)
    with rare_collections():
        assert gc.get_threshold() == thresholds
    assert gc.get_threshold() == thresholds


def test_callbacks_that_the_program_clears_are_no_error() -> None:
    others = list(gc.callbacks)
    with rare_collections():
        gc.callbacks[:] = others
    assert gc.callbacks == others


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_meanwhile_has_a_collector_as_before() -> None:
    code = """
        import gc, os, threading
        from infermesh.runtime.garbage import rare_collections

        before = gc.get_threshold(), len(gc.callbacks)
        inside, leave = threading.Event(), threading.Event()

        def work():
            with rare_collections():
                inside.set()
                leave.wait()

        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
        if os.fork():
            print("parent", os.waitstatus_to_exitcode(os.wait()[1]), gc.get_threshold() == before[0], flush=True)
            leave.set()
            thread.join()
            print("parent", (gc.get_threshold(), len(gc.callbacks)) == before, flush=True)
        else:
            print("child", (gc.get_threshold(), len(gc.callbacks)) == before, flush=True)
            with rare_collections():
                pass
            print("child", (gc.get_threshold(), len(gc.callbacks)) == before, flush=True)
            os._exit(0)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == ["child True", "child True", "parent 0 False", "parent True"]
