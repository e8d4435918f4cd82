"""The counts of a run from those of its workers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from infermesh.runs.row import StageOutputs, take_stored
from infermesh.runs.stats import Failures, RunStats, StageStats, Trouble
from infermesh.store import Row

__all__ = ["add", "forget_in_flight", "take_back"]

_OF_RUN = (
    *("requests", "retries", "rate_limited", "prompt_tokens", "completion_tokens"),
    *("settled", "rows", "errors", "kept", "reused"),
)
_OF_STAGE = ("done", "failed", "skipped", "in_flight")


def add(total: RunStats, before: RunStats | None, now: RunStats) -> None:
    """Add to a run's counts what a worker has counted between two answers; ``before`` is ``None`` for its first."""
    before = before or RunStats({name: StageStats() for name in now.stages})
    for name in _OF_RUN:
        setattr(total, name, getattr(total, name) + getattr(now, name) - getattr(before, name))
    if now.cost_usd is not None:
        total.cost_usd = (total.cost_usd or 0.0) + now.cost_usd - (before.cost_usd or 0.0)
    for stage, counts in now.stages.items():
        if (mine := total.stages.get(stage)) is None:  # a retry leaves it alone
            continue
        earlier = before.stages[stage]
        for name in _OF_STAGE:
            setattr(mine, name, getattr(mine, name) + getattr(counts, name) - getattr(earlier, name))
        for kind, failures in counts.failures.items():
            found = mine.failures.setdefault(kind, Failures(failures.example, lasting=failures.lasting))
            found.rows += failures.rows - (earlier.failures[kind].rows if kind in earlier.failures else 0)
            found.lasting = found.lasting and failures.lasting
    for key, trouble in now.troubles.items():
        known = total.troubles.setdefault(key, Trouble(*key, trouble.message, trouble.retryable))
        known.requests += trouble.requests - (before.troubles[key].requests if key in before.troubles else 0)
    for stage, (rows, example) in now.not_redone.items():
        count, first = total.not_redone.get(stage, (0, example))
        total.not_redone[stage] = (count + rows - before.not_redone.get(stage, (0, ""))[0], first)


def forget_in_flight(total: RunStats, last: RunStats | None) -> None:
    """A worker is lost: what it had in flight is nobody's any more."""
    for name, counts in last.stages.items() if last is not None else ():
        if name in total.stages:
            total.stages[name].in_flight -= counts.in_flight


def take_back(
    total: RunStats,
    half_done: Mapping[int, Mapping[str, str]],
    rows: Mapping[int, Row],
    outputs: Mapping[str, StageOutputs],
    *,
    stale: Collection[str],
    keep_errors: bool,
) -> None:
    """Take back what a lost worker has counted of rows that others will count again.

    Parameters
    ----------
    half_done
        Row_id → stage → how it had settled the row.
    rows
        The same rows as they are stored now. A stage whose stored state stands is not counted again.
    """
    for row_id, stages in half_done.items():
        row = rows.get(row_id)
        for name, how in stages.items():
            again = row is None or not take_stored(
                row, name, outputs[name], stale=name in stale, keep_errors=keep_errors
            )
            if again and name in total.stages:
                _uncount(total, name, how)


def _uncount(total: RunStats, name: str, how: str) -> None:
    stage = total.stages[name]
    total.settled -= 1
    if how in ("done", "kept"):
        stage.done -= 1
        total.kept -= how == "kept"
    elif how == "skipped":
        stage.skipped -= 1
    else:
        stage.failed -= 1
        total.errors -= 1
    if how == "former":
        count, example = total.not_redone[name]
        total.not_redone[name] = (count - 1, example)
        if count == 1:
            del total.not_redone[name]
