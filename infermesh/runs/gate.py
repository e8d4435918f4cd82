"""The gate before a stage: applies its ``where`` and looks up known answers. Rows that neither settles are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from infermesh.errors import InputError
from infermesh.runs.row import answered_by_its_state, to_be_redone
from infermesh.stages import Prepared, Stage, prepare_each
from infermesh.store import Row
from infermesh.store.filter import RowFilter
from infermesh.store.reuse import KnownAnswer
from infermesh.types import Request

_BATCH = 512  # rows per query
_MOST_HELD = 32_000_000  # bytes of the requests that are built and wait to be sent: with pictures, few rows' worth
_FIRST = 32  # rows whose requests show how large they are


class Known(Protocol):
    """Known answers, as in :class:`~infermesh.store.known.KnownAnswers`."""

    def knows(self, stage: str) -> bool: ...

    def look_up(self, stage: str, keys: Sequence[str]) -> list[KnownAnswer | None]: ...


class Gate:
    """Decides which rows of a stage are sent. It settles nothing and changes no row but for ``prepared``.

    A run and a plan use the same gate. A run takes as many rows through it at once as :meth:`ready` says: to look up a
    row's answer its request has to be built, and what is built waits in memory until a worker has :meth:`taken` it.

    Parameters
    ----------
    condition
        The stage's ``where``, compiled; ``None`` if it has none.
    known
        Where to look up answers to the same requests; ``None`` to look up none.
    """

    def __init__(self, stage: Stage, condition: RowFilter | None, known: Known | None) -> None:
        self._stage = stage
        self._condition = condition
        self._known = known
        self._held = 0  # bytes of requests that are built and not taken
        self._each = _MOST_HELD // _FIRST  # bytes of a request, by the rows that came last
        self._room = asyncio.Event()
        self._stopped = False

    @property
    def is_open(self) -> bool:
        """Whether the gate lets every row pass, so that it can be left out."""
        return self._condition is None and not self._looks_up

    @property
    def _looks_up(self) -> bool:
        return self._known is not None and self._known.knows(self._stage.name)

    async def ready(self) -> int:
        """Wait until there is room for built requests, or for :meth:`stop`; returns how many rows may come."""
        while self._held >= _MOST_HELD and not self._stopped:
            self._room.clear()
            await self._room.wait()
        return max(1, min(_BATCH, (_MOST_HELD - self._held) // self._each)) if self._looks_up else _BATCH

    def taken(self, item: Prepared[Any] | Exception) -> None:
        """A row's built request is no longer kept in the row."""
        self._held -= _bytes_of(item)
        self._room.set()

    def stop(self) -> None:
        """Wait for nothing any more: no row will be taken."""
        self._stopped = True
        self._room.set()

    def passing(self, rows: Sequence[Row]) -> list[bool | InputError]:
        """For each row: is ``where`` true, or the error it raises for that row. DuckDB decides; this blocks."""
        if self._condition is None:
            return [True] * len(rows)
        return self._condition.passing([row.context for row in rows])

    def known_answers(self, items: Sequence[Prepared[Any]]) -> list[KnownAnswer | None]:
        """For each request: its known answer or ``None``. Blocks.

        An answer of a retired row is handed out once; the caller must use it.
        """
        if self._known is None or not self._looks_up:
            return [None] * len(items)
        return self._known.look_up(self._stage.name, [item.key for item in items])

    async def passing_async(self, rows: Sequence[Row]) -> list[bool | InputError]:
        """:meth:`passing` in a thread."""
        if self._condition is None:
            return [True] * len(rows)
        return await asyncio.to_thread(self.passing, rows)

    async def split(
        self, rows: Sequence[Row], stopping: Callable[[], bool]
    ) -> tuple[list[Row], list[tuple[Row, Prepared[Any], KnownAnswer]]]:
        """Split rows into those to send, and those whose answer is known.

        A row that cannot be made into a request is among those to send: the stage's worker stores its error. If
        ``stopping()`` is true after the lookup, both lists are empty: all these rows stay pending.
        """
        if not self._looks_up:
            return list(rows), []
        left: list[Row] = []
        candidates: list[tuple[Row, Prepared[Any]]] = []
        items = await prepare_each(self._stage, [row.context for row in rows])
        if items:
            self._each = max(1, sum(map(_bytes_of, items)) // len(items))
        for row, item in zip(rows, items, strict=True):
            name = self._stage.name
            if isinstance(item, Exception) or to_be_redone(row, name) or answered_by_its_state(row, name, item):
                left.append(self._keep(row, item))
            else:
                candidates.append((row, item))
        # A lookup consumes each answer of a retired row. What marks it as used is the settled row that it was given to
        # (``reused_from``); if these rows stay pending instead, the next session finds the answers free again.
        answers = await asyncio.to_thread(self.known_answers, [item for _, item in candidates])
        if stopping():
            return [], []
        found: list[tuple[Row, Prepared[Any], KnownAnswer]] = []
        for (row, item), answer in zip(candidates, answers, strict=True):
            if answer is None:
                left.append(self._keep(row, item))
            else:
                found.append((row, item, answer))
        return left, found

    def _keep(self, row: Row, item: Prepared[Any] | Exception) -> Row:
        """Keep a row's request for the worker that will send it."""
        row.prepared = {**(row.prepared or {}), self._stage.name: item}
        self._held += _bytes_of(item)
        return row


def _bytes_of(item: Prepared[Any] | Exception) -> int:
    """About what a built request takes beside its row: its payload, and that as JSON."""
    request = None if isinstance(item, Exception) else item.request
    return 2 * len(request.encoded or b"") if isinstance(request, Request) else 0
