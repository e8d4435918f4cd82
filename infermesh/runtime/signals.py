"""Signals that ask a program to end: which of them is another wish, and which tells of the same one."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["TOGETHER_S", "Wishes"]

TOGETHER_S = 0.5  # seconds


class Wishes:
    """Counts signals. What comes within half a second of the one that counted belongs to it.

    GNU ``timeout`` signals the process, and then its whole group, so the process is told twice within a millisecond.

    Parameters
    ----------
    clock
        Gives seconds that do not run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: float | None = None

    def another(self) -> bool:
        """Take a signal: whether it counts."""
        now = self._clock()
        if self._counted is not None and now - self._counted < TOGETHER_S:
            return False
        self._counted = now
        return True
