"""Whatever a server answers: a result that can be stored, or a ``RequestError``."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, reject
from hypothesis import strategies as st

from infermesh.errors import RequestError
from infermesh.exact_json import read
from infermesh.results import EmbeddingResult, GenerationResult, TokenUsage, TranscriptionResult
from infermesh.types import Operation, Reply
from infermesh.wire.answers import parse_generation, parse_transcription, refusal_of
from infermesh.wire.endings import ending
from infermesh.wire.error_bodies import is_error, said_by
from infermesh.wire.parts import read_content, thoughts_in, thoughts_of
from infermesh.wire.refusals import implied_status, meaning_of
from infermesh.wire.usage import usage_of
from infermesh.wire.vectors import parse_embeddings
from tests.mutations import any_text, json_values, mutated, written

_USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "total_tokens": 2**31 - 1,
    "input_tokens": 9,
    "output_tokens": "12",
    "reasoning_tokens": 2**31 - 1,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 2**31},
    "cache_creation": {"ephemeral_1h_input_tokens": 1},
    "billed_units": {"input_tokens": 1.0, "output_tokens": 2},
    "cost": 0.5,
    "cost_details": {"upstream_inference_cost": 0.1},
    "is_byok": True,
}
_MESSAGE = {
    "role": "assistant",
    "content": [{"type": "text", "text": "Yes."}, {"type": "refusal", "refusal": "No."}],
    "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}],
    "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
    "function_call": {"name": "f", "arguments": "{}"},
    "refusal": "No.",
    "audio": {"transcript": "Yes."},
    "error": None,
}
_CHAT = {
    "id": "r-1",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": _MESSAGE,
            "finish_reason": "stop",
            "native_finish_reason": "SAFETY",
            "provider_specific_fields": {"native_finish_reason": "stop"},
            "logprobs": {"content": [{"token": "Y", "logprob": -0.1}]},
            "error": {"code": 502, "message": "upstream"},
        }
    ],
    "usage": _USAGE,
    "service_tier": "flex",
}
_PLAIN = {"id": "r-1", "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}], "usage": _USAGE}
_TEXT = {"id": "r-1", "choices": [{"text": "Yes.", "finish_reason": "length", "logprobs": {}}], "usage": _USAGE}
_RESPONSE = {
    "id": "r-1",
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Yes.", "logprobs": [{"token": "Y"}]}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": {"a": 2**70}},
    ],
    "incomplete_details": {"reason": "max_output_tokens"},
    "error": {"code": "rate_limit_exceeded", "message": "slow down"},
    "usage": _USAGE,
}
_EMBEDDINGS = {
    "data": [{"index": 0, "embedding": [0.1, 2]}, {"index": 1, "embedding": "AACAPwAAAEA="}],
    "usage": {"prompt_tokens": 5, "total_tokens": 5},
    "model": "m",
}
_TRANSCRIPT = {
    "text": "Hello.",
    "language": "english",
    "duration": "2.5",
    "segments": [{"text": "Hello."}],
    "words": [{"word": "Hello"}],
    "usage": {"type": "duration", "seconds": 3},
    "result": {"text": "Hello."},
}
_ERROR = {
    "object": "error",
    "error": {
        "message": "Too many tokens",
        "code": "429",
        "type": "rate_limit",
        "metadata": {"raw": "{}"},
        "innererror": {"code": "x"},
        "details": [{"reason": "API_KEY_INVALID"}],
    },
    "detail": [{"loc": ["body", 0], "msg": "field required"}],
    "errors": [{"message": "no"}],
    "id": "e-1",
}
_PATHS: list[dict[str, Any]] = [_CHAT, _MESSAGE, _USAGE, _RESPONSE, _EMBEDDINGS, _TRANSCRIPT, _ERROR]
_keys = st.sampled_from(
    sorted({key for each in _PATHS for key in each} | {"type", "text", "content", "value", "name", "arguments", "0"})
) | st.text(max_size=3)
_any = json_values(_keys)
_reasons = st.sampled_from(["stop", "SAFETY", "error", "content_filter: x", "", "failed", "length", "x" * 300])


def bodies(*valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A decoded answer; transports hand on objects alone."""
    made = mutated(st.sampled_from(valid), _any | _reasons | st.sampled_from(_PATHS), _keys)
    return made | st.dictionaries(_keys, _any, max_size=4)


def reply_of(body: dict[str, Any]) -> Reply:
    """As transports make it, of the bytes that came."""
    return Reply(200, decoded(body), lambda _: None, written(body))


def decoded(value: Any) -> Any:
    """As transports hand it on; what is nested too deeply is refused before."""
    try:
        return read(written(value))
    except ValueError:
        reject()


def is_stored_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.encode("utf-8") is not None)


def check_usage(usage: TokenUsage | None) -> None:
    if usage is None:
        return
    for count in (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens, usage.cached_tokens):
        assert count is None or (type(count) is int and 0 <= count <= 2**31 - 1)
    for name, value in (usage.details or {}).items():
        assert isinstance(value, str) or (math.isfinite(value) and value >= 0), name


def check_error(error: RequestError) -> None:
    assert error.message
    assert is_stored_text(error.request_id)
    check_usage(error.usage)


def check_generation(operation: Operation, body: dict[str, Any]) -> None:
    try:
        result = parse_generation(operation, reply_of(body))
    except RequestError as error:
        check_error(error)
        return
    assert isinstance(result, GenerationResult)
    assert isinstance(result.output_text, str)
    for value in (result.output_text, result.reasoning, result.finish_reason, result.request_id, result.model_id):
        assert is_stored_text(value)
    for call in result.tool_calls or ():
        assert isinstance(call.name, str)
        assert isinstance(call.arguments, str)
    check_usage(result.token_usage)
    refusal = refusal_of(result)
    assert refusal is None or refusal == result.output_text


@given(bodies(_CHAT, _PLAIN))
def test_chat(body: dict[str, Any]) -> None:
    check_generation("chat_completion", body)


@given(bodies(_TEXT))
def test_text(body: dict[str, Any]) -> None:
    check_generation("text_completion", body)


@given(bodies(_RESPONSE))
def test_responses(body: dict[str, Any]) -> None:
    check_generation("responses", body)


@given(bodies(_EMBEDDINGS))
def test_embeddings(body: dict[str, Any]) -> None:
    try:
        results = parse_embeddings(reply_of(body), 2, [3, 1])
    except RequestError:
        return
    assert len(results) == 2
    for result in results:
        assert isinstance(result, EmbeddingResult)
        assert result.embedding
        assert all(math.isfinite(number) and abs(number) <= 3.5e38 for number in result.embedding)
        check_usage(result.token_usage)


@given(bodies(_TRANSCRIPT))
def test_transcripts(body: dict[str, Any]) -> None:
    try:
        result = parse_transcription(reply_of(body))
    except RequestError:
        return
    assert isinstance(result, TranscriptionResult)
    assert isinstance(result.text, str)
    assert is_stored_text(result.language)
    assert result.duration_s is None or isinstance(result.duration_s, float)
    check_usage(result.token_usage)


@given(mutated(st.just({"usage": _USAGE}), _any, _keys), st.booleans())
def test_usage(body: dict[str, Any], input_only: bool) -> None:
    check_usage(usage_of(body, input_only=input_only))


@given(mutated(st.just(_ERROR), _any, _keys) | _any | st.binary(max_size=60) | any_text, st.integers(100, 999))
def test_refusals(body: Any, status: int) -> None:
    for each in (body,) if isinstance(body, bytes | str) else (body, written(body), decoded(body)):
        check_refusal(each, status)


def check_refusal(body: Any, status: int) -> None:
    said = said_by(body)
    assert isinstance(said.message, str)
    assert all(isinstance(code, str) for code in said.codes)
    assert issubclass(meaning_of(status, said).kind, RequestError)
    assert 400 <= implied_status(said) < 600
    if isinstance(body, dict):
        assert is_error(body) in (True, False)


@given(mutated(st.just(_MESSAGE), _any, _keys))
def test_contents(message: dict[str, Any]) -> None:
    try:
        content = read_content(message.get("content"))
    except TypeError:
        pass
    else:
        assert all(isinstance(text, str) for text in content)
    assert isinstance(thoughts_in(message.get("reasoning_details")), str)
    thoughts = thoughts_of(message)
    assert thoughts is None or isinstance(thoughts, str)


@given(any_text | _reasons)
def test_endings(reason: str) -> None:
    assert ending(reason) in ("complete", "cut", "filtered", "broken", "unknown")
