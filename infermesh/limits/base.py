"""What a limit is: the declared numbers, and the interface through which dispatch asks for permission."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, get_args

from infermesh.errors import ConfigError
from infermesh.types import HeaderBucketScope

__all__ = ["DayUsage", "Grant", "Header", "Limits", "RateLimiter"]

Header = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Quotas of one deployment or account.

    Parameters
    ----------
    rpm, tpm
        Requests and tokens per minute.
    rpd, tpd
        Requests and tokens per UTC day.
    max_request_burst, max_token_burst
        Requests or tokens that may go out at once after an idle time. Unset, the load is smooth: what accrues in a
        tenth of a second or so, and at least one request. A burst comes on top of the steady rate, as in every token
        bucket: up to ``rpm + max_request_burst`` requests in the first minute.
    header_bucket_scope
        Which quota the server's rate-limit headers speak of: ``minute``, ``day``, or ``auto`` to tell from the headers.
    default_output_tokens
        Tokens to reserve for an answer whose request sets no maximum. Unset, the mean of the answers seen so far.

    Raises
    ------
    ConfigError
        A value is out of its range.
    """

    rpm: float | None = None
    tpm: float | None = None
    rpd: float | None = None
    tpd: float | None = None
    max_request_burst: float | None = None
    max_token_burst: float | None = None
    header_bucket_scope: HeaderBucketScope = "auto"
    default_output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm", "rpd", "tpd"):
            _check(name, getattr(self, name), positive=True)
        for name in ("max_request_burst", "max_token_burst"):
            _check(name, getattr(self, name), least=1)
        _check("default_output_tokens", self.default_output_tokens)
        if self.header_bucket_scope not in get_args(HeaderBucketScope):
            raise ConfigError(f"header_bucket_scope: expected auto, minute or day, got {self.header_bucket_scope!r}")

    @property
    def unlimited(self) -> bool:
        """Whether none of the four quotas is set."""
        return self.rpm is None and self.tpm is None and self.rpd is None and self.tpd is None


def _check(name: str, value: object, *, least: float = 0, positive: bool = False) -> None:
    if value is None:
        return
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least
    if not ok or (positive and value == 0):
        raise ConfigError(
            f"{name}: expected a number {'above 0' if positive else f'of at least {least}'}, got {value!r}"
        )


class DayUsage(NamedTuple):
    """What one UTC day has used of its quotas; kept by the caller, it restores the count after a restart."""

    date: dt.date
    requests: float
    tokens: float


class Grant(Protocol):
    """Permission to send one request, as the quotas reserved it. The first call ends it; later ones do nothing."""

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Book what the request really used: the unused part returns, overuse is paid by the next requests."""
        ...

    def refund(self) -> None:
        """Return the whole of it: the request never went out, or was turned away."""
        ...


class RateLimiter(Protocol):
    """Hands out permissions to send. A process-local one stands behind it today, a distributed one may tomorrow."""

    def try_acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant | None:
        """Permission for one request of this size, if it may go out at once and nobody stands in line."""
        ...

    async def acquire(self, prompt_tokens: int = 0, output_tokens: int | None = None) -> Grant:
        """Wait until one request of this size may go out.

        ``prompt_tokens`` is the caller's estimate; ``output_tokens`` the most the answer may have, ``None`` where the
        request sets no maximum.
        """
        ...

    def observe(self, header: Header) -> None:
        """Read the rate-limit headers of a reply."""
        ...

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long. Overlapping pauses do not add up: the latest end counts."""
        ...

    @property
    def paused_for(self) -> float:
        """Seconds until requests may go out again; 0 where nothing but the steady rate holds them."""
        ...

    @property
    def ready_at(self) -> float:
        """The event loop's time at which ``paused_for`` ends; 0 where nothing holds requests."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in line."""
        ...
