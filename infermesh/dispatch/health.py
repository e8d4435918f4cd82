"""Which deployments are healthy: a circuit breaker for each."""

from __future__ import annotations

from typing import Literal

__all__ = ["Cause", "Health"]

Cause = Literal["", "failure", "away", "refusal"]

FAILURES_TO_COOL = 3
# Seconds until the first probe, and at most: a server that starts again should not be left waiting for long.
COOLDOWN_S: dict[Cause, float] = {"failure": 5.0, "refusal": 5.0, "away": 1.0}
LONGEST_COOLDOWN_S: dict[Cause, float] = {"failure": 60.0, "refusal": 60.0, "away": 15.0}


class Health:
    """A circuit breaker.

    Three failures in a row open it, one refusal does. Then one request is sent as a probe; a failed probe doubles the
    time to the next, up to a bound. Any success closes it. Failures are what the server is to blame for: no answer, no
    answer in time, 5xx, and answers that make no sense. A refusal speaks of the deployment and not of the request: a
    wrong key, no credit, no such model. Pure: the time is an argument.

    Attributes
    ----------
    cause
        Why it is open, or what failed last; empty after a success.
    asked_until
        Until when the server has asked for no request, by the event loop's time; 0 where it has not.
    why
        The message of the last failure.
    since
        The event loop's time of the first failure since the last success, in seconds; 0 while there is none.
    """

    __slots__ = ("asked_until", "cause", "cool_until", "cooldown_s", "failures", "probing", "since", "why")

    def __init__(self) -> None:
        self.failures = 0
        self.cooldown_s = 0.0
        self.cool_until = 0.0  # 0 while closed
        self.asked_until = 0.0
        self.probing = False
        self.cause: Cause = ""
        self.why = ""
        self.since = 0.0

    def accepts(self, now: float) -> bool:
        """Whether a request may go there: closed, or half open without a probe under way."""
        return not self.cool_until or (now >= self.cool_until and not self.probing)

    def begin(self, now: float) -> bool:
        """Note that a request is sent; returns whether it is the probe."""
        if not self.cool_until or now < self.cool_until or self.probing:
            return False
        self.probing = True
        return True

    def succeeded(self) -> None:
        """Close the circuit: the server answers."""
        self.failures, self.cooldown_s, self.cool_until, self.probing = 0, 0.0, 0.0, False
        self.cause, self.why, self.since, self.asked_until = "", "", 0.0, 0.0

    def failed(self, now: float, *, probe: bool, cause: Cause = "failure", why: str = "", asked_s: float = 0.0) -> bool:
        """Count a failure; returns whether the circuit opened.

        Failures of requests that were in flight when it opened belong to the same outage, and do not extend it. No
        probe is sent for ``asked_s`` seconds, where the server has asked for them.
        """
        self.since = self.since or now
        if probe:
            self.probing = False
        elif self.cool_until:
            return False
        self.cause, self.why = cause, why
        if not probe and cause != "refusal":
            self.failures += 1
            if self.failures < FAILURES_TO_COOL:
                return False
        self.cooldown_s = min(max(2 * self.cooldown_s, COOLDOWN_S[cause]), LONGEST_COOLDOWN_S[cause])
        self.asked_until = now + asked_s
        self.cool_until = max(now + self.cooldown_s, self.asked_until)
        return True

    def learn(self, now: float, cool_s: float, cause: Cause, why: str) -> None:
        """Open the circuit for so many seconds: another process has found the server so."""
        if not self.cool_until:
            self.since = self.since or now
            self.cause, self.why, self.failures = cause, why, FAILURES_TO_COOL
            self.cooldown_s = COOLDOWN_S[cause]
            self.cool_until = now + cool_s

    def abandoned(self, *, probe: bool) -> None:
        """Note that a request ended without news of the server."""
        if probe:
            self.probing = False
