"""Quotas of requests and tokens a minute, enforced strictly."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from infermesh.simulator.errors import ApiError

__all__ = ["Quota", "Window", "format_duration"]

WINDOW_S = 60.0


def format_duration(seconds: float) -> str:
    """Write a duration as OpenAI's headers do: `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    milliseconds = math.ceil(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    written = f"{rest / 1000:g}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        written = f"{hours}h{minutes}m{written}" if hours else f"{minutes}m{written}"
    return written


class Window:
    """A sliding window: no 60 seconds, wherever they start, contain more than the limit.

    A token bucket would let up to twice the limit through in its first minute. A client that paces itself well must
    pass the strictest rule.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._entries: deque[tuple[float, int]] = deque()

    def expire(self, now: float) -> None:
        """Forget what is 60 seconds old or older."""
        while self._entries and self._entries[0][0] <= now - WINDOW_S:
            self.used -= self._entries.popleft()[1]

    def add(self, now: float, amount: int) -> None:
        """Charge an amount for which `wait` has returned 0."""
        self.used += amount
        self._entries.append((now, amount))

    def wait(self, now: float, amount: int) -> float:
        """Return the seconds until the amount is free: 0 for now, infinity if it is above the limit."""
        over = self.used + amount - self.limit
        if over <= 0:
            return 0.0
        for at, spent in self._entries:
            over -= spent
            if over <= 0:
                return at + WINDOW_S - now
        return math.inf

    def reset_s(self, now: float) -> float:
        """Return the seconds until nothing is used, which OpenAI's reset headers contain."""
        return self._entries[-1][0] + WINDOW_S - now if self._entries else 0.0


class Quota:
    """The service's `rpm` and `tpm`, over all endpoints and models.

    Parameters
    ----------
    rpm, tpm
        Requests and tokens in any 60 seconds. None: no limit. A request is charged all tokens of its usage when it is
        admitted; one that is refused is not charged.
    clock
        Monotonic seconds.
    """

    def __init__(self, rpm: int | None, tpm: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._windows = {
            name: Window(limit) for name, limit in (("requests", rpm), ("tokens", tpm)) if limit is not None
        }
        self._clock = clock

    def admit(self, tokens: int) -> dict[str, str]:
        """Charge a request and return the `x-ratelimit` headers of its answer.

        Raises
        ------
        ApiError
            429, with Retry-After unless the request alone is above the limit and can never pass.
        """
        if not self._windows:
            return {}
        now = self._clock()
        waits = {}
        for name, window in self._windows.items():
            window.expire(now)
            waits[name] = window.wait(now, self._amount(name, tokens))
        if any(waits.values()):
            raise self._refusal(waits, tokens, now)
        for name, window in self._windows.items():
            window.add(now, self._amount(name, tokens))
        return self._headers(now)

    @staticmethod
    def _amount(name: str, tokens: int) -> int:
        return tokens if name == "tokens" else 1

    def _refusal(self, waits: dict[str, float], tokens: int, now: float) -> ApiError:
        name = max(waits, key=lambda key: waits[key])
        window, wait = self._windows[name], waits[name]
        headers = self._headers(now)
        unit = "RPM" if name == "requests" else "TPM"
        message = (
            f"Rate limit reached on {name} per min ({unit}): Limit {window.limit}, Used {window.used}, "
            f"Requested {self._amount(name, tokens)}."
        )
        if math.isfinite(wait):
            # Retry-After has whole seconds (RFC 9110). OpenAI sends the exact wait beside it.
            headers |= {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
            message += f" Please try again in {format_duration(wait)}."
        return ApiError(429, message, kind=name, code="rate_limit_exceeded", headers=headers)

    def _headers(self, now: float) -> dict[str, str]:
        headers = {}
        for name, window in self._windows.items():
            headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(window.limit - window.used)
            headers[f"x-ratelimit-reset-{name}"] = format_duration(window.reset_s(now))
        return headers
