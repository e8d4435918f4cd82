"""Collections while rows pass: rare, and never through what a batch keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from infermesh.runtime.garbage import unhurried


class Node:
    """An object that can be weakly referred to, and can refer to itself."""

    me: Any = None


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


def test_results_that_are_kept_are_looked_through_once(generations: list[int]) -> None:
    before = gc.get_threshold()
    with unhurried(), unhurried():
        kept = [[[], {"a": []}] for _ in range(400_000)]
        assert set(generations) == {0}
        assert gc.get_freeze_count() > 1_000_000
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)
    assert kept


def test_cycles_are_found(generations: list[int]) -> None:
    alive = []
    with unhurried():
        for _ in range(400_000):
            node = Node()
            node.me = node
            alive.append(weakref.ref(node))
        assert gc.get_freeze_count() == 0
        assert sum(ref() is not None for ref in alive) < 50_000


def test_what_the_program_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with unhurried():
            kept: list[Any] = [[[]] for _ in range(400_000)]
            assert gc.get_freeze_count() <= frozen
        assert frozen * 0.9 < gc.get_freeze_count() <= frozen
        assert kept
    finally:
        gc.unfreeze()
