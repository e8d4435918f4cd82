"""Values of rows as a page shows them: which columns, and how much of each. DuckDB cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from infermesh.store.schema import AFTER_OUTPUTS, BEFORE_OUTPUTS, SOURCE, quoted, results_view

__all__ = ["Asks", "answer_columns", "column_kinds", "origins", "rows_of", "shown_columns"]

_MOST_COLUMNS = 12  # of the rows
_MESSAGE = 1500
_OWN = {column.name for column in (*BEFORE_OUTPUTS, *AFTER_OUTPUTS)}


class Asks(Protocol):
    """Who answers queries of ours over a run: a :class:`~infermesh.query.reader.RunReader`, for example."""

    def rows(self, sql: str, *, timeout: float | None = None) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        ...


def origins(run: Asks, stages: Sequence[str]) -> dict[str, list[str]]:
    """Whose rows there are, ``source`` first, and the stages over each, by the views of results."""
    views = [name for (name,) in run.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1")]
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for view in sorted((name for name in views if name == "results" or name.endswith("_results")), key=len):
        there = column_kinds(run, view)
        over = [stage for stage in stages if f"{stage}_status" in there and stage not in taken]
        found[SOURCE if view == results_view(SOURCE) else view.removesuffix("_results")] = over
        taken.update(over)
    return found


def column_kinds(run: Asks, table: str) -> dict[str, str]:
    """Column → its DuckDB type."""
    return {str(row[0]): str(row[1]) for row in run.rows(f"DESCRIBE {quoted(table)}")}


def shown_columns(kinds: Sequence[str] | dict[str, str]) -> tuple[list[str], int]:
    """The columns of an origin that are shown, and how many are left out."""
    users = [name for name in kinds if name not in ("row_id", "row_key")]
    return users[:_MOST_COLUMNS], len(users[_MOST_COLUMNS:])


def answer_columns(run: Asks, stage: str) -> list[str]:
    """The columns of a stage that a person reads. ``parsed`` stands for the text that it was parsed from."""
    outputs = [name for name in column_kinds(run, stage) if name not in _OWN]
    if {"text", "finish_reason"} <= set(outputs):
        parsed = run.rows(f"SELECT 1 FROM {quoted(stage)} WHERE parsed IS NOT NULL LIMIT 1")
        return ["parsed" if parsed else "text"]
    return ["text"] if {"text", "duration_s"} <= set(outputs) else outputs[:_MOST_COLUMNS]


def _state_values(run: Asks, stage: str, columns: Sequence[str], most: int) -> list[str]:
    """SQL for a row's state in a stage: status, kind and message of the error, then these columns."""
    kinds = column_kinds(run, stage)
    own = [f"left({name}::VARCHAR, 40)" for name in ("status", "error_type")]
    return [*own, f"left(error, {min(_MESSAGE, most)})", *(_cut(name, kinds[name], most) for name in columns)]


def _values_by_row(run: Asks, table: str, values: Sequence[str], where: str) -> dict[int, tuple[Any, ...]]:
    """Row number → these values, of the rows that a condition names."""
    found = run.rows(f"SELECT {', '.join(['row_id', *values])} FROM {quoted(table)} WHERE {where}")
    return {row[0]: row[1:] for row in found}


def _cut(name: str, kind: str, most: int) -> str:
    """SQL for a column's value as text: its beginning, and how much there is where that is not all."""
    if kind.endswith(("FLOAT[]", "DOUBLE[]")):
        size = f"len({quoted(name)})"
        return (
            f"{quoted(name)}[1:4]::VARCHAR || CASE WHEN {size} > 4 THEN format(' … ({{}} numbers)', {size}) ELSE '' END"
        )
    text = f"{quoted(name)}::VARCHAR"
    more = f"format(' … ({{:,}} characters)', len({text}))"
    return f"left({text}, {most}) || CASE WHEN len({text}) > {most} THEN {more} ELSE '' END"


def rows_of(
    run: Asks, origin: str, columns: Sequence[str], answers: dict[str, list[str]], numbers: Sequence[int], most: int
) -> list[tuple[Any, ...]]:
    """Rows by their numbers, in that order: number, ``columns``, then of each stage its state and its columns.

    Parameters
    ----------
    answers
        Stage → the columns of it.
    most
        Characters of a value.
    """
    wanted = f"row_id IN ({', '.join(map(str, numbers)) or 'NULL'})"
    kinds = column_kinds(run, origin)
    by_row = _values_by_row(run, origin, [_cut(name, kinds[name], most) for name in columns], wanted)
    for stage, names in answers.items():
        own = _state_values(run, stage, names, most)
        states = _values_by_row(run, stage, own, wanted)
        by_row = {row: (*values, *states.get(row, (None,) * len(own))) for row, values in by_row.items()}
    return [(row, *by_row[row]) for row in numbers if row in by_row]
