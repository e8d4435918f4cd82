"""What a failure speaks of: the request, the deployment, or a server that is not there.

It decides who is asked next. A request that is wrong is wrong everywhere. A deployment that refuses everybody (no key,
no credit, no such model) says nothing about the request, which goes to another one (BerriAI/litellm#40014). A server
that cannot be reached is waited for.
"""

from __future__ import annotations

from typing import Literal

from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    ContextLengthError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)

__all__ = ["Blame", "blame", "is_unconnected"]

Blame = Literal["request", "window", "refusal", "away", "failure", "quota"]

_PASSING = (RateLimitError, ServerError, RequestTimeoutError)
_REFUSALS = (AuthenticationError, PermissionDeniedError, NotFoundError)
# What a proxy says of a server that is not there, and a server of a model that is still loading: RFC 9110, 15.6, and
# llama.cpp's and TGI's 503; 521 to 523 are Cloudflare's.
_AWAY = frozenset((502, 503, 504, 521, 522, 523))


def blame(error: RequestError, max_pause_s: float) -> Blame:
    """What the failure of one attempt speaks of.

    Parameters
    ----------
    error
        The failure.
    max_pause_s
        The longest wait that a deployment may ask for, in seconds. One that asks for longer refuses.

    Returns
    -------
    str
        ``refusal``: this deployment serves nobody. ``window``: it may be too small for this request. ``quota``: later.
        ``away``: there is no server, or it has no model yet. ``failure``: the server failed. ``request``: the rest.
    """
    if error.rewritten:  # the transport knows what to do about it
        return "request"
    if isinstance(error, ContextLengthError):
        return "window"
    if error.retryable and isinstance(error, _PASSING) and (error.retry_after or 0.0) > max_pause_s:
        return "refusal"
    if isinstance(error, RateLimitError):
        return "quota" if error.retryable else "refusal"  # the credit is used up
    if isinstance(error, _REFUSALS):
        return "refusal"
    if isinstance(error, ServerError) and error.status_code in _AWAY and error.retryable:
        return "away"
    if isinstance(error, APIConnectionError):
        return "away" if error.retryable else "refusal"  # a certificate that is not trusted
    if isinstance(error, MalformedResponseError):
        return "failure" if error.retryable else "request"  # an answer that is too long
    if isinstance(error, ServerError | RequestTimeoutError):
        return "failure"
    return "request"


def is_unconnected(error: RequestError) -> bool:
    """Whether there was no connection to the server at all: the request itself cannot be the reason."""
    return isinstance(error, APIConnectionError) and not error.connected
