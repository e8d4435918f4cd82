"""Guards stop a run early: budgets, error counts and rates, a duration. They are checked as rows settle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from infermesh.config.schema import GuardsConfig
from infermesh.hints import counted
from infermesh.runs.budget import Budget
from infermesh.runs.stats import Failures, RunStats, StageStats

LEAST_ROWS = 20  # below this, one failure would be a rate of over 5 %


class Guards:
    """Checks a session's counts against the declared limits. The cost is the run's, everything else the session's.

    Parameters
    ----------
    config
        The limits; ``None`` is no limit.
    spent
        US dollars that earlier sessions of the run cost; ``None`` if unknown, which counts as 0.
    before
        What one request cost in them at most, as in :class:`~infermesh.runs.budget.Budget`.
    clock
        Seconds from any start.
    """

    def __init__(
        self,
        config: GuardsConfig,
        *,
        spent: float | None = None,
        before: Mapping[str, tuple[int, float]] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._before = before
        self._config = config
        self._spent = spent or 0.0
        self._clock = clock
        self._started = clock()
        self._budget: Budget | None = None

    def budget(self, stats: RunStats) -> Budget | None:
        """What requests have to fit into before they are sent, the same at each call; ``None``: there is no budget."""
        limit = self._config.max_cost_usd
        if self._budget is None and limit is not None:
            self._budget = Budget(limit, lambda: self._spent + (stats.cost_usd or 0.0), self._before)
        return self._budget

    def set_budget(self, dollars: float | None) -> None:
        """Change ``max_cost_usd``. Where there was none, nothing is set aside for what is in flight."""
        self._config = self._config.model_copy(update={"max_cost_usd": dollars})
        if self._budget is not None:
            self._budget.change(math.inf if dollars is None else dollars)

    @property
    def waiting_for(self) -> list[str]:
        """What requests wait for here, in words: room in the budget."""
        if self._budget is None or not self._budget.is_waited_for:
            return []
        return [f"room in guards.max_cost_usd (${self._config.max_cost_usd:g}; what is in flight may use the rest)"]

    def __bool__(self) -> bool:
        """Whether any limit is set that an answer can reach."""
        return any(value is not None for name, value in self._config.model_dump().items() if name != "first_errors")

    def tripped(self, stats: RunStats) -> str | None:
        """The first limit that is reached, with its value and the run's, in words; ``None`` if none is."""
        config = self._config
        if config.max_cost_usd is not None:
            cost = self._spent + (stats.cost_usd or 0.0)
            if cost >= config.max_cost_usd:
                return f"guards.max_cost_usd is {config.max_cost_usd:g}, the run has cost ${cost:.4f}"
            if self._budget is not None and self._budget.used_up is not None:
                return self._budget.used_up
        if config.max_errors is not None and stats.errors >= config.max_errors:
            return (
                f"guards.max_errors is {config.max_errors}, {counted(stats.errors, 'row state')} failed in this session"
            )
        if config.max_error_rate is not None and stats.settled >= LEAST_ROWS:
            rate = stats.errors / stats.settled
            if rate > config.max_error_rate:
                return (
                    f"guards.max_error_rate is {config.max_error_rate:g}, {stats.errors} of "
                    f"{counted(stats.settled, 'row state')} failed in this session ({rate:.1%})"
                )
        if config.first_errors is not None and stats.errors:
            for name, stage in stats.stages.items():
                if (failures := _all_alike(stage)) is not None and failures[1].rows >= config.first_errors:
                    kind, found = failures
                    alike = counted(found.rows, f"row of {name} has", f"rows of {name} have all")
                    return (
                        f"guards.first_errors is {config.first_errors}: the first {alike} failed with {kind}, which no "
                        f"retry mends: {found.example}"
                    )
        if config.max_duration is not None and self._clock() - self._started >= config.max_duration:
            return f"guards.max_duration is {config.max_duration:g} s"
        return None


def _all_alike(stage: StageStats) -> tuple[str, Failures] | None:
    """The one kind of error with which all rows of a stage have failed, if no retry mends it and none was answered."""
    if stage.done or len(stage.failures) != 1:
        return None
    ((kind, failures),) = stage.failures.items()
    return (kind, failures) if failures.lasting else None
