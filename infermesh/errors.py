"""The error tree.

::

    InfermeshError
    ├── ConfigError                  a declaration or an argument is wrong; nothing was sent
    ├── StoreError                   run.duckdb is damaged or of another version, or a query of it is wrong
    │   └── StoreInUseError          another process holds it
    └── RequestError                 one request failed: status_code, retryable, retry_after, deployment, request_id
        ├── AuthenticationError      401: the key is missing or wrong
        ├── PermissionDeniedError    403: the key may not use this model
        ├── NotFoundError            404: no such model or path
        ├── BadRequestError          400, 413, 422: the server refused the request itself
        │   ├── ContextLengthError   the prompt and the answer do not fit the model's window
        │   └── ContentFilterError   the provider's filter refused prompt or answer
        ├── RateLimitError           429                              retryable
        ├── RequestTimeoutError      408, or no answer in time        retryable
        ├── APIConnectionError       refused, reset, DNS, TLS         retryable
        ├── ServerError              500, 502, 503, 504, 529 …        retryable
        ├── MalformedResponseError   an answer that is not the protocol's   retryable
        ├── UnfinishedError          an answer without a good end, or without anything in it   retryable
        ├── InvalidAnswerError       an answer that does not satisfy the response format, where on_invalid is error
        ├── StoppedError             the caller stopped before the request was sent
        ├── FunctionError            a python stage's function raised, or returned what its columns cannot hold
        ├── InputError               the row cannot be made into a request: nothing was sent
        └── NoDeploymentError        every deployment failed; the message names each one's last failure

Every class pickles with all its fields, so that an error can cross processes. ``kind`` is its short name in the
``error_type`` columns of the result tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from infermesh.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infermesh.results import RequestMetrics, TokenUsage

__all__ = [
    "APIConnectionError",
    "AuthenticationError",
    "BadRequestError",
    "ConfigError",
    "ContentFilterError",
    "ContextLengthError",
    "FunctionError",
    "InfermeshError",
    "InputError",
    "InvalidAnswerError",
    "MalformedResponseError",
    "NoDeploymentError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestError",
    "RequestTimeoutError",
    "ServerError",
    "StoppedError",
    "StoreError",
    "StoreInUseError",
    "UnfinishedError",
]


class InfermeshError(Exception):
    """Base class of every error that infermesh raises on purpose: catch it to catch them all.

    Examples
    --------
    >>> from infermesh import InfermeshError
    >>> try:
    ...     client.generate(None)
    ... except InfermeshError as error:
    ...     print(error)
    cannot make a request from NoneType: pass a prompt (str), a list of messages, or a mapping with the endpoint's own
    fields
    """


class ConfigError(InfermeshError):
    """A declaration or an argument is wrong, and nothing was sent. The message names it, and what was expected.

    Examples
    --------
    >>> from infermesh import ConfigError, LMClient
    >>> try:
    ...     LMClient("openai/gpt-4.1-mini", timeout=0)
    ... except ConfigError as error:
    ...     print(error)
    timeout: expected a number of seconds above 0, or None to wait for ever, got 0
    """


class StoreError(InfermeshError):
    """A run's database cannot be used: it is damaged, or of another version, or a query of it is wrong."""


class StoreInUseError(StoreError):
    """Another process has the run's database open."""


class RequestError(InfermeshError):
    """One request failed, after all its attempts. The subclass says how.

    Parameters
    ----------
    message
        What happened and what to do about it. It never contains a key.
    status_code
        HTTP status. ``None``: no answer came.
    retry_after
        Seconds that the server asked to wait. ``None``: it did not ask.
    deployment
        Label of the deployment that was asked.
    request_id
        The provider's id of the request.
    retryable
        Whether the same request may succeed later; ``None`` goes by the class.

    Attributes
    ----------
    usage
        Tokens that the failed answer cost all the same, ``None`` where its body does not say.
    metrics
        Where the time went, over all attempts; ``None`` where nothing was sent.
    rewritten
        Whether the transport will send the request in another way, so that it is sent again at once and costs no retry:
        written anew after a refusal from which it has learned, or on a new connection after the end of a kept one.

    Examples
    --------
    >>> from infermesh import RequestError
    >>> try:
    ...     client.generate("Hello.", model="another")
    ... except RequestError as error:
    ...     print(error.kind, error.status_code, error.retryable)
    input None False
    """

    __slots__ = ("header",)  # what looks up the answer's headers, for the dispatcher alone: it travels with no pickle

    kind: ClassVar[str] = "request"
    default_retryable: ClassVar[bool] = False
    header: Callable[[str], str | None] | None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        retry_after: float | None = None,
        deployment: str | None = None,
        request_id: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.header = None
        self.message = message
        self.status_code = status_code
        self.retry_after = retry_after
        self.deployment = deployment
        self.request_id = request_id
        self.retryable = self.default_retryable if retryable is None else retryable
        self.rewritten = False
        self.usage: TokenUsage | None = None
        self.metrics: RequestMetrics | None = None

    def redact(self, secrets: Sequence[str]) -> None:
        """Take keys out of all that it says."""
        self.message = redact(self.message, *secrets)
        self.args = (self.message,)
        self.request_id = self.request_id and redact(self.request_id, *secrets)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__))


def _rebuild(cls: type[RequestError], message: str, state: dict[str, Any]) -> RequestError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class AuthenticationError(RequestError):
    """401: the key is missing or wrong."""

    kind = "authentication"


class PermissionDeniedError(RequestError):
    """403: the key may not do this."""

    kind = "permission"


class NotFoundError(RequestError):
    """404: the model or the path does not exist there."""

    kind = "not_found"


class BadRequestError(RequestError):
    """400, 413 or 422: the server refused the request, and would refuse it again."""

    kind = "bad_request"


class ContextLengthError(BadRequestError):
    """The prompt and the answer asked for (``max_tokens``) do not fit the model's context window."""

    kind = "context_length"


class ContentFilterError(BadRequestError):
    """The provider's content filter refused the request or the answer."""

    kind = "content_filter"


class RateLimitError(RequestError):
    """429: a quota is exceeded, for ``retry_after`` seconds where the server says how long."""

    kind = "rate_limit"
    default_retryable = True


class RequestTimeoutError(RequestError):
    """No complete answer within the timeout."""

    kind = "timeout"
    default_retryable = True


class APIConnectionError(RequestError):
    """The connection could not be made, or broke before the answer was complete.

    Attributes
    ----------
    connected
        Whether it had been made, so that the request may be what broke it.
    """

    kind = "connection"
    default_retryable = True
    connected: bool = True


class ServerError(RequestError):
    """5xx: the server failed."""

    kind = "server"
    default_retryable = True


class MalformedResponseError(RequestError):
    """The server answered 200 with something that does not follow the protocol, such as a page of HTML."""

    kind = "malformed_response"
    default_retryable = True


class UnfinishedError(RequestError):
    """The server answered, but did not bring the answer to a good end, or left it empty.

    Its finish reason says that it broke off (``error``, ``abort``, ``network_error`` …), or there is neither text nor a
    tool call. Not retryable where the reason is one that nobody knows.
    """

    kind = "unfinished"
    default_retryable = True


class InvalidAnswerError(RequestError):
    """The answer does not satisfy the response format, and ``on_invalid="error"`` asks for none that does not."""

    kind = "invalid_answer"


class StoppedError(RequestError):
    """The caller stopped before the request was sent."""

    kind = "stopped"


class ParkedError(StoppedError):
    """The request is in a batch: its row waits until the batch is back, and need not be kept in memory until then."""


class FunctionError(RequestError):
    """A python stage's function raised, took too long, or returned what its columns cannot hold."""

    kind = "function"


class InputError(RequestError):
    """The row or argument cannot be made into a request: a template, a file, a mapper. Nothing was sent."""

    kind = "input"


class NoDeploymentError(RequestError):
    """Every deployment of the model failed. ``failures`` has the message of each one's last failure, by label."""

    kind = "no_deployment"
    default_retryable = True

    def __init__(self, message: str, *, failures: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.failures = failures or {}
