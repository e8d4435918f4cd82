"""The list of runs: each in a line, with its speed and what changed against the run of the experiment before it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infermesh.errors import StoreError
from infermesh.query.over_time import read_sessions
from infermesh.query.reader import RunReader
from infermesh.query.summary import RunInfo, describe
from infermesh.store.folders import run_folders, sweep_of, written_at

__all__ = ["ListedRun", "RunList"]

_KEPT = 2000  # runs that are remembered


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run in the list.

    Attributes
    ----------
    seconds
        How long its sessions took; ``None`` where that is not known.
    previous
        The run of the experiment before it; ``None`` if there is none.
    """

    info: RunInfo
    seconds: float | None
    previous: ListedRun | None = None

    @property
    def rate(self) -> float | None:
        """Settled row states a second, over all stages."""
        settled = self.info.done + self.info.failed
        return settled / self.seconds if self.seconds and settled else None


class RunList:
    """The runs below a folder. What is read of one that is over is kept until its file is written to again.

    Threads may use it at once.
    """

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, tuple[float, ListedRun]] = OrderedDict()

    def page(self, text: str, first: int, most: int) -> tuple[list[ListedRun], int]:
        """Some of the runs whose path holds a text, most recently written first, and how many there are."""
        folders = run_folders(self.outputs)
        found = [folder for folder in folders if text.lower() in str(folder.relative_to(self.outputs)).lower()]
        return [self._with_previous(folder, folders) for folder in found[first : first + most]], len(found)

    def _with_previous(self, folder: Path, folders: Sequence[Path]) -> ListedRun:
        run = self.read(folder)
        before = self._before(folder, folders)
        previous = None if before is None else self.read(before)
        if previous is not None and previous.info.experiment != run.info.experiment:
            previous = None
        return ListedRun(run.info, run.seconds, previous)

    def _before(self, folder: Path, folders: Sequence[Path]) -> Path | None:
        """The run beside it that stands before it by name: runs are named by their time. A sweep's jobs have none."""
        if sweep_of(folder) is not None:
            return None
        earlier = [other for other in folders if other.parent == folder.parent and other.name < folder.name]
        return max(earlier, key=lambda other: other.name, default=None)

    def by_id(self, run_id: str) -> Path | None:
        """The folder of a run by its id, among those that were read; ``None`` if it is not one of them."""
        with self._lock:
            return next((folder for folder, (_, run) in self._known.items() if run.info.run_id == run_id), None)

    def read(self, folder: Path) -> ListedRun:
        """One run in short."""
        written = written_at(folder)
        with self._lock:
            known = self._known.get(folder)
        if known is not None and known[0] == written:
            return known[1]
        found = ListedRun(info := describe(folder), _seconds(info))
        if info.status != "running":
            with self._lock:
                self._known[folder] = (written, found)
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return found


def _seconds(info: RunInfo) -> float | None:
    if not info.answers or info.status == "empty":
        return None
    try:
        with RunReader(info.folder) as reader:
            sessions = read_sessions(reader)
    except StoreError:
        return None
    return sum(session.length_s for session in sessions) if sessions else None
