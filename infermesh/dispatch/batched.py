"""Requests that go through a batch API: they are put into a batch, and answered once it is back.

A request that was put into one ends with :class:`~infermesh.errors.ParkedError`. Whoever sent it asks again for the
same once the batch is back, and then gets its answer here, as if it had been sent now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from infermesh.dispatch.failures import ON_FAILURE
from infermesh.dispatch.pricing import served_by
from infermesh.errors import RequestError
from infermesh.results import Attempt, RequestMetrics, TokenUsage
from infermesh.types import Reply, Request

__all__ = ["SENDER", "BatchAnswer", "Batching", "Sender", "deliver"]

T = TypeVar("T")


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
    tries
        How often the request was sent before.
    price
        US dollars of its usage; called once.
    send_again
        Puts it into another batch, and raises ``ParkedError``; ``None``: it was sent often enough.
    """

    label: str
    started_at: float
    service_s: float
    tries: int
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
        request.earlier + found.tries + 1,
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
        tier or "batch",
    )
    metrics = RequestMetrics(
        found.label, 0.0, found.service_s, max(time.time() - found.started_at, 0.0), found.tries, [attempt]
    )
    if error is None and value is not None:
        return value, metrics
    assert error is not None
    if (told := ON_FAILURE.get()) is not None:
        told(attempt, error)
    if error.retryable and found.send_again is not None:
        found.send_again()
    error.deployment, error.metrics = found.label, metrics
    raise error
