"""A first query over a run: the answers of its last stages, in few columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infermesh.query.reader import RunReader
from infermesh.query.union import RunUnion
from infermesh.store.schema import AFTER_OUTPUTS, BEFORE_OUTPUTS, quoted

__all__ = ["first_query_across", "first_query_of"]

Ask = Callable[[str], Sequence[tuple[Any, ...]]]
Counts = Mapping[str, Mapping[str, int]]

_PROGRESS = "from progress"  # where there is no answer to look at
_MOST = 3  # columns of answers
_OWN = {column.name for column in (*BEFORE_OUTPUTS, *AFTER_OUTPUTS)}
_SAMPLE = 100  # rows that are looked at to see which column is filled
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def first_query_of(reader: RunReader, counts: Counts | None = None) -> str:
    """A query over a run whose answer is worth looking at.

    Parameters
    ----------
    counts
        The run's, where they are known: else they are counted, which takes seconds over millions of rows.

    Examples
    --------
    >>> first_query_of(reader)
    'select row_id, summaries_parsed from results order by row_id limit 5'
    """
    return _first_query(reader.rows, _counts(reader.rows) if counts is None else counts)


def first_query_across(union: RunUnion) -> str:
    """The same over many runs: the answers to a row below each other, with what was set otherwise in each run."""
    union.make_views()
    labels = [label.name for label in union.labels]
    return _first_query(union.rows, _counts(union.rows), labels, limit=max(4, 2 * len(union.runs)))


def _counts(ask: Ask) -> Counts:
    counts: dict[str, Counter[str]] = {}
    for stage, status, rows in ask("SELECT stage, status, rows FROM progress"):
        counts.setdefault(stage, Counter())[status] += int(rows)
    return counts


def _first_query(ask: Ask, counts: Counts, before: Sequence[str] = (), *, limit: int = 5) -> str:
    """A query whose answer is worth looking at: each row's number and what the last stages have made of it.

    Parameters
    ----------
    ask
        Gives the rows of a query over the run's tables, or over many runs'.
    counts
        Stage → status → rows.
    before
        Columns to put before the answers.
    """
    done = {stage: of.get("done", 0) for stage, of in counts.items()}
    views = [name for (name,) in ask("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1")]
    answers = {
        stage: _answer_columns(ask, stage) for stage, rows in done.items() if rows and 2 * rows >= max(done.values())
    }
    last = next((stage for stage in reversed(answers) if answers[stage]), None)
    view = None if last is None else _view_of(ask, views, last)
    if view is None:
        return _PROGRESS
    there = _names(ask, view)
    chosen = [f"{stage}_{column}" for stage, columns in answers.items() for column in columns]
    chosen = [column for column in chosen if column in there][-_MOST:]
    listed = ", ".join(_shown(column) for column in ["row_id", *before, *chosen])
    order = ", ".join(["row_id", *map(_shown, before)])
    return f"select {listed} from {_shown(view)} order by {order} limit {limit}"


def _answer_columns(ask: Ask, stage: str) -> list[str]:
    """The columns of a stage that a person reads: what was parsed, or the text, or what a function gave."""
    kinds = {row[0]: str(row[1]) for row in ask(f"DESCRIBE {quoted(stage)}")}
    outputs = [name for name, kind in kinds.items() if name not in _OWN and not kind.endswith(("FLOAT[]", "DOUBLE[]"))]
    if "request_key" not in kinds:  # a sql stage: its rows are what others read
        return []
    if not {"text", "finish_reason"} <= set(outputs):
        return ["text"] if {"text", "duration_s"} <= set(outputs) else outputs[:_MOST]
    parsed = ask(f"SELECT 1 FROM (SELECT parsed FROM {quoted(stage)} LIMIT {_SAMPLE}) WHERE parsed IS NOT NULL LIMIT 1")
    return ["parsed"] if parsed else ["text"]


def _view_of(ask: Ask, views: Sequence[str], stage: str) -> str | None:
    """The view that has a row for each row of the stage."""
    found = [view for view in views if view == "results" or view.endswith("_results")]
    return next((view for view in found if f"{stage}_status" in _names(ask, view)), None)


def _names(ask: Ask, table: str) -> list[str]:
    return [str(row[0]) for row in ask(f"DESCRIBE {quoted(table)}")]


def _shown(name: str) -> str:
    """A name as people write it in SQL: quoted only where it has to be."""
    return name if _BARE.fullmatch(name) else quoted(name)
