"""How servers word their refusals, and what each one is."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    ServerError,
    UnfinishedError,
)
from infermesh.transports.errors import error_from_status

WORDS: list[tuple[str, int, Any, type[RequestError], bool]] = [
    # who says it, status, body, what it is, worth another try
    ("vLLM", 400, {"error": {"message": "You passed 8193 input tokens and requested 0 output tokens. However, the "
     "model's context length is only 8192 tokens"}}, ContextLengthError, False),
    ("TEI", 413, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
     "error_type": "Validation"}, ContextLengthError, False),
    ("LM Studio", 400, {"error": "The number of tokens to keep from the initial prompt is greater than the context "
     "length. Try to load the model with a larger context length"}, ContextLengthError, False),
    ("Cohere", 400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081"},
     ContextLengthError, False),
    ("xAI", 400, {"error": "This model's maximum prompt length is 131072 but the request contains 200000 tokens."},
     ContextLengthError, False),
    ("llama.cpp", 500, {"error": {"message": "input is too large to process. increase the physical batch size"}},
     ContextLengthError, False),
    ("OpenRouter", 400, {"error": {"message": "Provider returned error",
     "metadata": {"raw": "prompt is too long: 210000 tokens"}}}, ContextLengthError, False),
    ("OpenAI, a quota", 429, {"error": {"message": "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, "
     "Requested 50000.", "code": "rate_limit_exceeded"}}, ContextLengthError, False),
    ("Gemini", 400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.",
     "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}], AuthenticationError, False),
    ("Anthropic, credit", 400, {"error": {"type": "invalid_request_error",
     "message": "Your credit balance is too low to access the Anthropic API."}}, PermissionDeniedError, False),
    ("Anthropic, limit", 400, {"error": {"message": "You have reached your specified API usage limits."}},
     PermissionDeniedError, False),
    ("DeepSeek", 402, {"error": {"message": "Insufficient Balance"}}, PermissionDeniedError, False),
    ("OpenAI, credit", 429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
     RateLimitError, False),
    ("Gemini, a minute", 429, [{"error": {"code": 429, "message": "You exceeded your current quota",
     "status": "RESOURCE_EXHAUSTED"}}], RateLimitError, True),
    ("LiteLLM's proxy", 400, {"error": {"message": "Invalid model name passed in model=gpt-x"}}, NotFoundError, False),
    ("OpenRouter, model", 400, {"error": {"message": "acme/x is not a valid model ID"}}, NotFoundError, False),
    ("Groq, model", 400,
     {"error": {"message": "The model `x` has been decommissioned", "code": "model_decommissioned"}},
     NotFoundError, False),
    ("Groq, dice", 400, {"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed"}},
     UnfinishedError, True),
    ("Groq, tool", 400, {"error": {"message": "Failed to call a function.", "code": "tool_use_failed"}},
     UnfinishedError, True),
    ("Groq, flex", 498, {"error": {"message": "capacity exceeded", "code": "capacity_exceeded"}}, ServerError, True),
    ("Anthropic, overload", 529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, ServerError, True),
    ("TGI, overload", 429, {"error": "Model is overloaded", "error_type": "overloaded"}, RateLimitError, True),
    ("llama.cpp, no endpoint", 501, {"error": {"message": "This server does not support embeddings."}},
     ServerError, False),
    ("Alibaba", 400, {"error": {"code": "data_inspection_failed", "message": "Output data may contain inappropriate"}},
     ContentFilterError, False),
    ("OpenRouter, moderation", 403, {"error": {"message": "google requires moderation. Your input was flagged"}},
     ContentFilterError, False),
    ("anybody", 400, {"error": {"message": "temperature must be at least 0"}}, BadRequestError, False),
    ("a prompt that says it", 500, {"error": "boom"}, ServerError, True),
]  # fmt: skip


def no_header(name: str) -> None:
    return None


@pytest.mark.parametrize(
    ("status", "body", "expected", "retryable"), [row[1:] for row in WORDS], ids=[row[0] for row in WORDS]
)
def test_words(status: int, body: Any, expected: type[RequestError], retryable: bool) -> None:
    error = error_from_status(status, body, no_header, "d", url="http://h/v1/chat/completions", model="m")
    assert (type(error), error.retryable) == (expected, retryable)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": {"error": {"message": "Wrong."}}}, "Wrong"),
        ({"detail": {"message": "Wrong."}}, "Wrong"),
        ({"errors": [{"message": "Wrong."}]}, "Wrong"),
        ({"Message": "Wrong."}, "Wrong"),
        ({"msg": "Wrong."}, "Wrong"),
    ],
)
def test_where_servers_put_the_message(body: Any, said: str) -> None:
    assert f": HTTP 422: {said}. " in str(error_from_status(422, body, no_header, "d"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h:8000/chat/completions", "Most api_base end in /v1"),
        ("http://h:8000/v1/responses", "Or the server has no /responses"),
        ("http://h:8000/v1/chat/completions/chat/completions", "api_base ends where /chat/completions begins"),
        ("http://me:secret@h:8000/v1/embeddings?key=secret", "http://h:8000/v1/embeddings was asked"),
    ],
)
def test_a_404_names_the_url_that_was_asked(url: str, words: str) -> None:
    said = str(error_from_status(404, "", no_header, "d", url=url, model="m"))
    assert words in said
    assert "secret" not in said


def test_the_headers_of_a_failure_can_be_looked_up() -> None:
    error = error_from_status(429, "", lambda name: {"x-ratelimit-remaining-requests": "0"}.get(name), "d")
    assert error.header is not None
    assert error.header("x-ratelimit-remaining-requests") == "0"
