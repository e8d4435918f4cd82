"""The counts of a running session, for progress displays and guards."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from infermesh.hints import counted
from infermesh.runtime.foreign import words_of

logger = logging.getLogger("infermesh")
_TELL_AFTER_S = 1.0  # by then it is known how many requests fail so, and whether the deployment as a whole is away
_SHOWN = 300  # characters of a message


@dataclass(slots=True)
class Failures:
    """Rows of a stage that failed in this session with one kind of error.

    ``example`` is the first one's message; ``lasting`` says that no retry would have mended any
    of them, and that each may be the fault of all rows.
    """

    example: str
    rows: int = 0
    lasting: bool = True


@dataclass(slots=True)
class StageStats:
    """Row counts of one stage, earlier sessions included. ``in_flight`` rows have a request sent or waiting to be.

    ``failures`` are this session's: kind of error → the rows.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    in_flight: int = 0
    failures: dict[str, Failures] = field(default_factory=dict)

    def fail(self, kind: str, message: str, *, lasting: bool) -> None:
        """Count a row that failed."""
        found = self.failures.get(kind)
        if found is None:
            found = self.failures[kind] = Failures(message)
        found.rows += 1
        found.lasting = found.lasting and lasting
        self.failed += 1

    def take_back(self, kind: str) -> None:
        """Forget a row that failed: it is sent again."""
        self.failed -= 1
        found = self.failures.get(kind)
        if found is not None:
            found.rows -= 1
            if not found.rows:
                del self.failures[kind]

    @property
    def settled(self) -> int:
        return self.done + self.failed + self.skipped


@dataclass(slots=True)
class Trouble:
    """Requests of a stage that failed at a deployment with one kind of error.

    Attributes
    ----------
    message
        The first one's.
    retryable
        Whether another request might succeed.
    told
        Whether the observer has been told.
    """

    stage: str
    deployment: str
    kind: str
    message: str
    retryable: bool
    requests: int = 0
    told: bool = False
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class RunStats:
    """The counts of a session; only ``stages`` includes earlier ones.

    A row state is one row at one stage.

    Attributes
    ----------
    started
        ``time.monotonic()`` at the start, in seconds.
    requests
        Requests sent, retries included.
    settled, errors
        Row states that settled, and how many of them with an error.
    rows
        Rows that have settled at all their stages.
    cost_usd
        ``None`` until a price is known.
    kept
        Row states whose request was unchanged, so that the stored answer was kept.
    reused
        Row states that took the answer of a retired row or of an earlier run.
    not_redone
        Stage → the rows that were to be done again, failed and keep the answer that they had; and one's error.
    troubles
        (stage, deployment, kind of error) → the requests that failed so.
    waits
        What requests wait for at this moment, in words.
    paused
        Whether somebody has paused the run.
    """

    stages: dict[str, StageStats]
    started: float = field(default_factory=time.monotonic)
    requests: int = 0
    settled: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    rate_limited: int = 0
    cost_usd: float | None = None
    errors: int = 0
    kept: int = 0
    reused: int = 0
    not_redone: dict[str, tuple[int, str]] = field(default_factory=dict)
    troubles: dict[tuple[str, str, str], Trouble] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    paused: bool = False

    def untold(self, told_of: Callable[[str], bool]) -> list[str]:
        """A line for each kind of failure that the user has not been told of yet.

        Parameters
        ----------
        told_of
            Whether a line about a deployment as a whole has been told, which says more.
        """
        lines = []
        before = time.monotonic() - _TELL_AFTER_S
        for trouble in self.troubles.values():
            if trouble.told or trouble.since > before:
                continue
            trouble.told = True
            if not told_of(trouble.deployment):
                what = "each is tried again" if trouble.retryable else "no retry mends it, so that its rows fail"
                lines.append(
                    f"{trouble.stage} at {trouble.deployment}: {trouble.kind}: {trouble.message[:_SHOWN]} "
                    f"({counted(trouble.requests, 'request')} so far; {what})"
                )
        return lines


class Observer(Protocol):
    """Receives a run's notes and counts: a terminal, a log, a test. Called in the run's thread; must not block.

    ``stats`` is the same object at every call and changes in between.
    """

    def note(self, text: str) -> None:
        """Called once for each message, before :meth:`start` too."""
        ...

    def start(self, stats: RunStats) -> None:
        """Called once, before the first request."""
        ...

    def tick(self, stats: RunStats) -> None:
        """Called four times a second."""
        ...

    def stop(self, stats: RunStats) -> None:
        """Called once, after the last row has settled or the run was drained."""
        ...


class ForeignObserver:
    """An observer of somebody else's: whatever a call of it ends in costs that call alone. The log is told once.

    ``as_written`` makes a note name the keys of the declaration as the user wrote them.
    """

    def __init__(self, observer: Observer, as_written: Callable[[str], str] = str) -> None:
        self._observer = observer
        self._as_written = as_written
        self._told = False

    def note(self, text: str) -> None:
        self._call("note", self._as_written(text))

    def start(self, stats: RunStats) -> None:
        self._call("start", stats)

    def tick(self, stats: RunStats) -> None:
        self._call("tick", stats)

    def stop(self, stats: RunStats) -> None:
        self._call("stop", stats)

    def _call(self, name: str, argument: object) -> None:
        try:
            getattr(self._observer, name)(argument)
        except BaseException as error:
            # While the source is loaded, this is Ctrl-C. Later the run takes the signal.
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            if not self._told:
                self._told = True
                what = f"progress: {name} ended in {words_of(error)}"
                logger.warning("%s. The run goes on, and tells no further one.", what, exc_info=error)
