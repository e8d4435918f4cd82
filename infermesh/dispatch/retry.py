"""Retry policy: which failures are worth another attempt, and after how long.

Pure: no clock, no sleep, no I/O. The dispatcher does the waiting.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from infermesh.errors import ConfigError, RequestError

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter.

    The delay after failure ``n`` (from 0) is ``min(base ** n, cap_s) + U(0, jitter_s)`` seconds. A wait that the server
    asked for (``Retry-After``), up to ``max_pause_s``, takes the place of the capped power. The jitter is added to it,
    too, so that requests turned away together do not come back together.

    Parameters
    ----------
    max_retries
        Attempts after the first; 0 sends every request once.
    base
        Base of the power, at least 1.
    cap_s
        Longest wait before jitter where the server asked for none, in seconds.
    jitter_s
        Width of the uniform jitter, in seconds.
    max_pause_s
        The longest wait that a server may ask for, in seconds. A failure that asks for a longer one is final there. For
        as long, in all, a request that is turned away (429) waits without using up its retries, counted from the last
        answer that anybody got there.
    waits_unasked
        Whether a 429 that does not say how long is waited for as one that does.
    patience_s
        Seconds for which requests wait for deployments that cannot be reached, bounded by each deployment's own
        patience; 0: they fail, as others do. The router has to be made with the same.

    Raises
    ------
    ConfigError
        A value is out of its range.
    """

    max_retries: int = 3
    base: float = 2.0
    cap_s: float = 60.0
    jitter_s: float = 0.5
    max_pause_s: float = 60.0
    waits_unasked: bool = False
    patience_s: float = math.inf

    def __post_init__(self) -> None:
        numbers = ("max_retries", "base", "cap_s", "jitter_s", "max_pause_s", "patience_s")
        for name, least in (dict.fromkeys(numbers, 0) | {"base": 1}).items():
            value = getattr(self, name)
            if not value >= least:  # also catches NaN
                raise ConfigError(f"{name}: expected a number of at least {least}, got {value!r}")

    def decide(self, error: RequestError, attempt: int, rng: random.Random) -> float | None:
        """Say how long to wait before the next attempt.

        Parameters
        ----------
        error
            The failure of this attempt.
        attempt
            Its number, 0 for the first.
        rng
            Source of the jitter.

        Returns
        -------
        float or None
            Seconds to wait. ``None`` to give up: the same request would fail again, or no attempt is left.
        """
        if not error.retryable or attempt >= self.max_retries or (error.retry_after or 0.0) > self.max_pause_s:
            return None
        return self.delay(attempt, error.retry_after, rng)

    def pause(self, turned_away: int, retry_after: float | None, rng: random.Random) -> float:
        """Seconds that the deployment rests after a 429, the ``turned_away``-th of this request, from 0.

        As long as the server asked. Where it asks for next to nothing again and again, the pauses grow all the same.
        """
        if retry_after is None:
            return self.delay(turned_away, None, rng)
        least = min(0.1 * self.base ** min(turned_away, 16), 10.0) if turned_away and retry_after < 1 else 0.0
        return max(retry_after, least) + rng.random() * self.jitter_s

    def delay(self, attempt: int, retry_after: float | None, rng: random.Random) -> float:
        """Seconds to wait after failure number ``attempt``, whether or not another attempt is left."""
        if retry_after is not None:
            wait = max(retry_after, 0.0)
        else:
            try:
                wait = min(self.base**attempt, self.cap_s)
            except OverflowError:
                wait = self.cap_s
        return wait + rng.random() * self.jitter_s
