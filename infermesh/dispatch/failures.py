"""Whom failed attempts are told to as they are made: a request may wait for hours before it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from infermesh.errors import RequestError
from infermesh.results import Attempt

__all__ = ["ON_FAILURE"]

ON_FAILURE: ContextVar[Callable[[Attempt, RequestError], None] | None] = ContextVar("ON_FAILURE", default=None)
"""Called with each failed attempt of the requests that are sent in this context, and with its error.

Attempts of parts of a request, into which one is split that failed as a whole, are not told.
"""
