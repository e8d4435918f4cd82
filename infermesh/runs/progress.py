"""Progress as text: rates, durations, counts; a line every five seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from infermesh.hints import counted, visible
from infermesh.runs.stats import RunStats

_LINE_EVERY_S = 5.0
_RATE_WINDOW_S = 10.0
_LONGEST_WINDOW_S = 60.0  # where little settles, as under a small quota
_ENOUGH = 50  # row states that settled: a rate of fewer would jump


def duration(seconds: float) -> str:
    """Format seconds as ``7s``, ``3m05s``, ``2h10m`` or ``3d04h``."""
    whole = int(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{small}"
    return f"{whole}s"


def short(number: float) -> str:
    """Format a number as ``950``, ``12.3k`` or ``4.5M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


class Rates:
    """Rows, row states and tokens per second, and the time left at that rate.

    Over the last ten seconds; where fewer than fifty row states settled in these, over up to a minute.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int, int]] = deque()
        self.rows = 0.0
        self.states = 0.0
        self.tokens = 0.0

    def update(self, stats: RunStats) -> None:
        now = time.monotonic()
        self._seen.append((now, stats.rows, stats.settled, stats.prompt_tokens + stats.completion_tokens))
        while len(self._seen) > 2 and self._is_old(now):
            self._seen.popleft()
        then, *before = self._seen[0]
        elapsed = now - then
        if elapsed > 0:
            _, *latest = self._seen[-1]
            self.rows, self.states, self.tokens = (
                (new - old) / elapsed for new, old in zip(latest, before, strict=True)
            )

    def _is_old(self, now: float) -> bool:
        """Whether the rates can do without the oldest counts."""
        age, settled = now - self._seen[0][0], self._seen[-1][2] - self._seen[1][2]
        return age > _LONGEST_WINDOW_S or (age > _RATE_WINDOW_S and settled >= _ENOUGH)

    def left(self, stats: RunStats) -> str:
        """Time left; ``?`` if nothing has settled lately, ``+`` if a sql stage has not made its rows yet."""
        pending = sum(stage.total - stage.settled for stage in stats.stages.values())
        more = "+" if any(not stage.total for stage in stats.stages.values()) else ""
        if not pending:
            return f"0s{more}"
        return f"{duration(pending / self.states)}{more}" if self.states > 0 else "?"


def summary(stats: RunStats, rates: Rates) -> str:
    """The session's rates, counts, cost and times in one line."""
    cost = "" if stats.cost_usd is None else f" · ${stats.cost_usd:.4f}"
    return (
        f"{rates.rows:.1f} rows/s · {short(rates.tokens)} tokens/s · {counted(stats.requests, 'request')} · "
        f"{counted(stats.retries, 'retry', 'retries')} · {stats.rate_limited} × 429{cost} · "
        f"{duration(time.monotonic() - stats.started)} elapsed · {rates.left(stats)} left"
    )


def to_stderr(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


class PlainLines:
    """An observer that emits notes, a progress line every five seconds, and a last line at the end.

    Parameters
    ----------
    emit
        Called with each line, without a line break.
    """

    def __init__(self, emit: Callable[[str], object] = to_stderr) -> None:
        self._emit = emit
        self._rates = Rates()
        self._next = 0.0

    def note(self, text: str) -> None:
        self._emit(text)

    def start(self, stats: RunStats) -> None:
        self._next = time.monotonic() + _LINE_EVERY_S
        self._rates.update(stats)

    def tick(self, stats: RunStats) -> None:
        self._rates.update(stats)
        if time.monotonic() >= self._next:
            self._next += _LINE_EVERY_S
            self._print(stats)

    def stop(self, stats: RunStats) -> None:
        self._rates.update(stats)
        self._print(stats)

    def _print(self, stats: RunStats) -> None:
        stages = "  ".join(
            f"{name} {stage.settled}/{stage.total}"
            + (f" ({stage.failed} failed)" if stage.failed else "")
            + (f" [{stage.in_flight} in flight]" if stage.in_flight else "")
            for name, stage in stats.stages.items()
        )
        waits = f"  |  requests wait for {', '.join(stats.waits)}" if stats.waits else ""
        self.note(f"{stages}  |  {summary(stats, self._rates)}{waits}")
