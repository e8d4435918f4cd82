"""Python's garbage collector, told to take its time while rows pass."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

# Rows make many objects and few cycles: with the usual thresholds a collection would stop the event loop for tens or
# hundreds of milliseconds, again and again, to find next to nothing. The youngest generation is small, since looking
# through objects that have left the processor's cache takes a microsecond each.
_THRESHOLDS = (10_000, 100, 50)

_lock = threading.Lock()
_inside = 0
_before = gc.get_threshold()


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """While inside, collections are rare. For the whole process; from any number of threads at once."""
    global _before, _inside
    with _lock:
        if not _inside:
            _before = gc.get_threshold()
            gc.set_threshold(*_THRESHOLDS)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                gc.set_threshold(*_before)
