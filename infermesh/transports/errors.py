"""Turn HTTP failures into the error tree, for both transports."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from infermesh.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
)
from infermesh.redaction import origin, redact

__all__ = ["error_from_status", "error_in_body", "retry_after_seconds", "timed_out"]

Header = Callable[[str], str | None]

_SHOWN = 500
_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)

_CONTEXT_CODES = frozenset(("context_length_exceeded", "exceed_context_size_error", "string_above_max_length"))
# How OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic, Gemini, Bedrock and Cerebras say that a prompt is too long.
_CONTEXT_MESSAGE = re.compile(
    r"maximum context length|context[ _]length[ _]exceeded|maximum model length|longer than the model'?s context"
    r"|(exceeds?|exceeded|beyond) (the )?(model'?s )?(maximum |available |configured )?"
    r"context (length|window|size|limit)"
    r"|max_model_len|prompt is too long|input is too long|input tokens exceed|exceeds the maximum number of tokens"
    r"|`?inputs`? tokens \+ `?max_new_tokens`? must be|maximum input length is \d+ tokens"
    r"|current length is \d+ while limit is",
    re.IGNORECASE,
)
_FILTER_CODES = frozenset(
    ("content_filter", "content_filter_error", "content_policy_violation", "ResponsibleAIPolicyViolation")
)
_FILTER_MESSAGE = re.compile(
    r"content management policy|content[ _]policy[ _]violation|ResponsibleAIPolicyViolation"
    r"|rejected as a result of our safety system|flagged as potentially violating",
    re.IGNORECASE,
)
_NO_CREDIT_CODES = frozenset(("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"))


def retry_after_seconds(header: Header, now: Callable[[], float] = time.time) -> float | None:
    """How long the server asks to wait, in seconds. ``None``: it does not say, or not in a way that can be read.

    Reads ``retry-after-ms`` first (OpenAI and Azure), then ``Retry-After`` as seconds or as an HTTP date (RFC 9110,
    section 10.2.3); a date in the past is 0.
    """
    if (milliseconds := _not_negative(header("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = header("retry-after")
    if value is None:
        return None
    if (seconds := _not_negative(value)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _not_negative(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None


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
    code, said, body_id = _server_message(body)
    said = redact(said, *secrets)
    if len(said) > _SHOWN:
        said = said[:_SHOWN] + "…"
    kind, retryable, advice = _classify(status, code, said)
    if kind is NotFoundError:
        advice = advice.format(model=model or "?", origin=origin(url) if url else "api_base")
        location = header("location")
        if status < 400 and location:
            said = f"it redirects to {redact(location, *secrets)[:_SHOWN]}"
    return kind(
        f"{label}: HTTP {status}: {said or 'no reason given'}. {advice}",
        status_code=status,
        retry_after=retry_after_seconds(header, now) if status >= 400 else None,
        deployment=label,
        request_id=header("x-request-id") or header("request-id") or body_id,
        retryable=retryable,
    )


def error_in_body(
    status: int, body: dict[str, Any], header: Header, label: str, *, secrets: tuple[str | None, ...] = ()
) -> RequestError:
    """Make the error of an HTTP success whose body is an error. Gateways send it when their upstream fails.

    If the body's ``code`` is an HTTP status, it counts as the status (OpenRouter). If not, the answer is malformed.
    """
    error = body["error"]
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return error_from_status(code, body, header, label, secrets=secrets)
    _, said, request_id = _server_message(body)
    return MalformedResponseError(
        f"{label}: HTTP {status} with an error in place of an answer: {redact(said, *secrets)[:_SHOWN]}",
        status_code=status,
        deployment=label,
        request_id=header("x-request-id") or request_id,
    )


_Kind = tuple[type[RequestError], bool | None, str]

_BY_STATUS: dict[int, _Kind] = {
    401: (AuthenticationError, None, "Check the deployment's key (api_key_env, or the provider's own variable)"),
    402: (PermissionDeniedError, None, "The account has no credit left: top it up, or use another deployment"),
    403: (PermissionDeniedError, None, "The key may not use this: check the account's access to the model"),
    404: (NotFoundError, None, "Check the model name {model!r} and the base URL at {origin} (most end in /v1)"),
    405: (NotFoundError, None, "Check the base URL at {origin} (most end in /v1)"),
    408: (RequestTimeoutError, None, "The server gave up waiting"),
    409: (BadRequestError, True, "The server was busy with something that conflicts: trying again may help"),
    413: (BadRequestError, None, "The request is larger than the server accepts: shorten the input"),
    425: (BadRequestError, True, "The server was not ready for the request: trying again may help"),
    429: (RateLimitError, None, "Over a quota of the server: lower rpm, tpm or max_parallel_requests"),
}


def _classify(status: int, code: str, said: str) -> _Kind:
    if status >= 500:
        return ServerError, None, "The server failed: see its log, or try again later"
    if status < 400:
        return NotFoundError, None, "Redirects are not followed: set api_base to where the API is ({origin} is not)"
    if status in (400, 413, 422):
        if code in _CONTEXT_CODES or _CONTEXT_MESSAGE.search(said):
            return ContextLengthError, None, "Shorten the prompt, or ask for fewer tokens (max_tokens)"
        if code in _FILTER_CODES or _FILTER_MESSAGE.search(said):
            return ContentFilterError, None, "The provider's content filter refused the prompt: change it"
    elif status == 429 and code in _NO_CREDIT_CODES:
        return RateLimitError, False, "The account's quota is used up: check its plan and billing"
    return _BY_STATUS.get(status) or (
        BadRequestError,
        None,
        "Check the request's parameters against what the model takes",
    )


def _server_message(body: Any) -> tuple[str, str, str | None]:
    """The error's code, its message and the request's id, from an error body of any of the usual shapes."""
    if isinstance(body, bytes | bytearray | memoryview):
        body = bytes(body).decode("utf-8", "replace")
    if isinstance(body, str):
        text = body.strip()
        if not text.startswith(("{", "[")):
            return "", _one_line(text), None
        try:
            body = orjson.loads(text)
        except ValueError:
            return "", _one_line(text), None
    if isinstance(body, list) and len(body) == 1:  # Gemini puts its error into a list
        body = body[0]
    if not isinstance(body, dict):
        return "", _one_line(str(body or "")), None
    raw = body.get("error")
    error: dict[str, Any] = raw if isinstance(raw, dict) else body
    message = raw if isinstance(raw, str) else error.get("message") or body.get("message") or body.get("detail")
    codes = [str(error[name]) for name in ("code", "type", "error_type", "status") if error.get(name)]
    inner = error.get("innererror")  # where Azure says which filter it was
    if isinstance(inner, dict) and inner.get("code"):
        codes.append(str(inner["code"]))
    known = [code for code in codes if code in _CONTEXT_CODES | _FILTER_CODES | _NO_CREDIT_CODES]
    request_id = body.get("request_id") or body.get("id")
    if not message:
        message = orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    elif not isinstance(message, str):
        message = _detail(message)
    return (known or codes or [""])[0], _one_line(message), request_id if isinstance(request_id, str) else None


def _detail(value: Any) -> str:
    """FastAPI's validation errors: a list of {loc, msg}."""
    if isinstance(value, list) and all(isinstance(item, dict) and "msg" in item for item in value):
        return "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item['msg']}" for item in value)
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _one_line(text: str) -> str:
    """A text on one line; of an HTML page, its title."""
    if text[:200].lstrip().lower().startswith(("<!doctype", "<html", "<head")) and (title := _HTML_TITLE.search(text)):
        text = title[1]
    return " ".join(text[:4000].split()).rstrip(".")
