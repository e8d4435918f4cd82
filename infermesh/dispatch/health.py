"""Which deployments are healthy: a circuit breaker for each."""

from __future__ import annotations

__all__ = ["Health"]

FAILURES_TO_COOL = 3
COOLDOWN_S = 5.0
LONGEST_COOLDOWN_S = 60.0


class Health:
    """A circuit breaker.

    Three failures in a row open it for 5 s. Then one request is sent as a probe; a failed probe doubles the time, up to
    a minute. Any success closes it. Failures are what the server is to blame for: no answer, no answer in time, 5xx,
    and answers that make no sense. Pure: the time is an argument.
    """

    __slots__ = ("cool_until", "cooldown_s", "failures", "probing")

    def __init__(self) -> None:
        self.failures = 0
        self.cooldown_s = 0.0
        self.cool_until = 0.0  # 0 while closed
        self.probing = False

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

    def failed(self, now: float, *, probe: bool) -> bool:
        """Count a failure; returns whether the circuit opened.

        Failures of requests that were in flight when it opened belong to the same outage, and do not extend it.
        """
        if probe:
            self.probing = False
        elif self.cool_until:
            return False
        else:
            self.failures += 1
            if self.failures < FAILURES_TO_COOL:
                return False
        self.cooldown_s = min(max(2 * self.cooldown_s, COOLDOWN_S), LONGEST_COOLDOWN_S)
        self.cool_until = now + self.cooldown_s
        return True

    def abandoned(self, *, probe: bool) -> None:
        """Note that a request ended without news of the server."""
        if probe:
            self.probing = False
