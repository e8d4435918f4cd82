"""Decisions about a row at a stage that need no request. A run and a plan share them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from infermesh.exact_json import read
from infermesh.stages import Prepared
from infermesh.store import Row, StageTable

__all__ = ["StageOutputs", "answered_by_its_state", "take_stored", "to_be_redone"]


class StageOutputs:
    """The values that later stages read from one stage, for a row's ``context``.

    Parameters
    ----------
    needed
        The output columns that later stages name.

    Attributes
    ----------
    skipped
        The values of a skipped row: ``None`` in every column.
    """

    __slots__ = ("_columns", "skipped")

    def __init__(self, table: StageTable, needed: Collection[str]) -> None:
        self.skipped = {column.name: None for column in table.outputs} | {"status": "skipped"}
        self._columns = [
            (position, column.name, column.type == "JSON")
            for position, column in enumerate(table.outputs)
            if column.name in needed
        ]

    def done(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """The values of an answered row, from its output columns; JSON columns are parsed."""
        values: dict[str, Any] = {"status": "done"}
        for position, column, is_json in self._columns:
            value = outputs[position]
            values[column] = read(value) if is_json and value is not None else value
        return values


def take_stored(row: Row, stage: str, outputs: StageOutputs, *, stale: bool, keep_errors: bool) -> bool:
    """If the row's stored state at a stage still holds, take it for the later stages; return whether it does.

    Parameters
    ----------
    stale
        The stage's declaration has changed since: no stored state holds before the requests are compared.
        One that is to be done again never does.
    keep_errors
        A failed state holds too.
    """
    state = row.states.get(stage)
    if state is None or stale or state.redo:
        return False
    if state.status == "done":
        row.context[stage] = state.outputs | {"status": "done"}
        return True
    if state.status == "skipped" and state.error_type is None:
        row.context[stage] = outputs.skipped
        return True
    if keep_errors:
        row.failed[stage] = "failed in an earlier session"
    return keep_errors


def answered_by_its_state(row: Row, stage: str, item: Prepared[Any]) -> bool:
    """Whether the row's stored answer belongs to the same request."""
    state = row.states.get(stage)
    return state is not None and state.status == "done" and state.request_key == item.key and not state.redo


def to_be_redone(row: Row, stage: str) -> bool:
    """Whether the user wants the row to be sent again, whatever answers there are."""
    state = row.states.get(stage)
    return state is not None and state.redo
