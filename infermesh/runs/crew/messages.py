"""What hub and worker say to each other.

The hub calls, the worker answers; one call is outstanding, and nothing comes in that was not asked for. So the late
words of a worker that counts as lost reach nobody. A worker answers when a time has passed that the hub names, or
sooner, when many rows wait. Messages are pickled, between processes of one version: each side refuses another's.

The keys of deployments travel in :class:`Start` alone. They are in the memory of hub and workers, and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from infermesh.config.declaration import Declaration
from infermesh.limits.dealing import Ask, Credit
from infermesh.runs.stats import RunStats
from infermesh.store import Column, Row
from infermesh.store.reuse import KnownAnswer

__all__ = [
    "PROTOCOL",
    "Down",
    "Put",
    "Question",
    "SentRow",
    "Share",
    "Start",
    "Up",
    "WaveStart",
    "as_row",
    "sent_row",
]

Put = tuple[str, tuple[Any, ...], bool, int]  # as in GroupWriter.put: table, row, replaces, size
SentRow = tuple[int, dict[str, Any], str | None, dict[str, Any]]


def sent_row(row: Row) -> SentRow:
    """A row as it travels."""
    return row.row_id, row.context, row.error, row.states


def as_row(sent: SentRow) -> Row:
    """The row that has arrived."""
    return Row(*sent)


@dataclass(slots=True)
class Start:
    """The first message: all that a worker needs to become one.

    Attributes
    ----------
    environ
        Where keys are looked up.
    simulator_url
        The embedded simulator's URL; ``None``: none is used.
    path
        The hub's ``sys.path``, so that the same functions are imported.
    origins
        The columns of ``source`` and of each sql stage.
    number
        The worker's, from 1; a replacement has a new one.
    workers
        How many there are at once.
    silence_s
        A worker ends that is not called for so long.
    """

    protocol: str
    declaration: Declaration
    environ: Mapping[str, str]
    simulator_url: str | None
    path: Sequence[str]
    origins: Mapping[str, Sequence[Column]]
    number: int
    workers: int
    silence_s: float


@dataclass(slots=True)
class WaveStart:
    """The stages over an origin are to run: what its Runner needs. ``known``: stages that have known answers."""

    number: int
    row_bytes: int
    stale: Collection[str]
    keep_errors: bool
    scope: Collection[str] | None
    known: Collection[str]


@dataclass(slots=True)
class News:
    """What one worker has heard of a deployment's server, for the others.

    Attributes
    ----------
    pause_s
        Seconds for which nobody is to ask; 0: no pause.
    cool_s, cause, why
        As in :class:`~infermesh.dispatch.health.Health`: seconds until the next probe; 0: it is well.
    headers
        The rate-limit headers of its last answer.
    """

    label: str
    pause_s: float = 0.0
    cool_s: float = 0.0
    cause: str = ""
    why: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Share:
    """How much of a window or of a deployment's slots a worker uses, and would use."""

    used: int
    wants: int


@dataclass(slots=True)
class Question:
    """Is there a known answer to these requests?"""

    number: int
    stage: str
    keys: Sequence[str]


@dataclass(slots=True)
class Down:
    """A call of the hub.

    Attributes
    ----------
    wait_s
        When to answer, at the latest.
    low
        Answer sooner, once fewer rows are in hand: there are more. 0: there are none now.
    ack
        The serial of the last answer whose rows are all committed.
    close
        No row of this wave comes any more.
    shares
        ("stage" or "slots", name) → the most to use from now on.
    answers
        Question's number → the known answers.
    made
        What was changed by hand since the last call: see :func:`~infermesh.runs.hands.adjust`.
    paused
        Send no request for now.
    stop, drop
        Send nothing more; wait for nothing that was sent.
    end
        The last call.
    """

    wait_s: float
    low: int = 0
    ack: int = 0
    wave: WaveStart | None = None
    rows: Sequence[SentRow] = ()
    close: bool = False
    credit: Mapping[str, Credit] = field(default_factory=dict)
    news: Sequence[News] = ()
    shares: Mapping[tuple[str, str], int] = field(default_factory=dict)
    answers: Mapping[int, Sequence[KnownAnswer | None]] = field(default_factory=dict)
    made: Sequence[tuple[str, str, Any]] = ()
    paused: bool = False
    stop: bool = False
    drop: bool = False
    end: bool = False


@dataclass(slots=True)
class Up:
    """A worker's answer.

    Attributes
    ----------
    protocol
        In the first one; empty in the others.
    rows
        Rows for the tables, in the order in which they came about.
    finished
        Row_ids that no stage is left to settle; their states are in this answer or in earlier ones.
    half_done
        Row_id → stage → how it has settled the row, of rows that are not finished and were touched since the last one.
    between
        How many of them were finished between the last answer and the call that this one answers.
    stats
        Its counts since it began.
    log
        (level, message) for ``run.log``.
    notes
        Lines for the user.
    over
        The wave's Runner has ended.
    error
        What ended it, or the worker.
    """

    serial: int
    protocol: str = ""
    rows: Sequence[Put] = ()
    finished: Sequence[int] = ()
    between: int = 0
    half_done: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    stats: RunStats | None = None
    asks: Mapping[str, Ask] = field(default_factory=dict)
    news: Sequence[News] = ()
    shares: Mapping[tuple[str, str], Share] = field(default_factory=dict)
    questions: Sequence[Question] = ()
    log: Sequence[tuple[int, str]] = ()
    notes: Sequence[str] = ()
    waits: Sequence[str] = ()
    away: Sequence[str] = ()
    unreachable: str | None = None
    over: bool = False
    error: BaseException | None = None


_TRAVELLING = (Start, WaveStart, Credit, Ask, News, Share, Question, Down, Up)


def _protocol() -> str:
    from infermesh import __version__

    shapes = [(each.__name__, [entry.name for entry in fields(each)]) for each in _TRAVELLING]
    return f"{__version__}/{hashlib.blake2b(repr(shapes).encode(), digest_size=4).hexdigest()}"


PROTOCOL = _protocol()
