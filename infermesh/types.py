"""The values that layers pass to each other: limits, requests and replies, and the protocol of a transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cache, partial
from math import inf
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, get_type_hints

from annotated_types import Ge, Interval

from infermesh.errors import ConfigError

Endpoint = Literal["chat_completion", "text_completion", "responses"]
Operation = Literal["chat_completion", "text_completion", "responses", "embedding", "transcription", "function"]
RoutingStrategy = Literal["simple-shuffle", "least-busy", "latency-based-routing"]
TransportKind = Literal["auto", "native", "litellm"]
HeaderBucketScope = Literal["auto", "minute", "day"]


class UseClientDefault(Enum):
    """The type of ``USE_CLIENT_DEFAULT``: nothing was given, so the client's value holds.

    ``None`` cannot say that: a timeout of ``None`` waits for ever, and ``max_transcription_bytes=None`` sends any clip.
    Use it as the default of a function of yours that hands one of them on.

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
MaxBytes = int | None | UseClientDefault


_Quota = Annotated[float | None, Interval(gt=0, lt=inf)]
_Burst = Annotated[float | None, Interval(ge=1, lt=inf)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a provider's account or a server allows.

    The one declaration of the limits: the schema of configs, the command line and the estimates take names, types,
    ranges and descriptions from here. A signature that has to spell them out is held to this class by a test.

    Parameters
    ----------
    rpm, tpm, rpd, tpd
        Requests and tokens per minute, and per UTC day. ``None``: no quota.
    max_request_burst, max_token_burst
        Requests or tokens that may go out at once after an idle time. ``None``: the load is smooth, what accrues in a
        twentieth of a second or so, and at least one request. A burst comes on top of the steady rate, as in every
        token bucket: up to ``rpm + max_request_burst`` requests in the first minute.
    header_bucket_scope
        Which quota the server's rate-limit headers speak of: ``minute``, ``day``, or ``auto`` to tell from the headers.
    default_output_tokens
        Tokens to reserve for an answer whose request sets no maximum. ``None``: the mean of the answers so far.

    Raises
    ------
    ConfigError
        A value is of another type, or out of its range.

    Examples
    --------
    >>> from infermesh.types import Limits
    >>> Limits(rpm=500, tpm=100_000).counts_tokens
    True
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    rpm: _Quota = field(default=None, metadata={"description": "Requests a minute"})
    tpm: _Quota = field(default=None, metadata={"description": "Tokens a minute, prompt and answer"})
    rpd: _Quota = field(default=None, metadata={"description": "Requests a day (UTC)"})
    tpd: _Quota = field(default=None, metadata={"description": "Tokens a day (UTC)"})
    max_request_burst: _Burst = field(
        default=None, metadata={"description": "Requests that may go at once; else the load is smooth"}
    )
    max_token_burst: _Burst = field(
        default=None, metadata={"description": "Tokens that may go at once; else the load is smooth"}
    )
    header_bucket_scope: HeaderBucketScope = field(
        default="auto", metadata={"description": "Which limit the server's x-ratelimit-* headers speak of"}
    )
    default_output_tokens: Annotated[int | None, Ge(0)] = field(
        default=None,
        metadata={
            "description": "Answer tokens to reserve where a request has no max_tokens; else the mean of the answers"
        },
    )

    def __post_init__(self) -> None:
        for name, check in _checks().items():
            check(name, getattr(self, name))

    @property
    def unlimited(self) -> bool:
        """Whether none of the four quotas is set."""
        return self.rpm is None and self.tpm is None and self.rpd is None and self.tpd is None

    @property
    def counts_tokens(self) -> bool:
        """Whether a quota counts tokens, so that each request's must be estimated before it is sent."""
        return self.tpm is not None or self.tpd is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits(Limits):
    """The limits of an account that several deployments share.

    Parameters
    ----------
    shared
        Other runs and clients of this user on this machine use the account too, and all of them together keep to it.
    """

    shared: bool = field(
        default=False, metadata={"description": "Kept together with other runs and clients of this machine"}
    )


LIMITS = {each.name: each.metadata["description"] for each in fields(Limits)}
"""The names of all limits, and what each is."""


@cache
def _checks() -> dict[str, Callable[[str, Any], None]]:
    """Name → what raises ``ConfigError`` for a value that is not allowed."""
    from pydantic import TypeAdapter, ValidationError  # 0.2 s, which the command line's help need not wait for

    def check(adapter: TypeAdapter[Any], name: str, value: Any) -> None:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ConfigError(f"{name}: {message[0].lower()}{message[1:]} (got {value!r})") from None

    hints = get_type_hints(Limits, include_extras=True)
    return {name: partial(check, TypeAdapter(hints[name])) for name in LIMITS}


@dataclass(slots=True)
class Audio:
    """One clip, ready to send."""

    data: bytes
    filename: str


@dataclass(slots=True)
class Request:
    """One request, before it is known which deployment will get it.

    Attributes
    ----------
    payload
        The body in OpenAI's wire format, without ``model``: its name depends on the deployment.
    audio
        The clip of a transcription.
    prompt_tokens
        The estimate that token limits reserve; 0 if no limit counts tokens.
    output_tokens
        The most tokens that the answer may have. ``None``: the request sets no maximum.
    rows
        How many inputs it carries.
    earlier
        How many attempts were made before for the same answer, which counts them on.
    fresh
        Whether it is to go out on a new connection, since it was lost on one that had been kept.
    """

    operation: Operation
    payload: dict[str, Any]
    audio: Audio | None = None
    prompt_tokens: int = 0
    output_tokens: int | None = None
    rows: int = 1
    earlier: int = 0
    fresh: bool = field(default=False, init=False, compare=False)
    encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)  # cache of wire.payload_bytes


@dataclass(slots=True)
class Reply:
    """A successful answer as it arrived.

    Attributes
    ----------
    status_code
        ``None``: a python stage's function answered, not a server.
    body
        The decoded JSON.
    header
        Case-insensitive lookup of a header.
    data
        The JSON that ``body`` was decoded from, if there is one.
    secrets
        The deployment's keys, to be kept out of messages that quote the answer.
    """

    status_code: int | None
    body: dict[str, Any]
    header: Callable[[str], str | None]
    data: bytes | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


class Transport(Protocol):
    """The seam to the network. To add one, implement these two methods."""

    async def send(self, request: Request, timeout: float | None) -> Reply:
        """Send one request, once.

        Parameters
        ----------
        timeout
            Seconds for the whole request. ``None`` waits for ever.

        Raises
        ------
        RequestError
            A subclass of it, and nothing else but ``CancelledError``: no foreign exception leaves a transport.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
