"""Which worker has which rows. Pure: row_ids in, row_ids out.

The book is in memory alone: what is true of a row after a crash is what ``run.duckdb`` says, as without workers.

What a lost worker held goes to others. If a row ended it, the next one ends too. So a lease counts the deaths of those
who held it; from the second on it is halved each time, and one worker takes the halves, one by one and nothing beside
them, so that no other row is blamed. A single row that was held at three deaths, at two of them alone, is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["GIVEN_UP_AFTER", "SUSPECT_AFTER", "Lease", "LeaseBook", "Lost"]

SUSPECT_AFTER = 2  # deaths of holders; one may be anybody's
GIVEN_UP_AFTER, ALONE = 3, 2  # deaths of holders of a single row, and those at which they held no other


@dataclass(slots=True)
class Lease:
    """Rows that one worker has, or that wait for one.

    Attributes
    ----------
    rows
        Row_ids that are not finished, ascending.
    deaths
        How many workers were lost that held these rows.
    alone
        How many of these were lost when it was a single row, and the only lease that they held.
    """

    rows: Sequence[int]
    deaths: int = 0
    alone: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.deaths >= SUSPECT_AFTER


@dataclass(slots=True)
class Lost:
    """What the loss of a worker leaves: how many rows wait again, and the rows that are given up."""

    again: int = 0
    given_up: list[int] = field(default_factory=list)


class LeaseBook:
    """The rows of a wave: those that wait, and those that a worker has. Each is in one place until it is finished.

    Examples
    --------
    >>> book = LeaseBook()
    >>> book.offer(range(10))
    >>> book.take(worker=1, most=4).rows
    [0, 1, 2, 3]
    >>> book.finish(1, [0, 2])
    >>> book.lost(1).again
    2
    >>> book.take(worker=2, most=4).rows
    [1, 3]
    """

    def __init__(self) -> None:
        self._waiting: deque[Lease] = deque()
        self._suspects: deque[Lease] = deque()
        self._held: dict[int, dict[int, Lease]] = {}  # worker → row_id → its lease
        self._alone: int | None = None  # the worker that takes the suspects
        self.waiting = 0  # rows that no worker has

    def offer(self, rows: Iterable[int]) -> None:
        """Add rows that wait for a worker, ascending."""
        lease = Lease(list(rows))
        if lease.rows:
            self._wait(lease)

    def held(self, worker: int) -> int:
        """How many rows a worker has."""
        return len(self._held.get(worker, ()))

    def rows_of(self, worker: int) -> list[int]:
        """The rows that a worker has, ascending."""
        return sorted(self._held.get(worker, ()))

    @property
    def is_empty(self) -> bool:
        """Whether no row waits and none is held."""
        return not self.waiting and not any(self._held.values())

    def take(self, worker: int, most: int) -> Lease | None:
        """Lease at most so many rows to a worker; ``None``: there are none for it now."""
        if self._suspects and self._alone in (None, worker):
            self._alone = worker
            if self.held(worker):
                return None  # it takes a suspect once it has nothing else
            return self._give(worker, self._suspects.popleft())
        if worker == self._alone:
            if self.held(worker):
                return None
            self._alone = None
        if most < 1 or not self._waiting:
            return None
        lease = self._waiting.popleft()
        if len(lease.rows) > most:
            self._waiting.appendleft(Lease(lease.rows[most:], lease.deaths, lease.alone))
            lease = Lease(lease.rows[:most], lease.deaths, lease.alone)
        return self._give(worker, lease)

    def finish(self, worker: int, rows: Iterable[int]) -> None:
        """Note that a worker's rows are finished.

        Raises
        ------
        ValueError
            It does not hold one of them.
        """
        mine = self._held.get(worker, {})
        for row_id in rows:
            if mine.pop(row_id, None) is None:
                raise ValueError(f"worker {worker} has finished row {row_id}, which it does not hold")

    def lost(self, worker: int) -> Lost:
        """Take the rows of a worker back, which is dead: they wait again, or are given up."""
        found = Lost()
        back = self._back(worker)
        for lease in back:
            lease.deaths += 1
            lease.alone += len(back) == len(lease.rows) == 1
            if lease.deaths >= GIVEN_UP_AFTER and lease.alone >= ALONE:
                found.given_up += lease.rows
                continue
            found.again += len(lease.rows)
            half = len(lease.rows) // 2 if lease.is_suspect else 0
            for rows in (lease.rows[:half], lease.rows[half:]):
                if rows:
                    self._wait(Lease(rows, lease.deaths, lease.alone), first=True)
        return found

    def _back(self, worker: int) -> list[Lease]:
        """The leases that a worker holds, with the rows that are left of each. It holds none afterwards."""
        left: dict[int, list[int]] = {}
        leases: dict[int, Lease] = {}
        for row_id, lease in sorted(self._held.pop(worker, {}).items()):
            left.setdefault(id(lease), []).append(row_id)
            leases[id(lease)] = lease
        if self._alone == worker:
            self._alone = None
        return [Lease(rows, leases[key].deaths, leases[key].alone) for key, rows in left.items()]

    def _wait(self, lease: Lease, *, first: bool = False) -> None:
        self.waiting += len(lease.rows)
        line = self._suspects if lease.is_suspect else self._waiting
        if first:
            line.appendleft(lease)
        else:
            line.append(lease)

    def _give(self, worker: int, lease: Lease) -> Lease:
        self.waiting -= len(lease.rows)
        self._held.setdefault(worker, {}).update(dict.fromkeys(lease.rows, lease))
        return lease
