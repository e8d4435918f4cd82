"""The text, the thoughts and the calls of an answer, in whatever part or field they come."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.errors import MalformedResponseError
from infermesh.exact_json import dumps, loads
from infermesh.results import GenerationResult, ToolCall
from infermesh.types import Operation, Reply
from infermesh.wire.answers import parse_generation, refusal_of

WEI = 19876543210987654321


def parsed(body: dict[str, Any], operation: Operation = "chat_completion") -> GenerationResult:
    """The reading of a body as it comes off the network, where long integers are floats at first."""
    data = dumps(body)
    rounded = loads(data.replace(str(WEI).encode(), b"1.9876543210987655e19"))
    return parse_generation(operation, Reply(200, rounded, lambda name: None, data))


def chat(content: Any, **message: Any) -> GenerationResult:
    return parsed({"choices": [{"finish_reason": "stop", "message": {"content": content, **message}}]})


HI = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([HI], ("hi", None)),
        ([{"type": "output_text", "text": "hi"}], ("hi", None)),
        ([{"text": "hi"}], ("hi", None)),
        (HI, ("hi", None)),
        (["h", "i"], ("hi", None)),
        ([{"type": "text", "text": {"value": "hi", "annotations": []}}], ("hi", None)),
        ([{"type": "refusal", "refusal": "no"}], ("no", None)),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "th"}]}, HI], ("hi", "th")),
        ([{"type": "reasoning", "text": "th"}, HI], ("hi", "th")),
        ([{"type": "thinking", "thinking": [HI]}, HI], ("hi", "hi")),
        ([{"type": "thinking", "thinking": "th", "signature": "x"}, HI], ("hi", "th")),
        ([{"type": "image_url", "image_url": {"url": "data:"}}, HI], ("hi", None)),
        ({"city": "Oslo"}, ('{"city":"Oslo"}', None)),
        ({"type": "city", "wei": WEI}, (f'{{"type":"city","wei":{WEI}}}', None)),
        ([{"city": "Oslo"}], ('[{"city":"Oslo"}]', None)),
        ([1, 2], ("[1,2]", None)),
    ],
)
def test_content(content: Any, expected: tuple[str, str | None]) -> None:
    result = chat(content)
    assert (result.output_text, result.reasoning) == expected


@pytest.mark.parametrize("content", [7, True, [{"type": "text", "text": 7}]])
def test_what_is_no_content(content: Any) -> None:
    with pytest.raises(MalformedResponseError, match="content as text"):
        chat(content)


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"reasoning": "th"}, "th"),
        ({"reasoning_content": "th"}, "th"),
        ({"reasoning": {"content": "th"}}, "th"),
        ({"reasoning_content": [HI, HI]}, "hihi"),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "t"}, {"text": "h"}]}, "th"),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, None),
        ({"thinking": "th"}, "th"),
        ({"reasoning": 7, "thinking": "th"}, "th"),
        ({"reasoning": None, "reasoning_content": "", "reasoning_details": []}, None),
    ],
)
def test_reasoning(message: dict[str, Any], reasoning: str | None) -> None:
    result = chat("hi", **message)
    assert (result.output_text, result.reasoning) == ("hi", reasoning)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ({"function_call": {"name": "n", "arguments": "{}"}}, ToolCall(None, "n", "{}")),
        (
            {"tool_calls": [{"id": "c", "custom": {"name": "n", "input": "i"}}]},
            ToolCall("c", "n", "i"),
        ),
        (
            {"tool_calls": [{"id": "c", "function": {"name": "n", "arguments": {"wei": WEI}}}]},
            ToolCall("c", "n", f'{{"wei":{WEI}}}'),
        ),
    ],
)
@pytest.mark.parametrize("content", [None, "hi"])
def test_calls(content: str | None, message: dict[str, Any], call: ToolCall) -> None:
    assert chat(content, **message).tool_calls == [call]


def test_responses() -> None:
    result = parsed(
        {
            "status": "completed",
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}, {"text": "h"}]},
                {"type": "message", "content": [{"type": "output_text", "text": "hi", "logprobs": [1]}, {"text": "!"}]},
                {"type": "message", "content": "?"},
                {"type": "function_call", "call_id": "c", "name": "n", "arguments": {"wei": WEI}},
                {"type": "custom_tool_call", "call_id": "d", "name": "m", "input": "i"},
            ],
        },
        "responses",
    )
    assert (result.output_text, result.reasoning, result.logprobs) == ("hi!?", "t\nh", {"content": [1]})
    assert result.tool_calls == [ToolCall("c", "n", f'{{"wei":{WEI}}}'), ToolCall("d", "m", "i")]


def test_refusals_are_told_from_answers() -> None:
    assert refusal_of(chat(None, refusal="no")) == "no"
    assert refusal_of(chat([{"type": "refusal", "refusal": "no"}])) == "no"
    assert refusal_of(chat("yes", refusal="no")) is None
    assert refusal_of(chat("yes")) is None
    content = [{"type": "refusal", "refusal": "no"}]
    body = {"status": "completed", "output": [{"type": "message", "content": content}]}
    assert refusal_of(parsed(body, "responses")) == "no"
