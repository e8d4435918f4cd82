"""Python's garbage collector, told to take its time while rows pass."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator, Mapping

# Rows make many objects and few cycles: with the usual thresholds a collection would stop the event loop for tens or
# hundreds of milliseconds, again and again, to find next to nothing. The youngest generation is small, since looking
# through objects that have left the processor's cache takes a microsecond each.
_THRESHOLDS = (10_000, 100, 50)
# After so many young collections that found nothing, what has survived them is not looked through again.
_BARREN = 50

_lock = threading.Lock()
_inside = 0
_before = gc.get_threshold()
_passes = 0
_found = 0
_may_freeze = False


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """While inside, collections are rare. For the whole process; from any number of threads at once."""
    global _before, _inside, _may_freeze
    with _lock:
        if not _inside:
            _before = gc.get_threshold()
            gc.set_threshold(*_THRESHOLDS)
            _may_freeze = not gc.get_freeze_count()  # what the program has frozen itself stays so
            gc.callbacks.append(_collected)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                gc.callbacks.remove(_collected)
                if _may_freeze:
                    gc.unfreeze()
                gc.set_threshold(*_before)


def _collected(phase: str, info: Mapping[str, int]) -> None:
    """Set the survivors aside where collections find nothing, before they are looked at again: a batch's results.

    A program that makes cycles (LiteLLM does) is left to the older generations.
    """
    global _found, _passes
    if phase == "stop":
        _passes += 1
        _found += info["collected"]
        if _passes == _BARREN:
            if _may_freeze and not _found:
                gc.freeze()
            _passes = _found = 0
