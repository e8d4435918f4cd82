"""What a worker has in place of the database: leased rows, a writer that sends, answers that it asks for."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from infermesh.runs.crew.messages import Put, Question
from infermesh.store import Row
from infermesh.store.reuse import KnownAnswer

__all__ = ["LeasedRows", "RemoteKnown", "SendingWriter"]

_ENOUGH, _ENOUGH_BYTES = 2048, 4_000_000  # rows, or bytes, that are sent without waiting for the time to answer


class LeasedRows:
    """Rows as the hub leases them; a Runner reads them as it reads those of a database."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._come: queue.SimpleQueue[list[Row] | None] = queue.SimpleQueue()
        self._over = False

    @property
    def chunks(self) -> Iterator[int]:
        """Numbers, until :meth:`read` has found the end."""
        return itertools.takewhile(lambda _: not self._over, itertools.count())

    def read(self, chunk: int) -> list[Row]:
        """The rows that come next; empty once there are none. Blocks until then."""
        rows = None if self._over else self._come.get()
        if rows is None:
            self._over = True
            return []
        return rows

    def put(self, rows: list[Row]) -> None:
        self._come.put(rows)

    def close(self) -> None:
        """No row comes after those that are there."""
        self._come.put(None)


class SendingWriter:
    """Keeps rows for the next answer, and counts those that the hub has not committed yet.

    Parameters
    ----------
    enough
        Called when so much is there that it should be sent.
    """

    def __init__(self, enough: Callable[[], None]) -> None:
        self._enough = enough
        self._rows: list[Put] = []
        self._bytes = 0
        self._sent: deque[tuple[int, int, int]] = deque()  # serial, rows, bytes
        self._rows_sent = self._bytes_sent = 0

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False, size: int = 0) -> None:
        self._rows.append((table, row, replaces, size))
        self._bytes += size
        if len(self._rows) >= _ENOUGH or self._bytes >= _ENOUGH_BYTES:
            self._enough()

    def is_behind(self, rows: int, size: int) -> bool:
        return len(self._rows) + self._rows_sent > rows or self._bytes + self._bytes_sent > size

    def take(self, serial: int) -> list[Put]:
        """The rows for an answer."""
        rows, self._rows = self._rows, []
        if rows:
            self._sent.append((serial, len(rows), self._bytes))
            self._rows_sent += len(rows)
            self._bytes_sent += self._bytes
            self._bytes = 0
        return rows

    def acknowledged(self, serial: int) -> None:
        """Forget what was sent up to an answer: it is committed."""
        while self._sent and self._sent[0][0] <= serial:
            _, rows, size = self._sent.popleft()
            self._rows_sent -= rows
            self._bytes_sent -= size


class RemoteKnown:
    """Known answers, which the hub looks up. As in :class:`~infermesh.store.known.KnownAnswers`.

    Parameters
    ----------
    stages
        Those that have some.
    asked
        Called when there is a question to send, in the thread that has it.
    """

    def __init__(self, stages: Collection[str], asked: Callable[[], object]) -> None:
        self._stages = frozenset(stages)
        self._asked = asked
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[int, queue.SimpleQueue[Sequence[KnownAnswer | None] | None]] = {}
        self._questions: list[Question] = []
        self._closed = False

    def knows(self, stage: str) -> bool:
        return stage in self._stages

    def look_up(self, stage: str, keys: Sequence[str]) -> list[KnownAnswer | None]:
        """Ask the hub, and block until it answers; nothing is known once closed."""
        if not keys:
            return []
        with self._lock:
            if self._closed:
                return [None] * len(keys)
            number = next(self._numbers)
            mine = self._open[number] = queue.SimpleQueue()
            self._questions.append(Question(number, stage, keys))
        self._asked()
        found = mine.get()
        return [None] * len(keys) if found is None else list(found)

    def questions(self) -> list[Question]:
        """What to ask the hub now."""
        with self._lock:
            asked, self._questions = self._questions, []
        return asked

    def answer(self, answers: Mapping[int, Sequence[KnownAnswer | None]]) -> None:
        """Give the hub's answers to those who wait for them."""
        with self._lock:
            for number, found in answers.items():
                if (waiting := self._open.pop(number, None)) is not None:
                    waiting.put(found)

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._lock:
            self._closed = True
            for waiting in self._open.values():
                waiting.put(None)
            self._open.clear()
