"""Requests that go through a batch API: they are put into a batch, and answered once it is back.

A request that was put into one ends with :class:`~infermesh.errors.ParkedError`. Whoever sent it asks again for the
same once the batch is back, and then gets its answer here, as if it had been sent now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from infermesh.dispatch.failures import ON_FAILURE
from infermesh.dispatch.pricing import served_by
from infermesh.errors import RequestError
from infermesh.results import Attempt, RequestMetrics, TokenUsage
from infermesh.types import Reply, Request

__all__ = ["SENDER", "BatchAnswer", "Batching", "Sender", "deliver", "failed_line"]

T = TypeVar("T")
_TIER = "batch"


@dataclass(slots=True)
class Sender:
    """The row that the present task sends requests for.

    Attributes
    ----------
    again
        Whether it has come back with a batch.
    requests
        How many of its requests have been looked up.
    """

    stage: str
    row_id: int
    again: bool = False
    requests: int = 0


SENDER: ContextVar[Sender | None] = ContextVar("SENDER", default=None)


@dataclass(slots=True)
class BatchAnswer:
    """What a batch brought back for a request: a reply, or else an error.

    Attributes
    ----------
    label
        The deployment's.
    started_at
        When the batch was submitted, in seconds since the epoch.
    service_s
        Seconds until it was back.
    before
        The lines by which the same was sent before and that failed, with their errors.
    price
        US dollars of its usage; called once.
    send_again
        Puts it into another batch, and raises ``ParkedError``; ``None``: it was sent often enough.
    """

    label: str
    started_at: float
    service_s: float
    before: Sequence[tuple[Attempt, RequestError]]
    price: Callable[[TokenUsage], float | None]
    reply: Reply | None
    error: RequestError | None
    send_again: Callable[[], NoReturn] | None


class Batching(Protocol):
    """Takes the requests of one model."""

    def take(self, request: Request) -> BatchAnswer | None:
        """The answer to a request, if a batch has brought it. ``None``: it is to be sent live.

        Raises
        ------
        ParkedError
            It is in a batch now, or was already.
        RequestError
            It is in none, and is not to be sent.
        """
        ...


def deliver(
    found: BatchAnswer, request: Request, parse: Callable[[Reply], tuple[T, TokenUsage | None]]
) -> tuple[T, RequestMetrics]:
    """Hand over what a batch has brought, as an answer that has just come. Raises ``RequestError``."""
    value: T | None = None
    usage: TokenUsage | None = None
    error, status = found.error, 200
    if found.reply is not None:
        try:
            value, usage = parse(found.reply)
        except RequestError as failure:
            error, usage = failure, failure.usage
    if error is not None:
        status = error.status_code or 200 if found.reply is not None else error.status_code  # type: ignore[assignment]
    prompt = completion = cost = tier = None
    if usage is not None:
        prompt, completion, tier = usage.prompt_tokens, usage.completion_tokens, served_by(usage)
        cost = found.price(usage)
    attempt = Attempt(
        request.earlier + len(found.before) + 1,
        found.label,
        found.started_at,
        0.0,
        found.service_s,
        status,
        None if error is None else error.kind,
        prompt,
        completion,
        cost,
        request.rows,
        tier or _TIER,
    )
    if error is not None and error.retryable and found.send_again is not None:
        found.send_again()
    attempts = [*(each for each, _ in found.before), attempt]
    metrics = RequestMetrics(
        found.label, 0.0, found.service_s, max(time.time() - attempts[0].started_at, 0.0), len(found.before), attempts
    )
    told = ON_FAILURE.get()
    if told is not None:
        for each, its_error in found.before:
            told(each, its_error)
    if error is None and value is not None:
        return value, metrics
    assert error is not None
    if told is not None:
        told(attempt, error)
    error.deployment, error.metrics = found.label, metrics
    raise error


def failed_line(number: int, label: str, started_at: float, service_s: float, error: RequestError) -> Attempt:
    """The attempt of a line that failed, and was sent again."""
    return Attempt(number, label, started_at, 0.0, service_s, error.status_code, error.kind, service_tier=_TIER)
