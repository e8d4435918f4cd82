"""Chat, completions and responses: shapes, content, streams and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

Start = Callable[..., Any]
Ask = Callable[..., Any]

TICKET = (
    "You are a support analyst. Summarize the ticket in one sentence. Classify it as billing, technical or other.\n\n"
    "<ticket>\nGood morning. The invoice for May shows the subscription twice, and billing charged my card for both. "
    "Please refund one of the two invoice charges. Kind regards from Oslo.\n</ticket>"
)
SCHEMA = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "category": {"enum": ["technical", "billing", "other"]}},
    "required": ["summary", "category"],
    "additionalProperties": False,
}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "triage", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "open_case", "description": "Opens a case", "parameters": SCHEMA}}


def events(body: bytes) -> list[Any]:
    lines = [line for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_chat_has_openais_shape(start: Start, chat: Ask) -> None:
    types = pytest.importorskip("openai.types.chat")
    reply = chat(start(reasoning_tokens=7), TICKET, n=2, tools=[TOOL], tool_choice="required", model="some/model")
    answer = types.ChatCompletion.model_validate(reply.json(), strict=True)
    assert reply.status == 200
    assert reply.headers["x-request-id"].startswith("req_")
    assert answer.model == "some/model"
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == 14


def test_an_answer_quotes_the_document_and_not_the_instructions(start: Start, chat: Ask) -> None:
    text = chat(start(), TICKET).text()
    assert "invoice" in text
    assert "Summarize" not in text
    assert all(sentence in TICKET for sentence in text.split(". "))


@pytest.mark.parametrize(
    "prompt",
    [
        'Summarize this.\n"""The pump of the second boiler leaks oil. It started in June."""',
        "Summarize the following report:\n\nThe pump of the second boiler leaks oil. It started in June.",
        "Summarize this report: The pump of the second boiler leaks oil. It started in June.",
        "Please summarize what follows. The pump of the second boiler leaks oil. It started in June.",
        "Report:\nThe pump of the second boiler leaks oil. It started in June.\n\nAnswer in one sentence.",
    ],
)
def test_delimiters(start: Start, chat: Ask, prompt: str) -> None:
    assert chat(start(answer_sentences=1), prompt).text() == "The pump of the second boiler leaks oil."


def test_the_last_user_message_counts(start: Start, chat: Ask) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Whales are mammals."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "Sharks are fish."}, {"type": "image_url"}]},
    ]
    assert chat(start(), messages=messages).text() == "Sharks are fish."


def test_the_same_seed_gives_the_same_answer(start: Start, chat: Ask) -> None:
    schema = {"type": "object", "properties": {"score": {"type": "number"}, "id": {"type": "string", "format": "uuid"}}}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    first, second, other = start(seed=1), start(seed=1), start(seed=2)
    assert chat(first, TICKET, response_format=form).text() == chat(second, TICKET, response_format=form).text()
    assert chat(first, TICKET, response_format=form).text() != chat(other, TICKET, response_format=form).text()


def test_max_tokens_cuts(start: Start, chat: Ask) -> None:
    simulator = start()
    for field in ("max_tokens", "max_completion_tokens"):
        answer = chat(simulator, TICKET, **{field: 3}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 3
        assert len(answer["choices"][0]["message"]["content"]) == 12
    whole = chat(simulator, TICKET).json()["usage"]["completion_tokens"]
    reasons = [
        chat(simulator, TICKET, max_tokens=most).json()["choices"][0]["finish_reason"] for most in (whole - 1, whole)
    ]
    assert reasons == ["length", "stop"]


def test_reasoning_uses_up_max_tokens(start: Start, chat: Ask) -> None:
    simulator = start(reasoning_tokens=10)
    answer = chat(simulator, TICKET, max_tokens=8).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == ""
    assert len(message["reasoning_content"]) == 32
    assert answer["usage"]["completion_tokens"] == 8


def test_choices_differ(start: Start, chat: Ask) -> None:
    choices = chat(start(answer_sentences=1), TICKET, n=3).json()["choices"]
    assert len({choice["message"]["content"] for choice in choices}) == 3


def test_json_satisfies_the_schema_and_finds_the_category(start: Start, chat: Ask) -> None:
    value = json.loads(chat(start(), TICKET, response_format=JSON_FORMAT).text())
    jsonschema.validate(value, SCHEMA)
    assert value["category"] == "billing"
    assert "invoice" in value["summary"]


def test_json_object(start: Start, chat: Ask) -> None:
    assert isinstance(json.loads(chat(start(), TICKET, response_format={"type": "json_object"}).text()), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "open_case"}}])
def test_tool_calls(start: Start, chat: Ask, choice: Any) -> None:
    answer = chat(start(), TICKET, tools=[TOOL], tool_choice=choice).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    call = answer["message"]["tool_calls"][0]["function"]
    assert call["name"] == "open_case"
    jsonschema.validate(json.loads(call["arguments"]), SCHEMA)


def test_tools_are_optional_otherwise(start: Start, chat: Ask) -> None:
    message = chat(start(), TICKET, tools=[TOOL], tool_choice="auto").json()["choices"][0]["message"]
    assert message["content"]
    assert "tool_calls" not in message


@pytest.mark.parametrize("speed", [None, 100_000.0])
def test_a_stream_says_the_same(start: Start, chat: Ask, speed: float | None) -> None:
    simulator = start(reasoning_tokens=9, tokens_per_second=speed)
    whole = chat(simulator, TICKET, n=2).json()
    chunks = events(chat(simulator, TICKET, n=2, stream=True, stream_options={"include_usage": True}).body)
    for index, choice in enumerate(whole["choices"]):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == index]
        for field in ("content", "reasoning_content"):
            assert "".join(part["delta"].get(field) or "" for part in parts) == choice["message"][field]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_stream_chunks_have_openais_shape(start: Start, chat: Ask) -> None:
    types = pytest.importorskip("openai.types.chat")
    simulator = start()
    reply = chat(simulator, TICKET, stream=True, tools=[TOOL], tool_choice="required")
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["x-request-id"]
    chunks = [types.ChatCompletionChunk.model_validate(event) for event in events(reply.body)]
    calls = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].name == "open_case"
    jsonschema.validate(json.loads("".join(call.arguments for call in calls)), SCHEMA)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert "usage" not in events(reply.body)[0]


def test_completions(start: Start, ask: Ask) -> None:
    types = pytest.importorskip("openai.types")
    simulator = start()
    body = {"model": "m", "prompt": ["Bees make honey.", "Cows give milk."], "max_tokens": 64}
    reply = ask(simulator, "/v1/completions", body)
    answer = types.Completion.model_validate(reply.json(), strict=True)
    assert [choice.text for choice in answer.choices] == body["prompt"]
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == 8
    streamed = events(ask(simulator, "/v1/completions", {**body, "stream": True}).body)
    texts = [chunk["choices"][0]["text"] for chunk in streamed if chunk["choices"][0]["index"] == 1]
    assert "".join(texts) == "Cows give milk."
    echoed = ask(simulator, "/v1/completions", {"model": "m", "prompt": "Bees. ", "echo": True}).json()
    assert echoed["choices"][0]["text"] == "Bees. Bees."


def test_responses(start: Start, ask: Ask) -> None:
    types = pytest.importorskip("openai.types.responses")
    simulator = start(reasoning_tokens=5)
    form = {"format": {"type": "json_schema", "name": "triage", "schema": SCHEMA}}
    body = {"model": "m", "instructions": "Answer in JSON.", "input": TICKET, "text": form}
    answer = types.Response.model_validate(ask(simulator, "/v1/responses", body).json(), strict=True)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.status == "completed"
    assert answer.usage.output_tokens_details.reasoning_tokens == 5
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_responses_items_tools_and_limits(start: Start, ask: Ask) -> None:
    simulator = start()
    items = [{"role": "user", "content": [{"type": "input_text", "text": TICKET}]}]
    cut = ask(simulator, "/v1/responses", {"model": "m", "input": items, "max_output_tokens": 2}).json()
    assert cut["status"] == "incomplete"
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut["usage"]["output_tokens"] == 2
    tool = {"type": "function", "name": "open_case", "parameters": SCHEMA}
    call = ask(simulator, "/v1/responses", {"model": "m", "input": items, "tools": [tool], "tool_choice": "required"})
    output = call.json()["output"][0]
    assert (output["type"], output["name"]) == ("function_call", "open_case")
    jsonschema.validate(json.loads(output["arguments"]), SCHEMA)
    assert ask(simulator, "/v1/responses", {"model": "m", "input": "x", "stream": True}).status == 400


def test_bad_requests(start: Start, ask: Ask, chat: Ask) -> None:
    simulator = start()
    path = "/v1/chat/completions"
    missing = ask(simulator, path, {"model": "m"})
    assert (missing.status, missing.code()) == (400, "missing_required_parameter")
    assert missing.json()["error"]["param"] == "messages"
    assert (ask(simulator, path, b"{nonsense").status, ask(simulator, path, b"[1]").code()) == (400, "invalid_json")
    wrong: list[dict[str, Any]] = [{"messages": []}, {"n": 0}, {"max_tokens": "9"}, {"messages": [{"content": "x"}]}]
    for fields in wrong[:3]:
        reply = chat(simulator, **fields)
        assert reply.status == 400
        assert reply.code() == "invalid_value"
    assert chat(simulator, **wrong[3]).json()["error"]["param"] == "messages.0.role"
    assert chat(simulator, messages=[{"role": "user", "content": 5}]).json()["error"]["param"] == "messages.0.content"
    assert chat(simulator, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "no"}}).status == 400
    huge = {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "minimum": 1e30}}}
    assert chat(simulator, response_format=huge).code() == "invalid_json_schema"
    broken = {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/Nowhere"}}}
    assert chat(simulator, response_format=broken).code() == "invalid_json_schema"
    assert ask(simulator, "/v1/nothing", {}).status == 404
    assert ask(simulator, path, None, method="GET").status == 405
    assert chat(simulator).status == 200


def test_refusals_of_the_service(start: Start, chat: Ask, ask: Ask) -> None:
    simulator = start(models=["known"], context_window=20, filter_marker="FORBIDDEN")
    assert chat(simulator, model="known").status == 200
    unknown = chat(simulator)
    assert (unknown.status, unknown.code()) == (404, "model_not_found")
    long = chat(simulator, "word " * 30, model="known")
    assert (long.status, long.code()) == (400, "context_length_exceeded")
    filtered = chat(simulator, "This is FORBIDDEN.", model="known")
    assert (filtered.status, filtered.code()) == (400, "content_filter")
    listed = ask(simulator, "/v1/models", None, method="GET").json()
    assert [model["id"] for model in listed["data"]] == ["known"]


def test_keys_and_sizes(start: Start, ask: Ask) -> None:
    simulator = start(api_key="right", max_body_bytes=500)
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
    path = "/v1/chat/completions"
    assert ask(simulator, path, body, {"Authorization": "Bearer right"}).status == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = ask(simulator, path, body, headers)
        assert (refused.status, refused.code()) == (401, "invalid_api_key")
        assert ask(simulator, "/v1/models", None, headers, method="GET").status == 401
    assert ask(simulator, path, b"x" * 501, {"Authorization": "Bearer right"}).status == 413
