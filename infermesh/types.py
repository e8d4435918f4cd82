"""Requests, replies and the transport protocol: the values that the layers pass to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, Protocol

Endpoint = Literal["chat_completion", "text_completion", "responses"]
Operation = Literal["chat_completion", "text_completion", "responses", "embedding", "transcription", "function"]
RoutingStrategy = Literal["simple-shuffle", "least-busy", "latency-based-routing"]
TransportKind = Literal["auto", "native", "litellm"]
HeaderBucketScope = Literal["auto", "minute", "day"]


class UseClientDefault(Enum):
    """The type of ``USE_CLIENT_DEFAULT``: no timeout was given, so the client's holds.

    ``None`` cannot say that, since a timeout of ``None`` waits for ever. Use it as the default of a function of yours
    that hands a timeout on.

    Examples
    --------
    >>> from infermesh import USE_CLIENT_DEFAULT
    >>> def summarize(text, timeout=USE_CLIENT_DEFAULT):
    ...     return client.generate(f"Summarize: {text}", timeout=timeout).output_text
    >>> summarize("The parcel came late.", timeout=None)
    'The parcel came late.'
    """

    USE_CLIENT_DEFAULT = "USE_CLIENT_DEFAULT"

    def __repr__(self) -> str:
        return self.value


# One member of an enumeration, so that type checkers narrow it, and pickling and copying keep its identity.
USE_CLIENT_DEFAULT: Final = UseClientDefault.USE_CLIENT_DEFAULT
Timeout = float | None | UseClientDefault


@dataclass(slots=True)
class Audio:
    """One clip, read and ready to send."""

    data: bytes
    filename: str


@dataclass(slots=True)
class Request:
    """What dispatch sends, to whichever deployment.

    ``payload`` is the OpenAI wire body without ``model``, which belongs to the deployment. ``prompt_tokens`` is the
    estimate that token limits reserve, 0 where no limit counts tokens; ``output_tokens`` the most the answer may have.
    """

    operation: Operation
    payload: dict[str, Any]
    audio: Audio | None = None
    prompt_tokens: int = 0
    output_tokens: int | None = None
    encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)  # wire.payload_bytes' cache


@dataclass(slots=True)
class Reply:
    """A successful answer as it came: the decoded body, and a case-insensitive header lookup.

    ``status_code`` is ``None`` where a function answered instead of a server. ``data`` is the JSON that ``body`` was
    decoded from, ``None`` where there was none.
    """

    status_code: int | None
    body: dict[str, Any]
    header: Callable[[str], str | None]
    data: bytes | None = None


class Transport(Protocol):
    """The seam between infermesh and the network: one request, one answer.

    ``send`` raises :class:`~infermesh.errors.RequestError` subclasses and nothing else (besides ``CancelledError``).
    """

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request once. ``timeout`` in seconds covers it whole, ``None`` waits for ever."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
