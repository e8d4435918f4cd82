"""What a doctor says of one thing, and a way to look at many things at once, each within a bound."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from infermesh.hints import one_line
from infermesh.redaction import redact
from infermesh.runtime.guarded import start_thread

State = Literal["ok", "warn", "fail"]
_NAME = "doctor"
Probe = Callable[[], Iterable["Finding"]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    about
        What: ``python``, ``disk``, ``deployment gpu-0``.
    state
        ``ok``; ``warn``: a run works, perhaps not as meant; ``fail``: it does not.
    words
        What was found.
    do
        What to do about it; empty for ``ok``.
    """

    about: str
    state: State
    words: str
    do: str = ""


def waits_still() -> bool:
    """Whether a probe was left behind: the process is then to end without it."""
    return any(thread.name == _NAME for thread in threading.enumerate())


def together(probes: Sequence[tuple[str, Probe, float]]) -> list[Finding]:
    """The findings of all probes, in their order. They run at once, each in a thread of its own.

    One that has not ended within its bound (seconds) is left behind, and that is the finding: a mount whose server is
    gone, or a name server that does not answer, holds up a thread for minutes, and nothing ends it.
    """
    found: list[list[Finding] | None] = [None] * len(probes)

    def look(index: int, about: str, probe: Probe) -> None:
        try:
            found[index] = list(probe())
        except Exception as error:
            words = redact(one_line(error, 300)) or type(error).__name__
            found[index] = [Finding(about, "warn", f"could not be looked at: {words}", "look at it by hand")]

    threads = [
        start_thread(_NAME, partial(look, index, about, probe)) for index, (about, probe, _) in enumerate(probes)
    ]
    begun = time.monotonic()
    for thread, (_, _, bound) in zip(threads, probes, strict=True):
        with contextlib.suppress(RuntimeError):
            thread.join(max(begun + bound - time.monotonic(), 0.0))
    listed: list[Finding] = []
    for findings, (about, _, bound) in zip(found, probes, strict=True):
        listed += findings or (
            [Finding(about, "fail", f"no answer within {bound:g} s", "what it waits for does not react: see to that")]
            if findings is None
            else []
        )
    return listed
