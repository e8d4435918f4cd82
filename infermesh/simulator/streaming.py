"""Write answers as server-sent events, in chunks like OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from infermesh.simulator.content import count_tokens
from infermesh.simulator.generation import Generation

__all__ = ["DONE", "chat_events", "completion_events"]

Events = list[tuple[bytes, int]]

DONE = b"data: [DONE]\n\n"
_CHUNK_CHARS = 16


def chat_events(head: dict[str, Any], choices: list[Generation], usage: dict[str, Any], include_usage: bool) -> Events:
    """Return the events of a streamed chat completion, each with the tokens that are decoded before it."""
    base = {**head, "object": "chat.completion.chunk"}
    return _events(base, choices, usage, include_usage, _chat_deltas)


def completion_events(
    head: dict[str, Any], choices: list[Generation], usage: dict[str, Any], include_usage: bool
) -> Events:
    """Return the events of a streamed text completion, each with the tokens that are decoded before it."""
    return _events({**head, "object": "text_completion"}, choices, usage, include_usage, _text_deltas)


def _events(
    base: dict[str, Any], choices: list[Generation], usage: dict[str, Any], include_usage: bool, deltas: Any
) -> Events:
    if include_usage:
        base = {**base, "usage": None}
    events: Events = []
    for index, choice in enumerate(choices):
        for part, tokens in deltas(choice, f"call-{base['id']}-{index}"):
            listed = {"index": index, "logprobs": None, "finish_reason": None, **part}
            events.append((_event({**base, "choices": [listed]}), tokens))
    if include_usage:
        events.append((_event({**base, "choices": [], "usage": usage}), 0))
    events.append((DONE, 0))
    return events


def _chat_deltas(choice: Generation, call_id: str) -> Iterator[tuple[dict[str, Any], int]]:
    yield {"delta": {"role": "assistant", "content": "" if choice.tool is None else None}}, 0
    for piece in _pieces(choice.reasoning):
        yield {"delta": {"reasoning_content": piece}}, count_tokens(piece)
    if choice.tool is not None:
        call = {"index": 0, "id": call_id, "type": "function", "function": {"name": choice.tool, "arguments": ""}}
        yield {"delta": {"tool_calls": [call]}}, 0
    for piece in _pieces(choice.text):
        delta: dict[str, Any] = {"content": piece}
        if choice.tool is not None:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        yield {"delta": delta}, count_tokens(piece)
    usual = "stop" if choice.tool is None else "tool_calls"
    yield {"delta": {}, "finish_reason": "length" if choice.cut else usual}, 0


def _text_deltas(choice: Generation, call_id: str) -> Iterator[tuple[dict[str, Any], int]]:
    for piece in _pieces(choice.text):
        yield {"text": piece}, count_tokens(piece)
    yield {"text": "", "finish_reason": "length" if choice.cut else "stop"}, 0


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _CHUNK_CHARS):
        yield text[start : start + _CHUNK_CHARS]


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
