"""What is decided of a row at a stage without sending anything; a run and a plan ask the same functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import orjson

from infermesh.stages import Prepared
from infermesh.store import Row, StageTable

__all__ = ["StageOutputs", "answered_by_its_state", "take_stored"]


class StageOutputs:
    """What later stages read of one stage.

    Parameters
    ----------
    table
        The stage's table.
    needed
        The output columns that later stages name.

    Attributes
    ----------
    of_skipped
        What they read where the stage was skipped: ``NULL`` in every column.
    """

    __slots__ = ("_columns", "of_skipped")

    def __init__(self, table: StageTable, needed: Collection[str]) -> None:
        self.of_skipped = {column.name: None for column in table.outputs} | {"status": "skipped"}
        self._columns = [
            (position, column.name, column.type == "JSON")
            for position, column in enumerate(table.outputs)
            if column.name in needed
        ]

    def of(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """What they read of an answer's output columns; JSON columns parsed."""
        values: dict[str, Any] = {"status": "done"}
        for position, column, is_json in self._columns:
            value = outputs[position]
            values[column] = orjson.loads(value) if is_json and value is not None else value
        return values


def take_stored(row: Row, stage: str, outputs: StageOutputs, *, stale: bool, keep_errors: bool) -> bool:
    """Whether the row's stored state of a stage still holds; then it is what later stages read.

    Parameters
    ----------
    stale
        The stage's declaration has changed since: its state does not hold.
    keep_errors
        Leave a row that failed as it is.
    """
    state = row.states.get(stage)
    if state is None or stale:
        return False
    if state.status == "done":
        row.context[stage] = state.outputs | {"status": "done"}
        return True
    if state.status == "skipped" and state.error_type is None:
        row.context[stage] = outputs.of_skipped
        return True
    if keep_errors:
        row.failed[stage] = "failed in an earlier session"
    return keep_errors


def answered_by_its_state(row: Row, stage: str, item: Prepared[Any]) -> bool:
    """Whether the row's stored answer is the answer to this very request."""
    state = row.states.get(stage)
    return state is not None and state.status == "done" and state.request_key == item.key
