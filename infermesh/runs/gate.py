"""The gate before a stage: its ``where``, and answers that are known already. What neither settles is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from infermesh.errors import InputError
from infermesh.runs.row import answered_by_its_state
from infermesh.stages import Prepared, Stage
from infermesh.store import Row
from infermesh.store.filter import RowFilter
from infermesh.store.known import KnownAnswers
from infermesh.store.reuse import Answer

_PAUSE = 128  # rows made ready before other tasks may run


class Gate:
    """Decides which rows that have come to a stage are sent. It changes no row but for ``prepared``.

    Parameters
    ----------
    stage
        The stage.
    condition
        Its ``where``, compiled; ``None`` where it has none.
    known
        Where to look for answers to the same requests; ``None`` for nowhere.
    """

    def __init__(self, stage: Stage, condition: RowFilter | None, known: KnownAnswers | None) -> None:
        self._stage = stage
        self._condition = condition
        self._known = known

    @property
    def is_open(self) -> bool:
        """Whether every row passes: the gate need not be asked."""
        return self._condition is None and not self._looks_up

    @property
    def _looks_up(self) -> bool:
        return self._known is not None and self._known.knows(self._stage.name)

    def passing(self, rows: Sequence[Row]) -> list[bool | InputError]:
        """For each row whether ``where`` is true, or why it fails for it. DuckDB decides; it blocks."""
        if self._condition is None:
            return [True] * len(rows)
        return self._condition.passing([row.context for row in rows])

    def known_answers(self, items: Sequence[Prepared[Any]]) -> list[Answer | None]:
        """For each request the answer that is known, which nobody else gets then. DuckDB looks it up; it blocks."""
        if self._known is None or not self._looks_up:
            return [None] * len(items)
        return self._known.look_up(self._stage.name, [item.key for item in items])

    async def where(self, rows: Sequence[Row]) -> list[bool | InputError]:
        """:meth:`passing`, off the event loop."""
        if self._condition is None:
            return [True] * len(rows)
        return await asyncio.to_thread(self.passing, rows)

    async def split(
        self, rows: Sequence[Row], stopping: Callable[[], bool]
    ) -> tuple[list[Row], list[tuple[Row, Prepared[Any], Answer]]]:
        """The rows that are to be sent, and those whose answer is known.

        A row that cannot be made into a request is among the first: the stage's worker meets the same error and stores
        it. Once ``stopping()`` is true, both are empty, since no answer may be handed out to a row that stays pending.
        """
        if not self._looks_up:
            return list(rows), []
        left: list[Row] = []
        asked: list[tuple[Row, Prepared[Any]]] = []
        for number, row in enumerate(rows):
            try:
                item = self._stage.prepare(row.context)
            except Exception:
                left.append(row)
                continue
            row.prepared = {**(row.prepared or {}), self._stage.name: item}
            if answered_by_its_state(row, self._stage.name, item):
                left.append(row)
            else:
                asked.append((row, item))
            if number % _PAUSE == _PAUSE - 1:
                await asyncio.sleep(0)
        answers = await asyncio.to_thread(self.known_answers, [item for _, item in asked])
        if stopping():
            return [], []
        found: list[tuple[Row, Prepared[Any], Answer]] = []
        for (row, item), answer in zip(asked, answers, strict=True):
            if answer is None:
                left.append(row)
            else:
                found.append((row, item, answer))
        return left, found
