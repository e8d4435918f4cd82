"""Turn HTTP failures into the error tree, for both transports: what each status, code and wording means.

The wordings are those of OpenAI, Azure, vLLM, SGLang, TGI, TEI, llama.cpp, LM Studio, Ollama, Anthropic, Gemini,
Bedrock, Cohere, Mistral, DeepSeek, xAI, Groq, Together, Fireworks, OpenRouter, Alibaba and LiteLLM's proxy, from their
documentation, their sources and public reports (vectorize-io/hindsight#4165 has vLLM's; Groq's "Error codes" has 498
and ``json_validate_failed``; Anthropic's and DeepSeek's "Errors" their credit).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import orjson

from infermesh.errors import (
    APIConnectionError,
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
    UnfinishedError,
)
from infermesh.limits.waits import wait_asked_for
from infermesh.redaction import origin, redact

__all__ = ["error_from_status", "error_in_body", "timed_out"]

Header = Callable[[str], str | None]

_SHOWN = 500
_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_CONTEXT_CODES = frozenset(("context_length_exceeded", "exceed_context_size_error", "string_above_max_length"))
_CONTEXT = _words(
    r"maximum context length|context[ _]length[ _]exceeded|maximum model length|longer than the model'?s context",
    r"(exceeds?|exceeded|beyond) (the )?(model'?s )?(maximum |available |configured )?"
    r"context (length|window|size|limit)",
    r"context window exceeds",
    r"context length is only \d+|maximum input length (is|of) \d+ tokens|maximum prompt length is",
    r"must have less than \d+ tokens|greater than the context length|with a larger context length",
    r"too many tokens|number of tokens in the prompt cannot exceed|max_model_len",
    r"(prompt|input)( is)? too (long|large)|input tokens exceed|exceeds the maximum number of tokens",
    r"input is too large to process|`?inputs`? tokens \+ `?max_new_tokens`? must be",
    r"reduce the length of the (input )?(prompt|messages|text)|current length is \d+ while limit is",
)
# A request that no minute of the quota can hold: it is as large in the next one (OpenAI, Groq).
_TOO_LARGE_FOR_QUOTA = _words(
    r"request too large for", r"(tokens must be|please) reduced? (in order to|your message size)"
)
_FILTER_CODES = frozenset(
    ("content_filter", "content_filter_error", "content_policy_violation", "ResponsibleAIPolicyViolation",
     "data_inspection_failed", "DataInspectionFailed")
)  # fmt: skip
_FILTER = _words(
    r"content management policy|content[ _]policy[ _]violation|ResponsibleAIPolicyViolation",
    r"rejected as a result of our safety system|flagged as potentially violating|requires moderation|was flagged",
    r"content exists risk|inappropriate content|violat\w+ (our|the) (usage|content|safety) polic",
)
_NO_CREDIT_CODES = frozenset(
    ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance", "Arrearage")
)
_NO_CREDIT = _words(
    r"credit balance is too low|insufficient (account )?(balance|credits?|funds)|no credit|out of credits",
    r"reached your specified (api )?usage limit|billing hard limit|exceeded your (monthly|prepaid)|spending limit",
)
_KEY_CODES = frozenset(("API_KEY_INVALID", "invalid_api_key", "authentication_error"))
_KEY = _words(r"api key (not valid|expired|not found)|(invalid|incorrect|missing|no) api[ _-]?key|api_key_invalid")
_MODEL_CODES = frozenset(("model_not_found", "model_decommissioned", "DeploymentNotFound", "ModelNotFound"))
_MODEL = _words(
    r"(invalid|unknown|no such) model\b|is not a valid model|no models? (is |are )?(loaded|found)",
    r"\bmodel\b[^.]{0,120}\b(does not exist|not found|not exist|decommissioned|is not available|not loaded)",
)
# The model's own output broke the rules of the request: the next draw may not (Groq's "Error codes").
_DICE_CODES = frozenset(("json_validate_failed", "tool_use_failed", "output_parse_failed", "json_generation_failed"))
_DICE = _words(
    r"failed to (generate|validate) json|failed to call a function|malformed function call",
    r"(could not|failed to) parse (the )?(tool call|model output|generated)",
)
_ALL_CODES = _CONTEXT_CODES | _FILTER_CODES | _NO_CREDIT_CODES | _KEY_CODES | _MODEL_CODES | _DICE_CODES


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
    whole = said
    said = redact(said, *secrets)
    if len(said) > _SHOWN:
        said = said[:_SHOWN] + "…"
    kind, retryable, advice = _classify(status, code, whole)
    if kind is NotFoundError:
        where, host = _where_to_look(url, secrets), origin(url) if url else "api_base"
        advice = advice.format(model=model or "?", where=where, origin=host)
        location = header("location")
        if status < 400 and location:
            said = f"it redirects to {redact(location, *secrets)[:_SHOWN]}"
    waits = status >= 400 and (kind is RateLimitError or status >= 498 or status == 408)
    error = kind(
        f"{label}: HTTP {status}: {said or 'no reason given'}. {advice}",
        status_code=status,
        retry_after=wait_asked_for(header, _text(body), now) if waits else None,
        deployment=label,
        request_id=header("x-request-id") or header("request-id") or body_id,
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

_NO_CREDIT_ADVICE = "The account has no credit left: top it up, or use another deployment"
_NOT_FOUND = "Check the model name {model!r}{where}"
_BY_STATUS: dict[int, _Kind] = {
    401: (AuthenticationError, None, "Check the deployment's key (api_key_env, or the provider's own variable)"),
    402: (PermissionDeniedError, None, _NO_CREDIT_ADVICE),
    403: (PermissionDeniedError, None, "The key may not use this: check the account's access to the model"),
    404: (NotFoundError, None, _NOT_FOUND),
    405: (NotFoundError, None, _NOT_FOUND),
    407: (APIConnectionError, False, "The proxy wants a name and a password: put them into HTTPS_PROXY or HTTP_PROXY"),
    408: (RequestTimeoutError, None, "The server gave up waiting"),
    409: (BadRequestError, True, "The server was busy with something that conflicts: trying again may help"),
    413: (BadRequestError, None, "The request is larger than the server accepts: shorten the input"),
    425: (BadRequestError, True, "The server was not ready for the request: trying again may help"),
    429: (RateLimitError, None, "Over a quota of the server: lower rpm, tpm or max_parallel_requests"),
    498: (ServerError, None, "The server has no capacity now"),
    501: (ServerError, False, "The server does not offer this, or not as it was started"),
}
_CONTEXT_KIND: _Kind = (ContextLengthError, None, "Shorten the prompt, or ask for fewer tokens (max_tokens)")
_FILTER_KIND: _Kind = (ContentFilterError, None, "The provider's content filter refused the prompt: change it")


def _classify(status: int, code: str, said: str) -> _Kind:
    """The class of a failure, whether it is worth another try (``None``: as the class says), and what to do."""
    if status < 400:
        return NotFoundError, None, "Redirects are not followed: set api_base to where the API is ({origin} is not)"
    if status in (400, 403, 404, 413, 422, 500):
        if code in _CONTEXT_CODES or _CONTEXT.search(said):
            return _CONTEXT_KIND
        if status < 500 and (code in _FILTER_CODES or _FILTER.search(said)):
            return _FILTER_KIND
    if status in (400, 422):
        if code in _DICE_CODES or _DICE.search(said):
            return UnfinishedError, True, "The model's output was not what the request asks for: it is drawn again"
        if code in _NO_CREDIT_CODES or _NO_CREDIT.search(said):
            return PermissionDeniedError, None, _NO_CREDIT_ADVICE
        if code in _KEY_CODES or _KEY.search(said):
            return _BY_STATUS[401]
        if code in _MODEL_CODES or _MODEL.search(said):
            return _BY_STATUS[404]
    if status == 403 and (code in _NO_CREDIT_CODES or _NO_CREDIT.search(said)):
        return PermissionDeniedError, None, _NO_CREDIT_ADVICE
    if status == 429:
        if code in _NO_CREDIT_CODES:
            return RateLimitError, False, "The account's quota is used up: check its plan and billing"
        if _TOO_LARGE_FOR_QUOTA.search(said):
            return ContextLengthError, None, "No minute of the quota holds the request: shorten it, or raise the quota"
    if (known := _BY_STATUS.get(status)) is not None:
        return known
    if status >= 500:
        return ServerError, None, "The server failed: see its log, or try again later"
    return BadRequestError, None, "Check the request's parameters against what the model takes"


def _text(body: Any) -> str:
    """An error body as text, to look for a wait in it."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body[:20_000]).decode("utf-8", "replace")
    return body if isinstance(body, str) else orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


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
    detail = body.get("detail")  # FastAPI wraps what its handlers raise
    if isinstance(detail, dict) and (detail.get("error") or detail.get("message")):
        body = {**body, **detail}
    raw = body.get("error")
    error: dict[str, Any] = raw if isinstance(raw, dict) else body
    message = raw if isinstance(raw, str) else _first_message(error) or _first_message(body)
    codes = [str(error[name]) for name in ("code", "type", "error_type", "status", "reason") if error.get(name)]
    codes += [str(item["reason"]) for item in error.get("details") or () if isinstance(item, dict) and "reason" in item]
    metadata = error.get("metadata")  # where OpenRouter says what the provider said
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str) and isinstance(message, str):
        message = f"{message}: {metadata['raw']}"
    inner = error.get("innererror")  # where Azure says which filter it was
    if isinstance(inner, dict) and inner.get("code"):
        codes.append(str(inner["code"]))
    known = [code for code in codes if code in _ALL_CODES]
    request_id = body.get("request_id") or body.get("id")
    if not message:
        message = orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    elif not isinstance(message, str):
        message = _detail(message)
    return (known or codes or [""])[0], _one_line(message), request_id if isinstance(request_id, str) else None


def _first_message(holder: dict[str, Any]) -> Any:
    """What a body says, under whichever name; of a list of errors, the first."""
    for name in ("message", "detail", "msg", "Message", "error_message"):
        if holder.get(name):
            return holder[name]
    several = holder.get("errors")
    if isinstance(several, list) and several:
        return _first_message(several[0]) if isinstance(several[0], dict) else str(several[0])
    return None


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
