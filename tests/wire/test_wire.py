"""Requests to JSON, JSON to results."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infermesh.errors import (
    BadRequestError,
    ContentFilterError,
    ContextLengthError,
    InputError,
    MalformedResponseError,
    RateLimitError,
    RequestError,
    ServerError,
)
from infermesh.results import TokenUsage, ToolCall
from infermesh.types import Audio, Endpoint, Operation, Reply, Request
from infermesh.wire import answers
from infermesh.wire import requests as wire
from infermesh.wire.usage import apportion, usage_of
from infermesh.wire.vectors import parse_embeddings


def reply(body: Any, headers: dict[str, str] | None = None) -> Reply:
    return Reply(200, body, (headers or {}).get)


def chat_reply(message: dict[str, Any], finish_reason: str | None = "stop", **body: Any) -> Reply:
    return reply({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], **body})


class TestRequests:
    def test_messages(self) -> None:
        assert wire.messages_from("hi") == [{"role": "user", "content": "hi"}]
        assert wire.messages_from("hi", "be brief")[0] == {"role": "system", "content": "be brief"}
        own = [{"role": "developer", "content": "mine"}, {"role": "user", "content": "hi"}]
        assert wire.messages_from(own, "be brief") == own
        wire.messages_from(own)[0]["content"] = "changed"
        assert own[0]["content"] == "mine"

    @pytest.mark.parametrize("bad", [[], ["hi"], [{"content": "x"}], 7, None, b"x", {"role": "user"}])
    def test_what_is_no_conversation(self, bad: Any) -> None:
        with pytest.raises(InputError):
            wire.messages_from(bad)

    @pytest.mark.parametrize(
        ("endpoint", "given", "payload"),
        [
            ("chat_completion", "hi", {"messages": [{"role": "user", "content": "hi"}]}),
            ("chat_completion", {"role": "user", "content": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}),
            ("chat_completion", {"messages": "hi", "seed": 1}, {"messages": wire.messages_from("hi"), "seed": 1}),
            ("text_completion", "hi", {"prompt": "hi"}),
            ("text_completion", {"prompt": "hi", "suffix": "!"}, {"prompt": "hi", "suffix": "!"}),
            ("responses", "hi", {"input": "hi"}),
            ("responses", [{"role": "user", "content": "hi"}], {"input": [{"role": "user", "content": "hi"}]}),
            ("responses", {"input": "hi", "instructions": "x"}, {"input": "hi", "instructions": "x"}),
        ],
    )
    def test_inputs(self, endpoint: Endpoint, given: Any, payload: dict[str, Any]) -> None:
        assert wire.generation_request(endpoint, given, {}).payload == payload

    @pytest.mark.parametrize("endpoint", ["chat_completion", "text_completion", "responses"])
    def test_inputs_that_do_not_fit(self, endpoint: Endpoint) -> None:
        bad: Any
        for bad in ({"text": "hi"}, []):
            with pytest.raises(InputError):
                wire.generation_request(endpoint, bad, {})

    @pytest.mark.parametrize("name", ["model", "api_key", "api_base", "extra_headers", "max_retries"])
    def test_parameters_that_belong_elsewhere(self, name: str) -> None:
        with pytest.raises(InputError, match=name):
            wire.generation_request("chat_completion", "hi", {name: "x"})

    @pytest.mark.parametrize("params", [{"stream": True}, {"n": 2}])
    def test_one_whole_answer(self, params: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="not supported"):
            wire.generation_request("chat_completion", "hi", params)

    def test_params(self) -> None:
        params = {"temperature": None, "seed": 0, "extra_body": {"top_k": 3}, "max_completion_tokens": 9}
        request = wire.generation_request("chat_completion", "hi", params)
        assert set(request.payload) == {"messages", "seed", "top_k", "max_completion_tokens"}
        assert request.output_tokens == 9
        assert params["extra_body"] == {"top_k": 3}

    def test_responses_translates_chat_parameters(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        params = {
            "max_tokens": 5,
            "response_format": form,
            "reasoning_effort": "low",
            "tools": [tool, {"type": "web_search"}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "text": {"verbosity": "low"},
        }
        request = wire.generation_request("responses", "hi", params)
        assert request.payload == {
            "input": "hi",
            "max_output_tokens": 5,
            "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "a", "schema": {}, "strict": True}},
            "reasoning": {"effort": "low"},
            "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
            "tool_choice": {"type": "function", "name": "f"},
        }
        assert request.output_tokens == 5
        assert form["json_schema"]["name"] == "a"  # type: ignore[index]

    def test_embeddings(self) -> None:
        assert wire.embedding_request(["a"], {"dimensions": 8}).payload == {"input": ["a"], "dimensions": 8}
        for bad in ([], "text", ["a", None]):
            with pytest.raises(InputError):
                wire.embedding_request(bad, {})  # type: ignore[arg-type]

    def test_transcriptions(self) -> None:
        clip = Audio(b"x", "a.wav")
        request = wire.transcription_request(clip, {"language": "en", "prompt": None})
        assert (request.payload, request.audio) == ({"language": "en"}, clip)
        with pytest.raises(InputError):
            wire.transcription_request(clip, {"file": b""})


class TestBytes:
    def test_body(self) -> None:
        request = wire.generation_request("text_completion", "hi", {"seed": 1})
        assert orjson.loads(b"".join(wire.request_body(request, 'm"x'))) == {"model": 'm"x', "prompt": "hi", "seed": 1}
        assert wire.payload_bytes(request) is wire.payload_bytes(request)
        assert b"".join(wire.request_body(Request("transcription", {}), "m")) == b'{"model":"m"}'
        assert wire.request_body(request, "m")[1].obj is wire.payload_bytes(request)  # not a copy of it

    def test_the_order_of_a_schema_is_kept(self) -> None:
        schema: dict[str, Any] = {"properties": {"reasoning": {}, "answer": {}}}
        request = wire.generation_request("chat_completion", "hi", {"response_format": schema})
        assert b'{"reasoning":{},"answer":{}}' in wire.payload_bytes(request)

    @pytest.mark.parametrize("bad", ["\ud800", {(1, 2): 2}, object()])
    def test_what_has_no_json(self, bad: Any) -> None:
        request = Request("chat_completion", {"messages": [bad]})
        with pytest.raises(InputError, match="JSON"):
            wire.request_body(request, "m")

    def test_key(self) -> None:
        def key(params: dict[str, Any], *extra: str, prompt: str = "hi") -> str:
            return wire.request_key(wire.generation_request("chat_completion", prompt, params), *extra)

        assert len(key({})) == 32
        int(key({}), 16)
        assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
        different = {key({}), key({"a": 1}), key({}, "m"), key({}, "m", "n"), key({}, "mn"), key({}, prompt="ho")}
        assert len(different) == 6
        assert wire.request_key(Request("responses", {"x": 1})) != wire.request_key(Request("embedding", {"x": 1}))

    def test_key_of_a_clip_goes_by_its_content(self) -> None:
        keys = [
            wire.request_key(wire.transcription_request(Audio(d, n), {}))
            for d, n in ((b"x", "a"), (b"x", "b"), (b"y", "a"))
        ]
        assert keys[0] == keys[1] != keys[2]


PROMPTS = ["Hello.", 'A "quoted"\nline\\', "Größe \u2028 \U0001f600", "", "Hello."]


class TestPromptForm:
    @pytest.mark.parametrize("endpoint", ["chat_completion", "text_completion", "responses"])
    @pytest.mark.parametrize("system", [None, "Be brief."])
    def test_its_requests_are_those_of_the_plain_way(self, endpoint: Endpoint, system: str | None) -> None:
        def make(prompt: str) -> Request:
            given: Any = prompt
            if system is not None:
                given = f"{system} {prompt}" if endpoint != "chat_completion" else wire.messages_from(prompt, system)
            return wire.generation_request(endpoint, given, {"temperature": 0.5, "max_tokens": 7, "zeta": {"b": 1}})

        form = wire.PromptForm(make)
        for prompt in PROMPTS:
            request, plain = form.request(prompt), make(prompt)
            assert request.payload == plain.payload
            assert request.output_tokens == plain.output_tokens
            assert wire.payload_bytes(request) == wire.payload_bytes(plain)
            assert wire.request_key(request, "m") == wire.request_key(plain, "m")

    def test_a_template_is_made_for_the_second_request_and_not_for_the_first(self) -> None:
        made = []

        def make(prompt: str) -> Request:
            made.append(prompt)
            return wire.generation_request("chat_completion", prompt, {})

        form = wire.PromptForm(make)
        form.request("One.")
        assert made == ["One."]
        for prompt in ("Two.", "Three.", "Four."):
            form.request(prompt)
        assert len(made) == 2

    def test_what_has_no_json_form_is_an_input_error_each_time(self) -> None:
        form = wire.PromptForm(lambda prompt: wire.generation_request("chat_completion", prompt, {}))
        for _ in range(3):
            with pytest.raises(InputError, match="JSON"):
                wire.payload_bytes(form.request("\ud800"))
        form = wire.PromptForm(lambda prompt: wire.generation_request("chat_completion", prompt, {"model": "m"}))
        for _ in range(3):
            with pytest.raises(InputError, match="deployment"):
                form.request("Hello.")


class TestEstimate:
    def test_text(self) -> None:
        assert wire.estimate_tokens(wire.generation_request("text_completion", "x" * 400, {})) == 100
        assert wire.estimate_tokens(wire.generation_request("chat_completion", "x" * 400, {})) == 104
        assert wire.estimate_tokens(wire.generation_request("chat_completion", "漢" * 400, {})) == 304
        assert wire.estimate_tokens(wire.embedding_request(["x" * 40, "y" * 8], {})) == 12
        assert (
            wire.estimate_tokens(wire.generation_request("responses", {"input": "x" * 8, "instructions": "y" * 4}, {}))
            == 3
        )
        assert wire.estimate_tokens(Request("embedding", {"input": [[1, 2, 3], [4]]})) == 4

    def test_images_count_alike(self) -> None:
        def size(url: str) -> int:
            content = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": url}}]
            return wire.estimate_tokens(
                wire.generation_request("chat_completion", [{"role": "user", "content": content}], {})
            )

        assert size("http://a") == size("data:image/png;base64," + "A" * 100_000) > 700


class TestGenerations:
    def test_parts_and_reasoning(self) -> None:
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "yes"}]
        result = answers.parse_generation("chat_completion", chat_reply({"content": parts}))
        assert (result.output_text, result.reasoning) == ("yes", "hm")
        result = answers.parse_generation("chat_completion", chat_reply({"content": "x", "reasoning": "why"}))
        assert result.reasoning == "why"

    def test_refusal(self) -> None:
        result = answers.parse_generation("chat_completion", chat_reply({"content": None, "refusal": "I can't."}))
        assert (result.output_text, result.finish_reason) == ("I can't.", "stop")

    def test_request_id(self) -> None:
        assert answers.parse_generation("chat_completion", chat_reply({"content": "x"}, id="c-1")).request_id == "c-1"
        bare = chat_reply({"content": "x"})
        bare.header = {"x-request-id": "r-1"}.get
        assert answers.parse_generation("chat_completion", bare).request_id == "r-1"

    def test_tool_call_arguments_as_an_object(self) -> None:
        calls = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"id": "c", "function": {"name": "g"}}]
        result = answers.parse_generation("chat_completion", chat_reply({"content": None, "tool_calls": calls}))
        assert result.tool_calls == [ToolCall(None, "f", '{"a":1}'), ToolCall("c", "g", "{}")]

    def test_content_filter(self) -> None:
        with pytest.raises(ContentFilterError):
            answers.parse_generation("chat_completion", chat_reply({"content": ""}, "content_filter"))
        cut = answers.parse_generation("chat_completion", chat_reply({"content": "part"}, "content_filter"))
        assert (cut.output_text, cut.finish_reason) == ("part", "content_filter")

    @pytest.mark.parametrize(
        ("operation", "body"),
        [
            ("chat_completion", {}),
            ("chat_completion", {"choices": []}),
            ("chat_completion", {"choices": None}),
            ("chat_completion", {"choices": [1]}),
            ("chat_completion", {"choices": [{}]}),
            ("chat_completion", {"choices": [{"message": {"content": 7}}]}),
            ("chat_completion", {"choices": [{"message": {"tool_calls": [{"id": "x"}]}}]}),
            ("chat_completion", {"choices": [{"message": {"tool_calls": ["x"]}}]}),
            ("chat_completion", {"choices": [{"message": {"tool_calls": [{"function": {"name": 7}}]}}]}),
            ("chat_completion", {"error": {"message": "upstream failed"}}),
            ("text_completion", {"choices": [{"text": None}]}),
            ("text_completion", {"choices": [{"message": {"content": "x"}}]}),
            ("responses", {}),
            ("responses", {"output": [1]}),
            ("responses", {"output": [{"type": "message"}]}),
            ("responses", {"output": [{"type": "message", "content": [{"type": "output_text", "text": 7}]}]}),
        ],
    )
    def test_malformed(self, operation: Operation, body: Any) -> None:
        with pytest.raises(MalformedResponseError, match="expected") as caught:
            answers.parse_generation(operation, reply(body))
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("server_error", ServerError),
            ("rate_limit_exceeded", RateLimitError),
            ("invalid_prompt", BadRequestError),
            ("image_too_large", BadRequestError),
            ("vector_store_timeout", ServerError),
            ("server_is_overloaded", ServerError),
            ("insufficient_quota", RateLimitError),
            ("context_length_exceeded", ContextLengthError),
            (None, ServerError),
        ],
    )
    def test_failed_response(self, code: str | None, expected: type[RequestError]) -> None:
        body = {"id": "r", "status": "failed", "error": {"code": code, "message": "no"}, "output": []}
        with pytest.raises(expected) as caught:
            answers.parse_generation("responses", reply(body))
        assert (type(caught.value), caught.value.request_id) == (expected, "r")


class TestUsage:
    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, TokenUsage(1, 2, 3)),
            ({"prompt_tokens": 1, "completion_tokens": None}, TokenUsage(1, 0, 1)),
            ({"input_tokens": 1, "output_tokens": 2}, TokenUsage(1, 2, 3)),
            (
                {
                    "input_tokens": 9,
                    "output_tokens": 5,
                    "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens_details": {"reasoning_tokens": 0},
                },
                TokenUsage(9, 5, 14, 0, 4),
            ),
            ({"prompt_tokens": "many"}, None),
            ({"type": "duration", "seconds": 3}, None),
            (None, None),
            ([], None),
        ],
    )
    def test_shapes(self, usage: Any, expected: TokenUsage | None) -> None:
        assert usage_of({"usage": usage}) == expected

    def test_none(self) -> None:
        assert usage_of({}) is None


class TestEmbeddings:
    def body(self, *vectors: Any) -> dict[str, Any]:
        return {"data": [{"index": i, "embedding": v} for i, v in enumerate(vectors)], "usage": {"prompt_tokens": 10}}

    def test_base64(self) -> None:
        packed = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
        assert parse_embeddings(reply(self.body(packed)), 1)[0].embedding == [0.5, -2.0]

    def test_without_index(self) -> None:
        body = {"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}
        assert [r.embedding for r in parse_embeddings(reply(body), 2)] == [[1.0], [2.0]]

    @pytest.mark.parametrize(
        ("indices", "order"),
        [
            ([2, 0, 1], [2.0, 3.0, 1.0]),
            (["2", "0", "1"], [2.0, 3.0, 1.0]),
            ([2.0, 0.0, 1.0], [2.0, 3.0, 1.0]),
            ([2, None, 1], [2.0, 3.0, 1.0]),
            ([None, None, None], [1.0, 2.0, 3.0]),
            ([0, 0, 0], [1.0, 2.0, 3.0]),
            ([0, 0, 1], None),
            ([0, None, None], None),
            ([3, None, 1], None),
        ],
    )
    def test_indices(self, indices: list[Any], order: list[float] | None) -> None:
        body = {"data": [{"index": index, "embedding": [i + 1.0]} for i, index in enumerate(indices)]}
        if order is None:
            with pytest.raises(MalformedResponseError, match="each index 0 … 2 once"):
                parse_embeddings(reply(body), 3)
        else:
            assert [r.embedding for r in parse_embeddings(reply(body), 3)] == [[number] for number in order]

    def test_usage_by_weight(self) -> None:
        results = parse_embeddings(reply(self.body([1.0], [2.0], [3.0])), 3, weights=[1, 1, 5])
        assert [r.token_usage for r in results] == [TokenUsage(2, 0, 2), TokenUsage(1, 0, 1), TokenUsage(7, 0, 7)]

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"data": []},
            {"data": [{"embedding": [1.0]}]},
            {"data": [{"index": "a", "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
            {"data": [{"index": 0.5, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 5, "embedding": [1.0]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": -1, "embedding": [1.0]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, 7]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [None]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": ["a"]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [float("nan")]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1e39]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1e39, -1e39]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [10**400]}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "!!!"}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AAAA"}]},
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": None}]},
        ],
    )
    def test_malformed(self, body: dict[str, Any]) -> None:
        with pytest.raises(MalformedResponseError, match="expected"):
            parse_embeddings(reply(body), 2)


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (0, [1, 2], [0, 0]),
        (7, [0, 0], [4, 3]),
        (5, [], []),
        (100, [1, 99], [1, 99]),
        (1, [1, 5], [0, 1]),
    ],
)
def test_apportion(total: int, weights: list[int], shares: list[int]) -> None:
    assert apportion(total, weights) == shares


class TestTranscriptions:
    def test_verbose(self) -> None:
        result = answers.parse_transcription(reply({"text": "hi", "language": "Haitian Creole", "duration": "2.50"}))
        assert (result.text, result.language, result.duration_s) == ("hi", "ht", 2.5)

    def test_plain(self) -> None:
        result = answers.parse_transcription(
            reply({"text": "", "usage": {"type": "duration", "seconds": 3}, "language": "de"})
        )
        assert (result.text, result.language, result.duration_s, result.token_usage) == ("", "de", 3.0, None)

    def test_tokens(self) -> None:
        body = {"text": "hi", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 2, "total_tokens": 16}}
        result = answers.parse_transcription(reply(body))
        assert (result.token_usage, result.language, result.duration_s) == (TokenUsage(14, 2, 16), None, None)

    def test_malformed(self) -> None:
        with pytest.raises(MalformedResponseError):
            answers.parse_transcription(reply({"transcript": "hi"}))


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3, 4]], {"prompt": ["a", "b"]}, [1, "a"]])
def test_several_prompts_are_no_prompt(prompt: Any) -> None:
    with pytest.raises(InputError, match="request of its own"):
        wire.generation_request("text_completion", prompt, {})


def test_token_ids_are_one_prompt() -> None:
    tokens: Any = [1, 2, 3]
    assert wire.generation_request("text_completion", tokens, {}).payload["prompt"] == [1, 2, 3]


@pytest.mark.parametrize(
    "params", [{}, {"dimensions": 8}, {"user": "me", "dimensions": 8, "zeta": [1]}, {"user": None}]
)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_texts_key_is_that_of_a_request_with_this_text_alone(params: dict[str, Any], text: str) -> None:
    keys = wire.embedding_keys(params, "m", "x")
    assert keys(text) == wire.request_key(wire.embedding_request([text], params), "m", "x")


@pytest.mark.parametrize("text", ["half \ud800", 5, None])
def test_what_is_no_text_has_no_key(text: Any) -> None:
    with pytest.raises(InputError):
        wire.embedding_keys({}, "m")(text)
