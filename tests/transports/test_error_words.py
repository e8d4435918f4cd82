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
    # Too long, in other words
    ("Vertex AI", 400, "Unable to submit request because the input token count is 40000 but model only supports up to "
     "32768. Reduce the input token count and try again.", ContextLengthError, False),
    ("Bedrock Titan", 400, "Too many input tokens. Max input tokens: 8192, request input token count: 9000",
     ContextLengthError, False),
    ("Mistral embeddings", 400, "Input id 0 has 9000 tokens, exceeding max 8192 tokens.", ContextLengthError, False),
    ("Moonshot", 400, "Invalid request: Your request exceeded model token limit: 8192", ContextLengthError, False),
    ("Moonshot 2", 400, "Input token length too long", ContextLengthError, False),
    ("Zhipu", 400, "Prompt exceeds max length", ContextLengthError, False),
    ("Qwen", 400, "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]",
     ContextLengthError, False),
    ("SGLang", 400, "Input length (9000 tokens) exceeds the maximum allowed length (8191 tokens). Use a shorter input.",
     ContextLengthError, False),
    ("llama.cpp, batch", 500, "input (600 tokens) is too large to process. increase the physical batch size",
     ContextLengthError, False),
    ("NIM", 400, "Input length 600 exceeds maximum allowed token size 512", ContextLengthError, False),
    ("watsonx", 400, "the number of input tokens 5000 cannot exceed the total tokens limit 4096 for this model",
     ContextLengthError, False),
    ("GitHub Models", 413, "Request body too large for gpt-4o model. Max size: 8000 tokens.", ContextLengthError,
     False),
    ("Groq, a quota", 413, "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 7000",
     ContextLengthError, False),
    ("OpenAI embeddings", 400, "Requested 400000 tokens, max 300000 tokens per request", ContextLengthError, False),
    ("Jina", 400, "Input text exceeds maximum length of 8194 tokens", ContextLengthError, False),
    ("LM Studio, reached", 400, "Reached context length of 4096 tokens with model (arch:qwen2)", ContextLengthError,
     False),
    ("a name that is too long", 400, "Invalid 'messages[0].name': string too long. Expected length 64 at most",
     BadRequestError, False),
    ("a picture that is too large", 400, "Input image exceeds the maximum size of 20 MB", BadRequestError, False),
    ("the answer's limit", 400, "Invalid request: max_tokens exceeds the model's maximum of 4096 tokens",
     BadRequestError, False),
    ("a body that is too large", 413, "Request Entity Too Large", BadRequestError, False),
    # No room now, whatever the status
    ("Bedrock", 400, {"__type": "com.amazon.coral.service#ThrottlingException",
     "message": "Too many tokens, please wait before trying again."}, RateLimitError, True),
    ("Bedrock, words", 400, "Too many tokens, please wait before trying again.", RateLimitError, True),
    ("TGI at 400", 400, {"error": {"message": "Model is overloaded", "type": "overloaded"}}, ServerError, True),
    ("Alibaba, rate", 400, "Requests rate limit exceeded, please try again later.", RateLimitError, True),
    ("Azure, rate", 403, {"error": {"message": "no", "code": "rate_limit_exceeded"}}, RateLimitError, True),
    ("Google, rate", 403, {"error": {"code": 403, "message": "Rate Limit Exceeded",
     "errors": [{"reason": "rateLimitExceeded"}], "status": "RESOURCE_EXHAUSTED"}}, RateLimitError, True),
    ("LM Studio, crashed", 400, {"error": "The model has crashed without additional information. (Exit code: null)"},
     ServerError, True),
    ("LM Studio, unloaded", 400, {"error": "Model unloaded."}, ServerError, True),
    ("Hugging Face", 404, {"error": "Model m is currently loading"}, ServerError, True),
    ("a 503 that loads", 503, {"error": "Model m is not loaded"}, ServerError, True),
    ("locked", 423, "model is being loaded", ServerError, True),
    ("TGI, TEI", 424, {"error": "Request failed during generation: Server error: ", "error_type": "generation"},
     ServerError, True),
    ("Microsoft", 449, "Retry with", ServerError, True),
    ("Google", 499, {"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}},
     ServerError, True),
    # The model's dice
    ("Bedrock, dice", 424, "Model produced invalid sequence as part of ToolUse.", UnfinishedError, True),
    ("vLLM, harmony", 400, 'unexpected tokens remaining in message header: Some("to=functions")', UnfinishedError,
     True),
    ("OpenAI, dice", 400, {"error": {"message": "The model produced invalid content.", "type": "model_error"}},
     UnfinishedError, True),
    ("Cerebras", 400, "Failed to generate tool_calls. Please adjust your prompt.", UnfinishedError, True),
    ("Cohere, dice", 422, "no valid response generated, please try updating the messages", UnfinishedError, True),
    ("Cohere, tool", 400, "invalid tool generation, please try again", UnfinishedError, True),
    ("SGLang, tool", 400, "Failed to parse fc related info to json format!", UnfinishedError, True),
    ("no JSON", 400, "The model did not produce valid JSON. Please try again.", UnfinishedError, True),
    ("a body that is no JSON", 400, "Failed to parse the request body as JSON", BadRequestError, False),
    # No credit: a 429 whose words say so, and that asks for no wait
    ("Moonshot, credit", 429, {"error": {"message": "Your account org-1 is suspended, check your plan and billing",
     "type": "exceeded_current_quota_error"}}, RateLimitError, False),
    ("Zhipu, credit", 429, {"error": {"code": "1113", "message": "Insufficient balance or no resource package."}},
     RateLimitError, False),
    ("xAI, credit", 429, "Your team t has either used all available credits or reached its monthly spending limit.",
     RateLimitError, False),
    ("Gemini, credit", 429, "Your prepayment credits are depleted. Please go to AI Studio.", RateLimitError, False),
    ("OpenAI without a code", 429, "You exceeded your current quota, please check your plan and billing details.",
     RateLimitError, False),
    ("Gemini, RetryInfo", 429, [{"error": {"code": 429, "message": "You exceeded your current quota, please check your "
     "plan and billing details.", "details": [{"retryDelay": "20s"}]}}], RateLimitError, True),
    ("Cohere, a month", 429, "You are using a Trial key, which is limited to 1000 API calls / month.", RateLimitError,
     False),
    ("Cohere, a minute", 429, "You are using a Trial key, which is limited to 20 API calls / minute.", RateLimitError,
     True),
    ("LiteLLM's proxy, budget", 400, "Budget has been exceeded! Current cost: 10.5, Max budget: 10.0",
     PermissionDeniedError, False),
    ("Fireworks", 412, "Account x is suspended, possibly due to reaching the monthly spending limit.",
     PermissionDeniedError, False),
    # No such model, no such key, at any status
    ("Bedrock, model", 400, "The provided model identifier is invalid.", NotFoundError, False),
    ("Bedrock, on demand", 400, "Invocation of model ID x with on-demand throughput isn't supported.", NotFoundError,
     False),
    ("Together", 400, "Unable to access non-serverless model X.", NotFoundError, False),
    ("Hugging Face, model", 400, "The requested model 'x' is not supported by any provider you have enabled.",
     NotFoundError, False),
    ("Azure, operation", 400, "The chatCompletion operation does not work with the specified model, gpt-x.",
     NotFoundError, False),
    ("OpenRouter, endpoints", 400, "No endpoints found for x/y.", NotFoundError, False),
    ("deprecated", 400, "The model 'gpt-4.5' has been deprecated, learn more here", NotFoundError, False),
    ("new-api", 503, "No available channel for model x under group default (distributor)", NotFoundError, False),
    ("Ollama", 500, "model requires more system memory (8.0 GiB) than is available (4.0 GiB)", NotFoundError, False),
    ("LiteLLM's proxy, key", 400, "Authentication Error, Invalid proxy server token passed.", AuthenticationError,
     False),
    ("Azure, key", 400, "Access denied due to invalid subscription key or wrong API endpoint.", AuthenticationError,
     False),
    ("AWS, key", 400, "The security token included in the request is invalid.", AuthenticationError, False),
    ("Gemini, place", 400, "User location is not supported for the API use.", PermissionDeniedError, False),
    ("Groq, account", 400, "Organization has been restricted. Please reach out to support.", PermissionDeniedError,
     False),
    # One row's own fault, under the status of a wrong key or URL
    ("xAI, filter", 403, {"code": "The caller does not have permission to execute the specified operation",
     "error": "Content violates usage guidelines. Team: t, Failed check: SAFETY_CHECK_TYPE_BIO"}, ContentFilterError,
     False),
    ("Anthropic, filter", 400, "Output blocked by content filtering policy", ContentFilterError, False),
    ("OpenAI, safety", 400, {"error": {"message": "Your request was rejected by the safety system.",
     "code": "moderation_blocked"}}, ContentFilterError, False),
    ("Zhipu, filter", 400, {"error": {"code": "1301", "message": "potentially unsafe or sensitive content"}},
     ContentFilterError, False),
    ("a guardrail", 400, "Output blocked by guardrail", ContentFilterError, False),
    ("a file", 404, "No such File object: file-abc123", BadRequestError, False),
    ("a response", 404, {"error": {"message": "Previous response with id 'resp_1' not found.",
     "code": "previous_response_not_found"}}, BadRequestError, False),
    ("a picture", 400, "The model could not fetch the image: https://x/y.png not found", BadRequestError, False),
    ("a picture's model", 404, "The image model `x` does not exist", NotFoundError, False),
    ("where to read on", 403, "No access. Read the documentation at https://h/docs", PermissionDeniedError, False),
    ("a wrong key", 401, "Unknown token, try again later", AuthenticationError, False),
    ("a day's tokens", 403, "Your request exceeds the daily token allowance", RateLimitError, True),
    ("OpenRouter, Gemini", 429, {"error": {"message": "Provider returned error", "metadata": {"raw": "You exceeded "
     "your current quota, please check your plan and billing details. RESOURCE_EXHAUSTED"}}}, RateLimitError, True),
    ("a page that is not there", 404, "File not found", NotFoundError, False),
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
