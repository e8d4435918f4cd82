"""A row at a stage: what is decided of it without a request, which a run and a plan share; and what is stored of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from infermesh.errors import RequestError
from infermesh.exact_json import read
from infermesh.results import RequestMetrics, TokenUsage, sole_attempt
from infermesh.stages import Prepared
from infermesh.stages.base import Result
from infermesh.store import Row, StageTable
from infermesh.store.reuse import KnownAnswer
from infermesh.store.schema import microseconds, state_row

__all__ = ["StageOutputs", "answered_by_its_state", "settled_row", "take_stored", "tells_its_request", "to_be_redone"]


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
            (position, column.name, _READ.get(column.type))
            for position, column in enumerate(table.outputs)
            if column.name in needed
        ]

    def done(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """The values of an answered row, from its output columns: JSON is parsed, an embedding a list of floats."""
        values: dict[str, Any] = {"status": "done"}
        for position, column, convert in self._columns:
            value = outputs[position]
            values[column] = value if convert is None or value is None else convert(value)
        return values


def _floats(value: Any) -> Any:
    return memoryview(value).cast("f").tolist() if isinstance(value, bytes) else value


_READ: dict[str, Callable[[Any], Any]] = {"JSON": read, "FLOAT[]": _floats}


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


def tells_its_request(result: Result | RequestError) -> bool:
    """Whether a row with this answer says all that ``attempts`` does: it took one request, for itself alone."""
    return not isinstance(result, RequestError) and sole_attempt(result) is not None


def settled_row(
    row_id: int,
    status: str,
    outputs: Sequence[Any],
    error: tuple[str | None, str | None],
    key: str | None,
    result: Result | RequestError | None,
    reused: KnownAnswer | None,
    *,
    sole: bool = False,
) -> tuple[Any, ...]:
    """Make the row of a stage's table. At most one of ``result`` and ``reused`` is given: an answer sent for, or known.

    A known answer of this run keeps its ``finished_at``: with ``reused_from`` it marks the answer as handed out. With
    ``sole`` the row tells of its request, which began ``service_s`` before ``finished_at``.
    """
    metrics: RequestMetrics | None = None
    usage: TokenUsage | KnownAnswer | None = None
    model_id = request_id = deployment = cost = None
    finished_at: datetime | int | None = None
    if isinstance(result, RequestError):
        metrics, request_id, deployment = result.metrics, result.request_id, result.deployment
    elif result is not None:
        metrics, request_id = result.metrics, result.request_id
        usage, model_id, cost = result.token_usage, result.model_id, result.cost
        deployment = metrics.deployment if metrics is not None else None
        if sole and metrics is not None:
            finished_at = microseconds(metrics.attempts[0].started_at + metrics.service_s)
    elif reused is not None:
        usage, model_id, request_id, cost = reused, reused.model_id, reused.request_id, 0.0
        finished_at = reused.finished_at
    return state_row(
        row_id,
        status,
        outputs,
        *error,
        len(metrics.attempts) if metrics is not None else 0,
        deployment,
        model_id,
        request_id,
        key,
        usage.prompt_tokens if usage is not None else None,
        usage.completion_tokens if usage is not None else None,
        cost,
        metrics.queue_s if metrics is not None else None,
        metrics.service_s if metrics is not None else None,
        finished_at or microseconds(time.time()),
        reused.run_id if reused is not None else None,
        sole or None,
    )
