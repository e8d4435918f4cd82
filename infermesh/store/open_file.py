"""Whether a database's file is still where it was opened, and whole: DuckDB itself does not notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

__all__ = ["OpenFile"]


class OpenFile:
    """A database's file, as it was when it was opened.

    Parameters
    ----------
    path
        The file. A function may change the working directory later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = path.absolute()
        self._identity, self._length = _file_at(self._place)
        self._cut = False

    def lost(self, needed: Callable[[], int]) -> tuple[str, str] | None:
        """Why what is written to it reaches nobody, and what to do; ``None`` if it is where it was, and whole.

        Parameters
        ----------
        needed
            How many bytes the file must have. Called only where it has become shorter, as a checkpoint may make it.
        """
        identity, length = _file_at(self._place)
        if identity is None or identity != self._identity:
            return (
                f"{self.path} was deleted, moved or replaced while the run had it open",
                "What was done is where the file is now; if it was deleted, it is lost. Resume it where it is, or run "
                "it again, and leave the folder alone meanwhile.",
            )
        shrunk, self._length = length < self._length, length
        if shrunk and not self._cut:
            least = needed()
            self._cut = _file_at(self._place)[1] < least
        if self._cut:
            return (
                f"{self.path} was cut short while the run had it open",
                "What stood in the part that is gone is lost. Put back a copy of the file if there is one and resume "
                "it, or run it again in another folder; infermesh verify says what is left.",
            )
        return None


def _file_at(place: Path) -> tuple[tuple[int, int] | None, int]:
    """A file's identity, ``None`` where there is none, and its length in bytes."""
    with contextlib.suppress(OSError):
        found = place.stat()
        return (found.st_dev, found.st_ino), found.st_size
    return None, 0
