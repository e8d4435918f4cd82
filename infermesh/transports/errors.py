"""Turn HTTP failures into the error tree, for both transports.

What a refusal means is told by the table of :mod:`infermesh.wire.refusals`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from infermesh.errors import NotFoundError, RateLimitError, RequestError, RequestTimeoutError, ServerError
from infermesh.exact_json import shown
from infermesh.limits.waits import wait_asked_for
from infermesh.redaction import origin, redact
from infermesh.wire.error_bodies import Said, said_by
from infermesh.wire.refusals import implied_status, meaning_of

__all__ = ["error_from_status", "error_in_body", "timed_out"]

Header = Callable[[str], str | None]

_SHOWN = 500
_SEARCHED = 20_000  # characters or bytes
_PASSING = (RateLimitError, ServerError, RequestTimeoutError)


def timed_out(label: str, timeout: float | None, phase: str = "") -> RequestTimeoutError:
    """The error of an answer that was not complete within ``timeout`` seconds."""
    within = "in time" if timeout is None else f"within {timeout:g} s"
    return RequestTimeoutError(
        f"{label}: no complete answer {within}{phase}: raise timeout, ask for fewer tokens, or lower "
        "max_parallel_requests",
        deployment=label,
    )


def error_from_status(
    status: int,
    body: Any,
    header: Header,
    label: str,
    *,
    secrets: tuple[str | None, ...] = (),
    url: str = "",
    model: str = "",
    now: Callable[[], float] = time.time,
) -> RequestError:
    """Make the error of an HTTP answer that is not a success.

    Parameters
    ----------
    status
        The HTTP status.
    body
        The body, decoded (a dict) or as it came (str, bytes).
    header
        Case-insensitive header lookup.
    label
        The deployment's label, for the message.
    secrets
        Keys that must not appear in the message.
    url, model
        What was asked, for the message of a 404.
    now
        Seconds since the epoch, for a ``Retry-After`` that is a date.
    """
    return _error(status, said_by(body), body, header, label, secrets=secrets, url=url, model=model, now=now)


def _error(
    status: int,
    found: Said,
    body: Any,
    header: Header,
    label: str,
    *,
    secrets: tuple[str | None, ...],
    url: str,
    model: str,
    now: Callable[[], float] = time.time,
    heading: str = "",
) -> RequestError:
    said = redact(found.message, *secrets)
    if len(said) > _SHOWN:
        said = said[:_SHOWN] + "…"
    wait = wait_asked_for(header, _text(body), now) if status >= 400 else None
    kind, retryable, advice = meaning_of(status, found, asked_to_wait=bool(wait))
    if kind is NotFoundError:
        where, host = _where_to_look(url, secrets), origin(url) if url else "api_base"
        advice = advice.format(model=model or "?", where=where, origin=host)
        location = header("location")
        if status < 400 and location:
            said = f"it redirects to {redact(location, *secrets)[:_SHOWN]}"
    error = kind(
        f"{label}: {heading or f'HTTP {status}'}: {said or 'no reason given'}. {advice}",
        status_code=status,
        retry_after=wait if kind in _PASSING else None,
        deployment=label,
        request_id=redact(header("x-request-id") or header("request-id") or found.request_id or "", *secrets) or None,
        retryable=retryable,
    )
    error.header = header
    return error


def _where_to_look(url: str, secrets: tuple[str | None, ...]) -> str:
    """What may be wrong with the URL that was asked; without one, nothing."""
    if not url:
        return ""
    path = url.partition("?")[0]
    shown = redact(origin(url) + urlsplit(path).path, *secrets)  # no user, no password, no query
    for name in ("/chat/completions", "/completions", "/responses", "/embeddings", "/audio/transcriptions"):
        if path.endswith(name):
            base = path.removesuffix(name)
            if base.endswith(("/chat/completions", "/completions", "/responses", "/embeddings")):
                return f" and the URL: {shown} was asked. api_base ends where {name} begins"
            hint = "" if re.search(r"/v\d", base) else " Most api_base end in /v1."
            return f" and the URL: {shown} was asked. Or the server has no {name}.{hint}"
    return f" and the URL: {shown} was asked"


def error_in_body(
    status: int,
    body: dict[str, Any],
    header: Header,
    label: str,
    *,
    secrets: tuple[str | None, ...] = (),
    url: str = "",
    model: str = "",
) -> RequestError:
    """Make the error of an HTTP success whose body is an error. Gateways send it when their upstream fails.

    Its class is that of the status it would have had elsewhere; see :func:`~infermesh.wire.refusals.implied_status`.
    """
    said = said_by(body)
    heading = f"HTTP {status} with an error in place of an answer"
    return _error(
        implied_status(said), said, body, header, label, secrets=secrets, url=url, model=model, heading=heading
    )


def _text(body: Any) -> str:
    """The beginning of an error body as text, to look for a wait in it."""
    if not isinstance(body, bytes | bytearray | memoryview | str):
        body = shown(body)
    start = body[:_SEARCHED]
    return start if isinstance(start, str) else bytes(start).decode("utf-8", "replace")
