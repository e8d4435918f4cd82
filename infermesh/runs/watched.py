"""A run's progress for who looks on from another process: the same counts and notes, over the run's socket."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from infermesh.runs.stats import Failures, Observer, RunStats, StageStats

__all__ = ["Watched", "as_stats"]

_KEPT = 200  # notes, for who comes later
_OF_RUN = (
    *("requests", "settled", "rows", "prompt_tokens", "completion_tokens", "retries", "rate_limited"),
    *("cost_usd", "errors", "kept", "reused", "waits", "paused"),
)
_OF_STAGE = ("total", "done", "failed", "skipped", "in_flight")
_LOOK_S = 0.5


def as_dict(stats: RunStats) -> dict[str, Any]:
    """The counts as they travel."""
    return {
        "elapsed_s": time.monotonic() - stats.started,
        **{name: getattr(stats, name) for name in _OF_RUN},
        "stages": {
            stage: {
                **{name: getattr(counts, name) for name in _OF_STAGE},
                "failures": {kind: [each.example, each.rows] for kind, each in counts.failures.items()},
            }
            for stage, counts in stats.stages.items()
        },
    }


def as_stats(values: Mapping[str, Any]) -> RunStats:
    """The counts that have arrived, for an :class:`~infermesh.runs.stats.Observer`."""
    stages = {
        stage: StageStats(
            **{name: counts[name] for name in _OF_STAGE},
            failures={kind: Failures(*each) for kind, each in counts["failures"].items()},
        )
        for stage, counts in values["stages"].items()
    }
    started = time.monotonic() - values["elapsed_s"]
    return RunStats(stages, started, **{name: values[name] for name in _OF_RUN})


class Watched:
    """An observer that passes all on to another one, and to those who watch.

    The run calls it in its thread; who watches has a thread of the socket's.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._news = threading.Condition()
        self._notes: deque[str] = deque(maxlen=_KEPT)
        self._noted = 0  # notes so far, those that are not kept any more included
        self._stats: bytes | None = None
        self._ticks = 0
        self._watching = 0
        self._code: int | None = None

    def note(self, text: str) -> None:
        self._observer.note(text)
        with self._news:
            self._notes.append(text)
            self._noted += 1
            self._news.notify_all()

    def start(self, stats: RunStats) -> None:
        self._observer.start(stats)
        self._show(stats)

    def tick(self, stats: RunStats) -> None:
        self._observer.tick(stats)
        if self._watching:
            self._show(stats)

    def stop(self, stats: RunStats) -> None:
        self._observer.stop(stats)
        self._show(stats)

    def _show(self, stats: RunStats) -> None:
        line = _line({"stats": as_dict(stats)})
        with self._news:
            self._stats = line
            self._ticks += 1
            self._news.notify_all()

    def over(self, code: int) -> None:
        """Tell those who watch how the run has ended: its exit code."""
        with self._news:
            self._code = code
            self._news.notify_all()

    def lines(self, over: threading.Event) -> Iterator[bytes]:
        """What to tell one who watches, as lines of JSON: ``stats`` and ``note``, and at the end ``over``.

        Parameters
        ----------
        over
            Set when nobody is to be told any more.
        """
        ticks, noted = 0, self._noted - len(self._notes)
        self._watching += 1
        try:
            while not over.is_set():
                with self._news:
                    self._news.wait_for(lambda: self._has_news(ticks, noted), _LOOK_S)  # noqa: B023
                    fresh = [*self._notes][-(self._noted - noted) :] if self._noted > noted else []
                    stats = self._stats if self._ticks > ticks else None
                    ticks, noted, code = self._ticks, self._noted, self._code
                for text in fresh:
                    yield _line({"note": text})
                if stats is not None:
                    yield stats
                if code is not None:
                    yield orjson.dumps({"over": code}) + b"\n"
                    return
        finally:
            self._watching -= 1

    def _has_news(self, ticks: int, noted: int) -> bool:
        return self._ticks > ticks or self._noted > noted or self._code is not None


def _line(value: Mapping[str, Any]) -> bytes:
    """A line of JSON. Half a surrogate in a server's words, which JSON does not have, becomes a question mark."""
    try:
        return orjson.dumps(value, default=str) + b"\n"
    except TypeError:
        return json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
