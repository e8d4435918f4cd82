"""How failed connections are told: what happened, and what to check."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import NamedTuple

from infermesh.errors import APIConnectionError, MalformedResponseError

__all__ = [
    "BROKE_OFF",
    "NO_ANSWER",
    "Cause",
    "ProxyRefusedError",
    "cause_of",
    "client_closed",
    "connection_failed",
    "no_connection",
    "too_long",
]


class Cause(NamedTuple):
    """Why there is no answer, and what a user should look at."""

    what: str
    check: str
    retryable: bool | None = None  # None: as the class of the error says


class ProxyRefusedError(Exception):
    """A proxy does not let the connection through. The text holds no secret."""


BROKE_OFF = Cause("the connection broke before the answer was complete", "see the server's log")
NO_ANSWER = Cause("the server closed the connection without an answer", "see the server's log")

_RESTARTED = "it may have restarted, or be out of memory: see its log"
_UNREACHABLE = Cause("the network is unreachable", "check the network and any proxy settings")
_NO_DESCRIPTORS = Cause("this process has no file descriptors left", "raise `ulimit -n` or lower concurrency")
_BY_TYPE: tuple[tuple[type[Exception], Cause], ...] = (
    (ConnectionRefusedError, Cause("connection refused", "is the server running, and is the port in api_base right?")),
    (ConnectionResetError, Cause("the server reset the connection", _RESTARTED)),
    (ConnectionAbortedError, Cause("the server reset the connection", _RESTARTED)),
    (BrokenPipeError, Cause("the server closed the connection", _RESTARTED)),
    (TimeoutError, Cause("the server does not react", "check that the host in api_base is up, and the network")),
    (socket.gaierror, Cause("the host name cannot be resolved", "check the host in api_base, and the network")),
)
_BY_NUMBER = {
    errno.EMFILE: _NO_DESCRIPTORS,
    errno.ENFILE: _NO_DESCRIPTORS,
    errno.ENETUNREACH: _UNREACHABLE,
    errno.ENETDOWN: _UNREACHABLE,
    errno.EHOSTUNREACH: _UNREACHABLE,
}


def cause_of(error: Exception) -> Cause:
    """What an error of the system, of the event loop or of the TLS library means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        return Cause(f"the TLS certificate was not accepted ({said})", _what_to_trust(error.verify_code), False)
    if isinstance(error, ssl.SSLError):
        said = (error.reason or "the connection ended").replace("_", " ").lower()
        return Cause(f"the TLS handshake failed ({said})", "does the server speak plain http:// on that port?")
    for kind, cause in _BY_TYPE:
        if isinstance(error, kind):
            return cause
    number = error.errno if isinstance(error, OSError) else None
    if number in _BY_NUMBER:
        return _BY_NUMBER[number]
    return Cause(os.strerror(number) if number else str(error), "check api_base")


# OpenSSL's X509_V_ERR_…, https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64


def _what_to_trust(code: int) -> str:
    if code in (_EXPIRED, _NOT_YET_VALID):
        return "the server needs a new certificate, or the clock of this machine is wrong"
    if code in (_OTHER_HOST, _OTHER_ADDRESS):
        return "it was made for another host: use that one's name in api_base"
    return (
        "if you trust who has signed it, name the file with that authority (PEM) in the deployment's ca_bundle, or in "
        "SSL_CERT_FILE or REQUESTS_CA_BUNDLE"
    )


def connection_failed(label: str, place: str, cause: Cause, *, made: bool) -> APIConnectionError:
    """The error for a connection to ``place`` that was not made, or that was ``made`` and broke.

    Who could not connect is to wait for the server. After that, the request may be what breaks the connection.
    """
    error = APIConnectionError(
        f"{label}: {place}: {cause.what}: {cause.check}", deployment=label, retryable=cause.retryable
    )
    error.connected = made
    return error


def no_connection(seconds: float) -> Cause:
    """Why there is no answer where nothing reacts to the attempt to connect: a host that is off, or a firewall."""
    return Cause(
        f"no connection within {seconds:g} s",
        "check that the host in api_base is up, the network and any firewall, and the server's load",
    )


def client_closed(label: str, when: str = "is") -> APIConnectionError:
    """The error for a request of a closed client."""
    return APIConnectionError(f"{label}: the client {when} closed", deployment=label, retryable=False)


def too_long(label: str, place: str, most: int) -> MalformedResponseError:
    """The error for an answer of more than ``most`` bytes. Another try would be as long, and cost as much."""
    return MalformedResponseError(
        f"{label}: the answer of {place} is longer than {most:,} bytes, and was not read to its end: if it is to be so "
        "long, raise max_response_bytes of the deployment; else ask for less at once",
        status_code=200,
        deployment=label,
        retryable=False,
    )
