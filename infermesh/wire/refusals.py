"""What a refusal means, by its status, its codes and its words: one table for all places where a server says no. Pure.

The wordings are those of OpenAI, Azure, vLLM, SGLang, TGI, TEI, llama.cpp, LM Studio, Ollama, NIM, Anthropic, Gemini
and Vertex AI, Bedrock, Cohere, Mistral, Moonshot, Zhipu, DeepSeek, xAI, Groq, Cerebras, Together, Fireworks,
OpenRouter, Alibaba, watsonx, Jina, GitHub Models, Hugging Face, new-api and LiteLLM's proxy, from their documentation,
their sources and public reports (vectorize-io/hindsight#4165 has vLLM's; Groq's "Error codes" has 498 and
``json_validate_failed``; Anthropic's and DeepSeek's "Errors" their credit; BigModel's "Error codes" has 1113 and 1301).

A rule's codes are looked at before any words: a code is meant for programs. Where several rules fit, the first counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infermesh.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    UnfinishedError,
)
from infermesh.wire.error_bodies import Said

__all__ = ["Meaning", "implied_status", "meaning_of"]


class Meaning(NamedTuple):
    """The class of a failure, whether it is worth another try (``None``: as the class says), and what to do.

    The advice of a :class:`NotFoundError` has the fields ``model``, ``where`` and ``origin`` to fill in.
    """

    kind: type[RequestError]
    retryable: bool | None
    advice: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """What codes and words mean.

    Attributes
    ----------
    meaning
        What the refusal is.
    status
        The status it would have, where a server hides it in a success.
    codes, words
        Patterns: of a whole code, and of a part of the message. Neither looks at case.
    at_5xx
        Whether it counts at 500 and above. What would only say there that the server fails, or may mean that its model
        is still loading, does not.
    """

    meaning: Meaning
    status: int
    codes: re.Pattern[str]
    words: re.Pattern[str]
    at_5xx: bool = True


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_NO_CODE = _any(r"(?!)")  # matches nothing: only words say it

_NO_CREDIT = Meaning(
    PermissionDeniedError, None, "The account has no credit left: top it up, or use another deployment"
)
_QUOTA_USED_UP = Meaning(RateLimitError, False, "The account's quota is used up: check its plan and billing")
_TOO_LARGE_FOR_QUOTA = Meaning(
    ContextLengthError, None, "No minute of the quota holds the request: shorten it, or raise the quota"
)
_NOT_FOUND = Meaning(NotFoundError, None, "Check the model name {model!r}{where}")
_KEY = Meaning(AuthenticationError, None, "Check the deployment's key (api_key_env, or the provider's own variable)")
_MAY_NOT = Meaning(PermissionDeniedError, None, "The key may not use this: check the account's access to the model")
_RATE = Meaning(RateLimitError, None, "Over a quota of the server: lower rpm, tpm or max_parallel_requests")
_FAILED = Meaning(ServerError, None, "The server failed: see its log, or try again later")
_BUSY = Meaning(ServerError, None, "The server has no capacity now, or its model is still loading")
_BAD = Meaning(BadRequestError, None, "Check the request's parameters against what the model takes")

# A name that may have dots in it, or other words of the same sentence.
_SOME = r"(?:[^.]|\.(?=\w)){0,160}?"
_LIMIT_WORDS = r"(?:rate[ _-]?limits?|ratelimit)"

_RULES: tuple[_Rule, ...] = (
    _Rule(
        _NO_CREDIT,
        429,  # OpenAI's insufficient_quota is one
        _any(
            r"insufficient_(quota|balance|credits?|funds)|billing_hard_limit_reached|billing_not_active|arrearage",
            r"exceeded_current_quota_error|budget_exceeded|1113|payment_required",
        ),
        _any(
            r"credit balance is too low|insufficient (account )?(balance|credits?|funds)|no credit|out of credits",
            r"reached your specified (api )?usage limit|billing hard limit|exceeded your (monthly|prepaid)",
            r"spending limit|used all available credits|credits? (is|are|has been|have been) (depleted|exhausted|used)",
            r"budget has been exceeded|no resource package|account[^.]{0,60} is suspended",
            r"limited to \d+ [\w ]{1,20}(/|per) ?month|please recharge",
        ),
    ),
    _Rule(
        Meaning(ContentFilterError, None, "The provider's content filter refused the prompt: change it"),
        400,
        _any(
            r"content_filter(_error)?|(image_)?content_policy_violation|ResponsibleAIPolicyViolation|moderation_blocked",
            r"data_?inspection_?failed|1301",
        ),
        _any(
            r"content management policy|content[ _]policy[ _]violation|ResponsibleAIPolicyViolation",
            r"(rejected|blocked) (as a result of|by) [\w' ]{0,20}\b(safety|filter|guardrail|moderation|content filter)",
            r"flagged as potentially violating|requires moderation|was flagged|guardrail[\w ]{0,20} intervened",
            r"content exists risk|inappropriate content|unsafe or sensitive content",
            r"violat\w+ (our |the |its )?(usage|content|safety) (polic|guideline)",
        ),
    ),
    # That a server has no room now comes before what is too long: "Too many tokens, please wait" is a quota.
    _Rule(
        _BUSY,
        503,
        _any(r"\w*overloaded(_?error)?|\w*unavailable(_?error|exception)?|capacity_exceeded|slow_?down"),
        _any(
            r"\boverloaded\b|\b(over|no|out of) capacity|\b(currently|still|is) loading\b|\bbeing loaded\b",
            r"\bmodel (has )?(crashed|unloaded)|(temporarily|currently) unavailable",
            r"(server|service|engine|model) is (too )?busy",
        ),
        at_5xx=False,
    ),
    _Rule(
        _RATE,
        429,
        _any(
            r"rate_?limit(_?(exceeded|error|reached|exceeded_error))?|(user_?)?rate_?limit_?exceeded|too_?many_?requests",
            r"throttl(ing|ed)(_?exception|_?error)?|resource_?exhausted|quota_?exceeded",
        ),
        _any(
            rf"{_LIMIT_WORDS}\b[^.]{{0,60}}\b(exceeded|reached|hit)|(exceed|reach|hit)\w*\b[^.]{{0,60}}{_LIMIT_WORDS}",
            rf"\b{_LIMIT_WORDS} error|too many requests|\bthrottl(ed|ing)|request rate is too high",
            r"(tokens|requests) per (minute|min|second|hour|day)\b|\b[TR]P[MD]\b|please (wait|slow down)\b",
            r"\b(hourly|daily|weekly|monthly)\b[^.]{0,40}\b(limit|quota|allowance)",
        ),
        at_5xx=False,
    ),
    _Rule(
        Meaning(ContextLengthError, None, "Shorten the prompt, or ask for fewer tokens (max_tokens)"),
        400,
        _any(r"context_length_exceeded|exceed_context_size_error|string_above_max_length"),
        _any(
            r"maximum context length|context[ _]length[ _]exceeded|maximum model length",
            r"longer than the model'?s context",
            r"(exceeds?|exceeded|beyond) (the )?(model'?s )?(maximum |available |configured )?"
            r"context (length|window|size|limit)",
            r"context window exceeds|reached context length",
            r"context length is only \d+|maximum input length (is|of) \d+ tokens|maximum prompt length is",
            r"must have less than \d+ tokens|greater than the context length|with a larger context length",
            r"too many (input )?tokens|number of tokens in the prompt cannot exceed|max_model_len",
            r"(prompt|input)( token length)?( is)? too (long|large)|input tokens exceed",
            r"exceeds the maximum number of tokens|input( \(\d+ tokens\))? is too large to process",
            r"`?inputs`? tokens \+ `?max_new_tokens`? must be",
            r"reduce the length of the (input )?(prompt|messages|text)|current length is \d+ while limit is",
            # And in other words: what was sent, that it is more than, and a length or tokens.
            r"\b(prompt|inputs?|messages|text|request)\b(?![\[.'\"_])(?:(?!max_|output|completion)[^.;]){0,80}?"
            r"\b(exceed\w*|(longer|greater|more) than|too long)\b"
            r"[^.;]{0,60}?\b(length|tokens?|context)\b",
            r"\brequested \d+ tokens, max \d+|max(imum)? size: \d+ tokens|range of input length should be",
            r"token count is \d+ but model only supports",
        ),
    ),
    # The model's own output broke the rules of the request: the next draw may not (Groq's "Error codes").
    _Rule(
        Meaning(UnfinishedError, True, "The model's output was not what the request asks for: it is drawn again"),
        422,
        _any(
            r"json_validate_failed|tool_use_failed|output_parse_failed|json_generation_failed|model_error",
            r"model_?error_?exception",
        ),
        _any(
            r"failed to (generate|validate) (json|tool)|failed to call a function|malformed (function|tool) call",
            r"(could not|failed to) parse (the )?(tool call|model output|generated|fc related)",
            r"\bmodel (produced|generated|returned|output) (an? )?(invalid|malformed)",
            r"did not (produce|generate|return) (a )?valid|no valid response generated",
            r"invalid (tool|function) generation",
            r"unexpected tokens remaining in message header",  # gpt-oss' harmony format in vLLM
        ),
    ),
    # A part of this one request. The server has no other complaint, though its status is that of a wrong URL or key.
    _Rule(
        _BAD,
        400,
        _any(r"previous_response_not_found|(image_)?file_not_found|invalid_image_url|failed_to_download_image"),
        _any(
            r"no such (file|image|document) object|\bprevious response\b.{0,80}\bnot found",
            r"\b(fetch|download|retrieve|load)\w* (the |an? |your )?(image|file|video|audio|document|url)\b",
            r"\b(file|image|video|document)\b(?:(?!\bmodel\b).){3,160}?\b(not found|does not exist|could not be found)",
        ),
        at_5xx=False,
    ),
    _Rule(
        _KEY,
        401,
        _any(r"api_?key_invalid|invalid_?api_?key|authentication_error|UnrecognizedClientException"),
        _any(
            r"api key (not valid|expired|not found)|api_key_invalid|unauthorized: ",
            r"(invalid|incorrect|missing|no|expired|wrong) (api|subscription|access|proxy server)[ _-]?(key|token)",
            r"security token included in the request is (invalid|expired)|UnrecognizedClientException",
        ),
    ),
    _Rule(
        _MAY_NOT,
        403,
        _any(r"unsupported_country_region_territory"),
        _any(r"user location is not supported|organization has been (restricted|disabled)"),
    ),
    _Rule(
        Meaning(NotFoundError, None, "The server has too little memory for the model {model!r}"),
        404,
        _NO_CODE,
        _any(r"model requires more (\w+ )?memory"),  # Ollama, with 500
    ),
    _Rule(
        _NOT_FOUND,
        404,
        _any(r"model_?not_?found|DeploymentNotFound|model_decommissioned"),
        _any(
            r"no available channels? for model",  # new-api, with 503
            rf"\bmodel\b{_SOME}\b(decommissioned|deprecated|retired)\b|on-demand throughput isn.t supported",
            r"unable to access (non-serverless )?model",
        ),
    ),
    _Rule(
        _NOT_FOUND,
        404,
        _NO_CODE,
        _any(
            r"(invalid|unknown|no such) model\b|is not a valid model|no models? (is |are )?(loaded|found)",
            rf"\bmodel\b{_SOME}\b(does not exist|not found|not exist|is not available|not loaded)",
            r"\bmodel (identifier|id|name) is (invalid|not valid)|no endpoints found for",
            rf"requested model\b{_SOME}\bnot supported|does not work with the specified model",
        ),
        at_5xx=False,  # a 503 "model not loaded" is one that is loading
    ),
    _Rule(_BUSY, 503, _NO_CODE, _any(r"try again (later|in a (few|moment|minute|while))"), at_5xx=False),
)
_CREDIT_RULE = _RULES[0]
# Gemini says of a minute what OpenAI says of an empty account; its code, or a wait, tells.
_QUOTA_OR_CREDIT = _any(r"exceeded your current quota|check your plan and billing")
_A_WAIT = _any(r"retryDelay|(retry|try again) (in|after) \d")
# A request that no minute of the quota can hold: it is as large in the next one (OpenAI, Groq).
_QUOTA_IS_SMALLER = _any(r"request too large for", r"(tokens must be|please) reduced? (in order to|your message size)")
_QUOTA_STATUSES = frozenset((400, 403, 413, 429))

_BY_STATUS: dict[int, Meaning] = {
    401: _KEY,
    402: _NO_CREDIT,
    403: _MAY_NOT,
    404: _NOT_FOUND,
    405: _NOT_FOUND,
    407: Meaning(
        APIConnectionError, False, "The proxy wants a name and a password: put them into HTTPS_PROXY or HTTP_PROXY"
    ),
    408: Meaning(RequestTimeoutError, None, "The server gave up waiting"),
    409: Meaning(BadRequestError, True, "The server was busy with something that conflicts: trying again may help"),
    413: Meaning(BadRequestError, None, "The request is larger than the server accepts: shorten the input"),
    423: _BUSY,  # the model is locked while it loads
    424: Meaning(ServerError, None, "The model failed while it wrote: trying again may help"),  # TGI, TEI, Bedrock
    425: Meaning(BadRequestError, True, "The server was not ready for the request: trying again may help"),
    429: _RATE,
    449: _FAILED,  # Microsoft's "retry with"
    498: Meaning(ServerError, None, "The server has no capacity now"),  # Groq
    499: Meaning(ServerError, None, "The server cancelled the request: trying again may help"),  # Google's CANCELLED
    501: Meaning(ServerError, False, "The server does not offer this, or not as it was started"),
}
# These say it all: what stands beside them does not change it.
_DECIDED = frozenset((402, 407, 408))
_LAST = 503  # above it are gateways' own: their pages are not the provider's words

# What a code tells by its form, where no rule knows it: the Responses API's, OpenAI's and Anthropic's types.
_FORMS: tuple[tuple[int, re.Pattern[str]], ...] = (
    (504, _any(r"timeout|timed_?out")),
    (401, _any(r"authentication|unauthorized|auth_error")),
    (403, _any(r"permission|forbidden|access_?denied")),
    (404, _any(r"not_?found")),
    (400, _any(r"invalid|unsupported|bad_?request|validation|malformed|image|_too_(large|small|long)|unprocessable")),
    (500, _any(r"server_error|internal|api_error")),
)


def meaning_of(status: int, said: Said, *, asked_to_wait: bool = False) -> Meaning:
    """What a refusal means.

    Parameters
    ----------
    status
        The HTTP status, or the one that stands for it (:func:`implied_status`).
    said
        What the body says.
    asked_to_wait
        Whether the server said how long to wait: then it is no empty account that turned the request away.
    """
    if status < 400:
        return Meaning(
            NotFoundError, None, "Redirects are not followed: set api_base to where the API is ({origin} is not)"
        )
    if status not in _DECIDED and status <= _LAST:
        if status in _QUOTA_STATUSES and _QUOTA_IS_SMALLER.search(said.message):
            return _TOO_LARGE_FOR_QUOTA
        if status == 429:
            return _at_429(said, asked_to_wait)
        rule = _by_codes(said.codes, status) or _by_words(said.message, status)
        if rule is not None and not (status == 401 and rule.meaning in (_BUSY, _RATE)):  # a wrong key stays one
            return rule.meaning
    known = _BY_STATUS.get(status)
    return known if known is not None else _FAILED if status >= 500 else _BAD


def _at_429(said: Said, asked_to_wait: bool) -> Meaning:
    """A quota that passes, unless a code says otherwise, or words of credit do and no wait is asked for."""
    rule = _by_codes(said.codes)
    if rule is _CREDIT_RULE:
        return _QUOTA_USED_UP
    if rule is not None and rule.meaning not in (_RATE, _BUSY):
        return rule.meaning
    if asked_to_wait or _A_WAIT.search(said.message):
        return _RATE
    geminis = "RESOURCE_EXHAUSTED" in said.codes or "RESOURCE_EXHAUSTED" in said.message
    openais = not geminis and _QUOTA_OR_CREDIT.search(said.message)
    return _QUOTA_USED_UP if openais or _CREDIT_RULE.words.search(said.message) else _RATE


def _by_codes(codes: Sequence[str], status: int = 0) -> _Rule | None:
    rules = (rule for rule in _RULES if rule.at_5xx or status < 500)
    return next((rule for rule in rules if any(map(rule.codes.fullmatch, codes))), None)


def _by_words(message: str, status: int = 0) -> _Rule | None:
    rules = (rule for rule in _RULES if rule.at_5xx or status < 500)
    return next((rule for rule in rules if rule.words.search(message)), None)


def implied_status(said: Said) -> int:
    """The status that an error would have had, where a server hides it in a success.

    A number among its codes, as a number or as text; else what a known code or known words have elsewhere; else 502,
    as gateways do so when the server behind them fails.

    Examples
    --------
    >>> from infermesh.wire.error_bodies import said_by
    >>> implied_status(said_by({"error": {"code": "429", "message": "slow down"}}))
    429
    >>> implied_status(said_by({"error": {"type": "overloaded_error", "message": "Overloaded"}}))
    503
    """
    for code in said.codes:
        if len(code) == 3 and code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
    if (rule := _by_codes(said.codes)) is not None:
        return rule.status
    if (rule := _by_words(said.message)) is not None:
        return rule.status
    for status, form in _FORMS:
        if any(form.search(code) for code in said.codes):
            return status
    return 502
