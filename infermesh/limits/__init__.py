"""Client-side rate limits: requests and tokens per minute and per day.

The load is smooth, requests pass in the order in which they came, and the server's rate-limit headers are obeyed.
:class:`RateLimiter` is the interface; :class:`LocalRateLimiter` implements it within one process.
"""

from infermesh.limits.base import DayUsage, Grant, HeldError, Patience, RateLimiter
from infermesh.limits.bucket import steady_rate
from infermesh.limits.composite import CompositeLimiter, OpenLimiter, make_limiter
from infermesh.limits.local import LocalRateLimiter
from infermesh.types import Limits

__all__ = [
    "CompositeLimiter",
    "DayUsage",
    "Grant",
    "HeldError",
    "Limits",
    "LocalRateLimiter",
    "OpenLimiter",
    "Patience",
    "RateLimiter",
    "make_limiter",
    "steady_rate",
]
