"""What finish reasons mean, and that nothing but a good end becomes an answer."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    MalformedResponseError,
    RateLimitError,
    RequestError,
    UnfinishedError,
)
from infermesh.types import Operation, Reply
from infermesh.wire.answers import parse_generation
from infermesh.wire.endings import ending

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def answer(choice: dict[str, Any], **fields: Any) -> Reply:
    return Reply(200, {"id": "c", "choices": [choice], "usage": USAGE, **fields}, lambda name: None)


def said(content: Any, reason: str | None, **message: Any) -> Reply:
    return answer({"finish_reason": reason, "message": {"content": content, **message}})


@pytest.mark.parametrize(
    ("meaning", "reasons"),
    [
        ("complete", ["stop", "STOP", "eos_token", "end_turn", "COMPLETE", "tool_calls", "function_call", None, ""]),
        ("complete", ["FinishReason.STOP", "FINISH_REASON_STOP", "FINISH_REASON_UNSPECIFIED", "FINISH", "FINISHED"]),
        ("complete", ["STOP_CRITERIA_MET", "null", "endoftext", "end_of_text", "eosFound", "toolCalls", "end-turn"]),
        ("cut", ["token_limit", "max_tokens_reached", "maxPredictedTokensReached", "contextLengthReached"]),
        ("filtered", ["content_filter: SAFETY", "content_filter: NEW", "MODEL_ARMOR"]),
        ("broken", ["function_call_filter: MALFORMED_FUNCTION_CALL", "TOO_MANY_TOOL_CALLS", "finish_reason_other"]),
        ("cut", ["length", "MAX_TOKENS", "model_length", "max_output_tokens"]),
        ("filtered", ["content_filter", "SAFETY", "PROHIBITED_CONTENT", "sensitive", "refusal"]),
        ("broken", ["error", "abort", "network_error", "insufficient_system_resource", "MALFORMED_FUNCTION_CALL"]),
        ("unknown", ["weird", "finished?", "weird: new", ":"]),
    ],
)
def test_table(meaning: str, reasons: list[str | None]) -> None:
    assert {ending(reason) for reason in reasons} == {meaning}


@pytest.mark.parametrize("reason", ["error", "abort", "network_error", "insufficient_system_resource"])
@pytest.mark.parametrize("text", ["", "half an ans"])
def test_a_broken_answer_is_tried_again(reason: str, text: str) -> None:
    with pytest.raises(UnfinishedError, match=reason) as caught:
        parse_generation("chat_completion", said(text, reason))
    error = caught.value
    assert (error.retryable, error.kind, error.request_id) == (True, "unfinished", "c")
    assert error.usage is not None
    assert error.usage.total_tokens == 10


def test_an_unknown_reason_is_not_taken_for_a_good_one_and_the_text_is_shown() -> None:
    with pytest.raises(UnfinishedError, match=r"'weird'.*'Oslo'") as caught:
        parse_generation("chat_completion", said("Oslo", "weird"))
    assert not caught.value.retryable


def test_a_reason_that_is_an_object() -> None:
    cut = answer({"finish_reason": {"type": "length", "length": 5}, "message": {"content": "x"}})
    assert parse_generation("chat_completion", cut).finish_reason == "length"


@pytest.mark.parametrize(
    "native", [{"native_finish_reason": "SAFETY"}, {"provider_specific_fields": {"native_finish_reason": "SAFETY"}}]
)
def test_the_providers_own_reason_where_a_gateway_hides_it(native: dict[str, Any]) -> None:
    nothing = answer({"finish_reason": "stop", "message": {"content": ""}, **native})
    with pytest.raises(ContentFilterError):
        parse_generation("chat_completion", nothing)
    some = answer({"finish_reason": "stop", "message": {"content": "half"}, **native})
    assert parse_generation("chat_completion", some).finish_reason == "SAFETY"
    told = answer({"finish_reason": "content_filter", "message": {"content": "half"}, **native})
    assert parse_generation("chat_completion", told).finish_reason == "content_filter"
    failed = answer({"finish_reason": "content_filter", "native_finish_reason": "OTHER", "message": {"content": ""}})
    with pytest.raises(UnfinishedError, match="OTHER"):
        parse_generation("chat_completion", failed)


def test_a_response_cut_at_a_limit_of_tool_calls() -> None:
    output = [{"type": "message", "content": [{"type": "output_text", "text": "half"}]}]
    body = {"status": "incomplete", "incomplete_details": {"reason": "max_tool_calls"}, "output": output}
    assert parse_generation("responses", Reply(200, body, lambda name: None)).finish_reason == "max_tool_calls"


def test_the_providers_own_reason_says_nothing_new_otherwise() -> None:
    good = answer({"finish_reason": "stop", "native_finish_reason": "weird", "message": {"content": "x"}})
    assert parse_generation("chat_completion", good).finish_reason == "stop"
    broken = answer(
        {"finish_reason": "stop", "native_finish_reason": "MALFORMED_RESPONSE", "message": {"content": "x"}}
    )
    with pytest.raises(UnfinishedError, match="MALFORMED_RESPONSE"):
        parse_generation("chat_completion", broken)


@pytest.mark.parametrize("content", [None, "", []])
@pytest.mark.parametrize("reason", ["stop", None, "end_turn"])
def test_nothing_at_all_is_no_answer(content: Any, reason: str | None) -> None:
    with pytest.raises(UnfinishedError, match="empty") as caught:
        parse_generation("chat_completion", said(content, reason))
    assert caught.value.retryable


def test_content_that_is_missing() -> None:
    with pytest.raises(UnfinishedError, match="empty"):
        parse_generation("chat_completion", answer({"finish_reason": "stop", "message": {"role": "assistant"}}))
    with pytest.raises(UnfinishedError, match="empty"):
        parse_generation("text_completion", answer({"finish_reason": "stop", "text": ""}))
    completed = Reply(200, {"id": "r", "status": "completed", "output": []}, lambda name: None)
    with pytest.raises(UnfinishedError, match="empty"):
        parse_generation("responses", completed)


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        {"content": None, "reasoning_content": "I think."},
        {"content": None, "refusal": "No."},
        {"content": None, "audio": {"id": "a", "data": "…", "transcript": "Hello."}},
        {"content": "", "images": [{"type": "image_url"}]},
    ],
)
def test_what_is_an_answer_without_content(message: dict[str, Any]) -> None:
    result = parse_generation("chat_completion", answer({"finish_reason": "stop", "message": message}))
    assert result.finish_reason == "stop"


def test_what_is_spoken_is_text() -> None:
    result = parse_generation("chat_completion", said(None, "stop", audio={"transcript": "Hello."}))
    assert result.output_text == "Hello."


@pytest.mark.parametrize("text", ["", "cut h"])
def test_a_cut_answer_stays(text: str) -> None:
    assert parse_generation("chat_completion", said(text, "length")).output_text == text


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "content_filter"},
        {"finish_reason": "content_filter", "message": None},
        {"finish_reason": "SAFETY", "message": {"content": None}},
        {"finish_reason": "content_filter", "message": {"content": ""}},
    ],
)
def test_a_filter_that_leaves_nothing_is_told_and_not_tried_again(choice: dict[str, Any]) -> None:
    with pytest.raises(ContentFilterError) as caught:
        parse_generation("chat_completion", answer(choice))
    assert not caught.value.retryable
    assert caught.value.usage is not None
    with pytest.raises(ContentFilterError):
        parse_generation("text_completion", answer({"finish_reason": "content_filter", "text": None}))


def test_what_a_filter_leaves_stays() -> None:
    assert parse_generation("chat_completion", said("The fi", "content_filter")).output_text == "The fi"


@pytest.mark.parametrize("operation", ["chat_completion", "text_completion"])
@pytest.mark.parametrize(
    ("error", "expected", "retryable"),
    [
        ({"code": 502, "message": "Upstream error"}, UnfinishedError, True),
        ({"message": "Upstream error"}, UnfinishedError, True),
        ("Upstream error", UnfinishedError, True),
        ({"code": 400, "message": "Upstream error"}, BadRequestError, False),
        ({"code": "429", "message": "Upstream error"}, RateLimitError, True),
        ({"code": 401, "message": "Upstream error"}, AuthenticationError, False),
        ({"code": 403, "message": "Upstream error: your input was flagged"}, ContentFilterError, False),
        ({"message": "Upstream error: maximum context length"}, ContextLengthError, False),
        ({"code": 429, "message": "Upstream error"}, RateLimitError, True),
    ],
)
def test_an_error_in_the_choice(
    operation: Operation, error: Any, expected: type[RequestError], retryable: bool
) -> None:
    for reason in ("error", "stop"):
        choice = {"finish_reason": reason, "error": error, "message": {"content": "par"}, "text": "par"}
        with pytest.raises(expected, match="Upstream error") as caught:
            parse_generation(operation, answer(choice))
        assert type(caught.value) is expected
        assert caught.value.retryable is retryable


def test_an_error_in_the_message() -> None:
    failed = said("partial", "stop", error={"code": 502, "message": "Upstream error"})
    with pytest.raises(UnfinishedError, match="Upstream error"):
        parse_generation("chat_completion", failed)


@pytest.mark.parametrize("status", ["cancelled", "in_progress", "queued"])
def test_a_response_that_is_not_complete(status: str) -> None:
    body = {"id": "r", "status": status, "output": [{"type": "message", "content": []}]}
    with pytest.raises(UnfinishedError, match=status):
        parse_generation("responses", Reply(200, body, lambda name: None))


def test_a_message_that_is_no_message_is_malformed() -> None:
    with pytest.raises(MalformedResponseError):
        parse_generation("chat_completion", answer({"finish_reason": "stop"}))


def test_log_probabilities_are_kept() -> None:
    logprobs = {"content": [{"token": "Yes", "logprob": -0.1}]}
    choice = {"finish_reason": "stop", "message": {"content": "Yes"}, "text": "Yes", "logprobs": logprobs}
    assert parse_generation("chat_completion", answer(choice)).logprobs == logprobs
    assert parse_generation("text_completion", answer(choice)).logprobs == logprobs
    part = {"type": "output_text", "text": "Yes", "logprobs": logprobs["content"]}
    body = {"status": "completed", "output": [{"type": "message", "content": [part]}]}
    assert parse_generation("responses", Reply(200, body, lambda name: None)).logprobs == logprobs
