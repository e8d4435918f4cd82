"""What the native transport asks of an HTTP client, and how failed connections are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from infermesh.errors import APIConnectionError
from infermesh.redaction import origin
from infermesh.types import Operation

__all__ = ["CONNECT_TIMEOUT_S", "Answer", "HttpClient", "client_closed", "connection_failed"]

CONNECT_TIMEOUT_S = 30.0
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10

# What the last cause of a failed connection contains → what happened, what to check.
_CAUSES = (
    ("refused", "connection refused", "is the server running, and is the port in api_base right?"),
    ("dns error", "the host name cannot be resolved", "check the host in api_base, and the network"),
    ("lookup address", "the host name cannot be resolved", "check the host in api_base, and the network"),
    ("too many open files", "this process has no file descriptors left", "raise `ulimit -n` or lower concurrency"),
    ("certificate", "the TLS certificate was not accepted", "check the host in api_base and its certificate"),
    ("invalidcontenttype", "the TLS handshake failed", "does the server speak plain http:// on that port?"),
    ("unreachable", "the network is unreachable", "check the network and any proxy settings"),
    ("no route", "the network is unreachable", "check the network and any proxy settings"),
    ("reset", "the server reset the connection", "it may have restarted, or be out of memory: see its log"),
    ("broken pipe", "the server closed the connection", "it may have restarted, or be out of memory: see its log"),
    ("before message completed", "the server closed the connection without an answer", "see the server's log"),
    ("broke off", "the connection broke before the answer was complete", "see the server's log"),
)


class Answer(NamedTuple):
    """A complete answer: its status, its decoded body, and a case-insensitive header lookup."""

    status: int
    data: bytes
    header: Callable[[str], str | None]


class HttpClient(Protocol):
    """Connections to one endpoint, as many as there are requests in flight; idle ones are kept.

    Redirects are not followed, and each request goes out once. A cancelled request's connection is closed.
    """

    async def post(self, operation: Operation, content: bytes, timeout: float | None) -> Answer:
        """Post JSON, and wait ``timeout`` seconds at most for the whole answer.

        Raises
        ------
        RequestError
            No answer came. Any HTTP status is an answer.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection. A request in flight fails."""
        ...


def connection_failed(label: str, api_base: str, cause: str, shown: str = "") -> APIConnectionError:
    """The error for a connection that was not made, or broke.

    ``cause`` is what the client or the system says; a cause that is not known here is shown, or ``shown`` in its place.
    """
    said = cause.lower()
    unknown = (shown or cause, "check api_base")
    what, check = next(((what, check) for mark, what, check in _CAUSES if mark in said), unknown)
    return APIConnectionError(f"{label}: {origin(api_base)}: {what}: {check}", deployment=label)


def client_closed(label: str, when: str = "is") -> APIConnectionError:
    """The error for a request of a closed client."""
    return APIConnectionError(f"{label}: the client {when} closed", deployment=label, retryable=False)
