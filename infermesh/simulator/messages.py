"""Answers in the shape of Anthropic's Messages API, whole or as server-sent events.

Source: https://docs.claude.com/en/api/messages, and what the anthropic SDK sends and reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from infermesh.simulator.content import count_tokens
from infermesh.simulator.generation import Generation
from infermesh.simulator.wire import MessagesRequest, Tool, ToolChoice

__all__ = ["message", "message_events", "tools_of", "wanted_format"]

_CHUNK_CHARS = 16


def tools_of(request: MessagesRequest) -> tuple[list[Tool], str | ToolChoice | None]:
    """Return the tools and the choice as OpenAI says them."""
    tools = [Tool(name=tool.name, parameters=tool.input_schema) for tool in request.tools or []]
    choice = request.tool_choice
    if choice is None or choice.type != "any":
        return tools, choice if choice is not None and choice.type == "tool" else None
    return tools, "required"


def wanted_format(request: MessagesRequest) -> dict[str, Any] | bool | None:
    """Return the JSON schema of the answer. None: free text."""
    config = request.output_config
    wanted = config.format if config is not None and config.format is not None else request.output_format
    return None if wanted is None else wanted.definition


def message(head: dict[str, Any], choice: Generation, prompt_tokens: int, tier: str) -> dict[str, Any]:
    """Return the whole message. `tier` is its `usage.service_tier`: `standard`, or `batch`."""
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    if choice.tool is None:
        content.append({"type": "text", "text": choice.text})
    else:
        # What max_tokens cuts off is no JSON: an empty input then, as nobody can say what it would have been.
        arguments = {} if choice.cut else orjson.loads(choice.text)
        content.append({"type": "tool_use", "id": f"toolu-{head['id']}", "name": choice.tool, "input": arguments})
    return {
        **head,
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": _stop_reason(choice),
        "stop_sequence": None,
        "usage": _usage(prompt_tokens, choice.tokens, tier),
    }


def message_events(head: dict[str, Any], choice: Generation, prompt_tokens: int) -> list[tuple[bytes, int]]:
    """Return the events of a streamed message, each with the tokens that are decoded before it."""
    whole = message(head, choice, prompt_tokens, "standard")
    start = {**whole, "content": [], "stop_reason": None, "usage": _usage(prompt_tokens, 0, "standard")}
    events = [(_event("message_start", message=start), 0)]
    for index, block in enumerate(whole["content"]):
        empty, deltas = _parts(block, choice)
        events.append((_event("content_block_start", index=index, content_block=empty), 0))
        for delta, tokens in deltas:
            events.append((_event("content_block_delta", index=index, delta=delta), tokens))
        events.append((_event("content_block_stop", index=index), 0))
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events.append((_event("message_delta", delta=end, usage={"output_tokens": choice.tokens}), 0))
    events.append((_event("message_stop"), 0))
    return events


def _parts(block: dict[str, Any], choice: Generation) -> tuple[dict[str, Any], Iterator[tuple[dict[str, Any], int]]]:
    """A block as it starts, and what is added to it piece by piece."""
    if block["type"] == "tool_use":
        kind, name, text, empty = "input_json_delta", "partial_json", choice.text, {**block, "input": {}}
    elif block["type"] == "thinking":
        kind, name, text, empty = "thinking_delta", "thinking", block["thinking"], {**block, "thinking": ""}
    else:
        kind, name, text, empty = "text_delta", "text", block["text"], {**block, "text": ""}
    pieces = (text[start : start + _CHUNK_CHARS] for start in range(0, len(text), _CHUNK_CHARS))
    return empty, (({"type": kind, name: piece}, count_tokens(piece)) for piece in pieces)


def _stop_reason(choice: Generation) -> str:
    if choice.cut:
        return "max_tokens"
    return "end_turn" if choice.tool is None else "tool_use"


def _usage(prompt_tokens: int, tokens: int, tier: str) -> dict[str, Any]:
    return {
        "input_tokens": prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": tokens,
        "service_tier": tier,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"
