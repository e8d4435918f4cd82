"""Progress as text: rates, durations, counts; a line every five seconds, or one of JSON every second."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

from infermesh.hints import counted, one_line, visible
from infermesh.runs.stats import RunStats
from infermesh.runs.time_left import about, at_least, interval

_LINE_EVERY_S, _JSON_EVERY_S = 5.0, 1.0
_RATE_WINDOW_S = 10.0
_LONGEST_WINDOW_S = 60.0  # where little settles, as under a small quota
_EXAMPLE_CHARACTERS = 300  # of an error's message
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

    def left_s(self, stats: RunStats) -> float | None:
        """Seconds left for the rows that there are; ``None`` if nothing has settled lately."""
        pending = sum(stage.total - stage.settled for stage in stats.stages.values())
        if not pending:
            return 0.0
        return pending / self.states if self.states > 0 else None

    def interval(self, stats: RunStats) -> tuple[float, float] | None:
        """Seconds left, at least and at most; ``None`` if nothing has settled lately, or nothing is left."""
        pending = sum(stage.total - stage.settled for stage in stats.stages.values())
        if not pending or len(self._seen) < 2:
            return None
        return interval([(time, settled) for time, _, settled, _ in self._seen], pending)

    def left(self, stats: RunStats) -> str:
        """Time left in words; empty where nothing is left."""
        totals = [stage.total for stage in stats.stages.values()]
        more = any(totals) and not all(totals)  # a sql stage has not made its rows yet
        if stats.paused or not (more or any(stage.total > stage.settled for stage in stats.stages.values())):
            return ""
        found = self.interval(stats)
        if found is None:
            return "time left not known yet"
        if more:
            return f"{at_least(found[0])} left"
        return f"{about(*found)} left"


def summary(stats: RunStats, rates: Rates) -> str:
    """The session's rates, counts, cost and times in one line."""
    parts = [
        f"{rates.rows:.1f} rows/s",
        f"{short(rates.tokens)} tokens/s",
        counted(stats.requests, "request"),
        counted(stats.retries, "retry", "retries"),
        f"{stats.rate_limited} × 429",
        "" if stats.cost_usd is None else f"${stats.cost_usd:.4f}",
        f"{duration(time.monotonic() - stats.started)} elapsed",
        rates.left(stats),
    ]
    return " · ".join(part for part in parts if part)


def waiting(stats: RunStats) -> str:
    """What holds requests back at this moment, in one line; empty: nothing does."""
    return f"requests wait for {', '.join(stats.waits)}" if stats.waits else ""


def failing(stats: RunStats) -> list[str]:
    """A line for each kind of error that rows have failed with in this session, most frequent first."""
    found = [
        (failures.rows, f"{failures.rows:,} × {name}: {kind}: {one_line(failures.example, _EXAMPLE_CHARACTERS)}")
        for name, stage in stats.stages.items()
        for kind, failures in stage.failures.items()
    ]
    return [line for _, line in sorted(found, key=lambda each: -each[0])]


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
        waits = waiting(stats)
        self.note("  |  ".join([stages, summary(stats, self._rates), *([waits] if waits else [])]))


def to_stdout(line: str) -> None:
    print(line, flush=True)


class JsonLines:
    """An observer for programs: an object of JSON on a line, each second and at the end, and one for each note.

    ``event`` is ``progress`` or ``note``. Progress has the counts of each stage over all sessions; the session's
    ``requests``, tokens and cost; and rates a second. Times are in seconds; ``left_s`` is null where nothing tells it,
    and ``left_between_s`` is how sure that is.

    Parameters
    ----------
    emit
        Called with each line, without a line break. Where it raises ``OSError``, nobody reads, and no more is written.
    beside
        Called with each note, for people.
    """

    def __init__(self, emit: Callable[[str], object] = to_stdout, beside: Callable[[str], object] = to_stderr) -> None:
        self._emit: Callable[[str], object] | None = emit
        self._beside = beside
        self._rates = Rates()
        self._next = 0.0

    def note(self, text: str) -> None:
        self._beside(text)
        self._write({"event": "note", "text": text})

    def start(self, stats: RunStats) -> None:
        self._next = time.monotonic()
        self.tick(stats)

    def tick(self, stats: RunStats) -> None:
        self._rates.update(stats)
        if time.monotonic() >= self._next:
            self._next += _JSON_EVERY_S
            self._write(self._progress(stats))

    def stop(self, stats: RunStats) -> None:
        self._rates.update(stats)
        self._write(self._progress(stats))

    def _progress(self, stats: RunStats) -> dict[str, Any]:
        rates = self._rates
        left, between = rates.left_s(stats), rates.interval(stats)
        return {
            "event": "progress",
            "elapsed_s": round(time.monotonic() - stats.started, 3),
            "left_s": None if left is None else round(left, 1),
            "left_between_s": None if between is None else [round(each, 1) for each in between],
            "stages": {
                name: {
                    "done": stage.done,
                    "failed": stage.failed,
                    "skipped": stage.skipped,
                    "in_flight": stage.in_flight,
                    "total": stage.total,
                }
                for name, stage in stats.stages.items()
            },
            "rows_per_s": round(rates.rows, 2),
            "tokens_per_s": round(rates.tokens, 1),
            "requests": stats.requests,
            "retries": stats.retries,
            "rate_limited": stats.rate_limited,
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "cost_usd": stats.cost_usd,
            "errors": stats.errors,
            "waits": stats.waits,
            "paused": stats.paused,
        }

    def _write(self, values: dict[str, Any]) -> None:
        if self._emit is None:
            return
        try:
            self._emit(orjson.dumps(values, default=str).decode())
        except OSError:
            self._emit = None
            self._beside("--progress json: nobody reads the lines any more; the run goes on")
