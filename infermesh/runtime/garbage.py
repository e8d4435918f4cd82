"""Rare garbage collections while many results are made. The process's collector is left as it was found."""

from __future__ import annotations

import gc
import operator
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

# Requests make many objects and few cycles. With Python's own thresholds the collector looks through everything that is
# kept again and again, to find next to nothing: 600,000 kept objects stop the event loop for 70 ms at a time, these
# thresholds for 1 ms (benchmarks/pauses.py). The young generation stays small, since to look at an object that has left
# the processor's cache takes up to a microsecond. So does the middle one: it is looked through when the old thresholds
# are back, which finds the garbage that the batch itself leaves.
_THRESHOLDS = (10_000, 20, 250)
# Up to a hundredth of the objects that fill the middle generation may have been garbage for the rest to be moved to the
# oldest one. So at most about a hundredth of what is kept waits there, as garbage, for a full collection. Not none: the
# first collection of a batch finds what imports have left.
_MUCH_GARBAGE = _THRESHOLDS[0] * _THRESHOLDS[1] // 100


class _Collector:
    """What is done to the collector while anybody is inside :func:`rare_collections`.

    The thresholds are raised, never lowered. And where the collections of the young generation find little garbage, the
    objects that survive them are moved to the oldest generation, just before a collection of the middle one would look
    through them all. A program that makes cycles, as LiteLLM does, keeps its middle collections.
    """

    def __init__(self) -> None:
        self._counting, self._adjusting = threading.Lock(), threading.Lock()
        self._inside = 0
        self._raised = False
        self._before = self._ours = gc.get_threshold()
        self._found = 0  # garbage objects, since survivors were last moved out of the middle generation
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def count(self, change: int) -> None:
        """Note that somebody enters (1) or leaves (-1)."""
        with self._counting:
            self._inside += change
        # Nobody waits here for another thread. A collection may start in the midst of this, and the finalizer of a
        # stream that was dropped waits until its job, in another thread, has left. Whoever adjusts looks again
        # afterwards, at what those have changed who found it adjusting.
        while self._raised != bool(self._inside):
            if not self._adjusting.acquire(blocking=False):
                return
            try:
                if self._raised:
                    self._restore()
                else:
                    self._raise_thresholds()
            finally:
                self._adjusting.release()

    def _raise_thresholds(self) -> None:
        self._raised = True
        self._found = 0
        self._before = gc.get_threshold()
        if self._before[0]:  # 0 turns automatic collections off
            gc.set_threshold(*map(max, self._before, _THRESHOLDS))
        self._ours = gc.get_threshold()  # some versions of Python ignore the third
        gc.callbacks.append(self._collected)

    def _restore(self) -> None:
        self._raised = False
        with suppress(ValueError):  # somebody else has emptied the list
            gc.callbacks.remove(self._collected)
        if self._in_force:
            gc.set_threshold(*self._before)

    @property
    def _in_force(self) -> bool:
        """Whether the thresholds are still ours: those that the program has set meanwhile stand."""
        return gc.get_threshold() == self._ours

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        """Called by Python before and after each collection, in the thread that happened to start it."""
        if phase != "stop":
            return
        self._found += info["collected"]
        if info["generation"]:
            self._found = 0
        elif gc.get_count()[1] > self._ours[1]:
            if self._found <= _MUCH_GARBAGE:
                self._promote_survivors()
            self._found = 0

    def _promote_survivors(self) -> None:
        """Move every living object to the oldest generation, which takes no time, whatever their number.

        ``gc.freeze()`` sets all objects apart, and ``gc.unfreeze()`` puts whatever is set apart into the oldest
        generation, also what the program had frozen: so nothing must be frozen before. Both are called from C, where no
        other thread gets a turn between them: nobody sees frozen objects that it did not freeze, nor loses its own.
        """
        if self._in_force and not gc.get_freeze_count():
            deque(map(operator.call, (gc.freeze, gc.unfreeze)), maxlen=0)

    def _forked(self) -> None:
        """In a forked child: the threads that were inside are the parent's, and would never leave here."""
        self._counting, self._adjusting = threading.Lock(), threading.Lock()
        self._inside = 0
        if self._raised:
            self._restore()


_collector = _Collector()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Have Python collect garbage rarely while inside: for the whole process, by any number of threads at once.

    When the last one leaves, the thresholds are what they were when the first one entered, unless the program has set
    others meanwhile. Whatever else it does to the collector meanwhile is not undone, and nothing is left frozen that it
    did not freeze itself.
    """
    _collector.count(1)
    try:
        yield
    finally:
        _collector.count(-1)
