"""Answer a request from its content alone: no network, no clock but for `created`, no state but the counter of ids."""

from __future__ import annotations

import itertools
import time
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from infermesh.simulator import audio
from infermesh.simulator.content import Prompt, count_tokens, invented_words, pick
from infermesh.simulator.errors import ApiError, from_validation
from infermesh.simulator.gemini import GeminiRequest, content
from infermesh.simulator.generation import FREE_JSON, Generation, Task, choose_tool, generate
from infermesh.simulator.messages import message, message_events, tools_of, wanted_format
from infermesh.simulator.settings import SimulatorSettings
from infermesh.simulator.streaming import chat_events, completion_events
from infermesh.simulator.vectors import embed, to_base64
from infermesh.simulator.wire import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    Message,
    MessagesRequest,
    ResponseFormat,
    ResponsesRequest,
    TranscriptionForm,
)

__all__ = ["Answer", "Answers"]

RequestT = TypeVar("RequestT", bound=BaseModel)

_WORDS_PER_SECOND = 2.5
_MOST_INPUTS = 2048


@dataclass(slots=True)
class Answer:
    """What is sent, and what it costs.

    Attributes
    ----------
    body
        The answer; empty for a stream.
    total_tokens
        Charged to the quota.
    prompt_tokens
        Those of them that were read.
    decode_tokens
        Those of the longest choice: choices are decoded in parallel.
    events
        The server-sent events of a stream, each with the tokens that are decoded before it. None: no stream.
    spoiled
        Whether the content was broken, as the caller asked.
    """

    body: bytes
    total_tokens: int
    decode_tokens: int = 0
    content_type: str = "application/json"
    events: list[tuple[bytes, int]] | None = None
    spoiled: bool = False
    prompt_tokens: int = 0


class Answers:
    """Answers requests: one method for each endpoint.

    Parameters
    ----------
    settings
        What the service knows.

    Notes
    -----
    Each method takes the decoded request, and whether to break JSON content. It raises `ApiError` for what OpenAI
    refuses.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._serial = itertools.count(1)

    def chat(self, data: Any, spoil: bool = False) -> Answer:
        """Answer `POST /v1/chat/completions`, streamed or not."""
        request = _validated(ChatRequest, data)
        texts = [message.text() for message in request.messages]
        self._admit(request.model, texts)
        prompt = Prompt(_last_of_user(request.messages))
        task = Task(
            prompt,
            request.max_completion_tokens or request.max_tokens,
            _wanted_schema(request.response_format),
            choose_tool(prompt, request.tools or [], request.tool_choice),
            spoil,
        )
        choices = [generate(task, self._settings, variant) for variant in range(request.n or 1)]
        prompt_tokens = sum(map(count_tokens, texts))
        usage = _usage(prompt_tokens, choices)
        head: dict[str, Any] = {"id": self._id("chatcmpl"), "created": int(time.time()), "model": request.model}
        if request.service_tier is not None:
            head["service_tier"] = "default" if request.service_tier == "auto" else request.service_tier
        answer = Answer(
            b"", usage["total_tokens"], _longest(choices), spoiled=task.spoiled, prompt_tokens=prompt_tokens
        )
        if request.stream:
            include_usage = bool(request.stream_options and request.stream_options.include_usage)
            answer.events = chat_events(head, choices, usage, include_usage)
        else:
            listed = [_chat_choice(index, choice, head["id"]) for index, choice in enumerate(choices)]
            answer.body = orjson.dumps({**head, "object": "chat.completion", "choices": listed, "usage": usage})
        return answer

    def completions(self, data: Any, spoil: bool = False) -> Answer:
        """Answer `POST /v1/completions`, streamed or not."""
        request = _validated(CompletionRequest, data)
        prompts = _texts(request.prompt)
        self._admit(request.model, prompts)
        choices: list[Generation] = []
        for text in prompts:
            task = Task(Prompt(text), request.max_tokens)
            for variant in range(request.n or 1):
                choice = generate(task, self._settings, variant)
                choice.text = text + choice.text if request.echo else choice.text
                choices.append(choice)
        usage = _usage(sum(map(count_tokens, prompts)), choices)
        head = {"id": self._id("cmpl"), "created": int(time.time()), "model": request.model}
        answer = Answer(b"", usage["total_tokens"], _longest(choices), prompt_tokens=usage["prompt_tokens"])
        if request.stream:
            include_usage = bool(request.stream_options and request.stream_options.include_usage)
            answer.events = completion_events(head, choices, usage, include_usage)
            return answer
        listed = [
            {"index": index, "text": choice.text, "logprobs": None, "finish_reason": "length" if choice.cut else "stop"}
            for index, choice in enumerate(choices)
        ]
        answer.body = orjson.dumps({**head, "object": "text_completion", "choices": listed, "usage": usage})
        return answer

    def responses(self, data: Any, spoil: bool = False) -> Answer:
        """Answer `POST /v1/responses`, not streamed."""
        request = _validated(ResponsesRequest, data)
        if request.stream:
            raise ApiError(400, "This simulator does not stream responses.", code="unsupported_value", param="stream")
        messages = [Message(role="user", content=request.input)] if isinstance(request.input, str) else request.input
        texts = [request.instructions or "", *(message.text() for message in messages)]
        self._admit(request.model, texts)
        prompt = Prompt(_last_of_user(messages))
        tool = choose_tool(prompt, request.tools or [], request.tool_choice)
        schema = _wanted_schema(request.text.format if request.text else None)
        task = Task(prompt, request.max_output_tokens, schema, tool, spoil)
        choice = generate(task, self._settings)
        prompt_tokens = sum(map(count_tokens, texts))
        body = {
            "id": self._id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "incomplete" if choice.cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if choice.cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": self._output(choice),
            "parallel_tool_calls": True,
            "tool_choice": data.get("tool_choice", "auto"),
            "tools": data.get("tools") or [],
            "text": data.get("text") or {"format": {"type": "text"}},
            "usage": {
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": choice.tokens,
                "output_tokens_details": {"reasoning_tokens": choice.reasoning_tokens},
                "total_tokens": prompt_tokens + choice.tokens,
            },
        }
        total = prompt_tokens + choice.tokens
        return Answer(orjson.dumps(body), total, choice.tokens, spoiled=task.spoiled, prompt_tokens=prompt_tokens)

    def messages(self, data: Any, spoil: bool = False, tier: str = "standard") -> Answer:
        """Answer Anthropic's `POST /v1/messages`, streamed or not; `tier` is what its usage says."""
        request = _validated(MessagesRequest, data)
        system = Message(content=request.system).text()
        texts = [system, *(each.text() for each in request.messages)]
        self._admit(request.model, texts)
        prompt = Prompt(_last_of_user(request.messages))
        tools, choice = tools_of(request)
        task = Task(prompt, request.max_tokens, wanted_format(request), choose_tool(prompt, tools, choice), spoil)
        written = generate(task, self._settings)
        prompt_tokens = sum(map(count_tokens, texts))
        head = {"id": self._id("msg"), "model": request.model}
        total = prompt_tokens + written.tokens
        answer = Answer(b"", total, written.tokens, spoiled=task.spoiled, prompt_tokens=prompt_tokens)
        if request.stream:
            answer.events = message_events(head, written, prompt_tokens)
        else:
            answer.body = orjson.dumps(message(head, written, prompt_tokens, tier))
        return answer

    def generate_content(self, data: Any, spoil: bool = False) -> Answer:
        """Answer Gemini's `POST /v1beta/models/{model}:generateContent`; `data` has the model of the path, too."""
        request = _validated(GeminiRequest, data)
        texts = request.texts()
        self._admit(request.model, texts)
        prompt = Prompt(_last_of_user(Message(role=each.role, content=each.text()) for each in request.contents))
        tools, choice = request.tools_and_choice()
        config = request.generation_config
        tool = choose_tool(prompt, tools, choice)
        task = Task(prompt, config.max_output_tokens, request.schema_of_answer(), tool, spoil)
        choices = [generate(task, self._settings, variant) for variant in range(config.candidate_count or 1)]
        prompt_tokens = sum(map(count_tokens, texts))
        body = content({"id": self._id("gemini"), "model": request.model}, choices, prompt_tokens)
        total = body["usageMetadata"]["totalTokenCount"]
        return Answer(orjson.dumps(body), total, _longest(choices), spoiled=task.spoiled, prompt_tokens=prompt_tokens)

    def embeddings(self, data: Any, spoil: bool = False) -> Answer:
        """Answer `POST /v1/embeddings`."""
        request = _validated(EmbeddingsRequest, data)
        texts = _texts(request.input)
        if not texts or len(texts) > _MOST_INPUTS or not all(texts):
            raise ApiError(400, f"'input' must be 1 to {_MOST_INPUTS} texts which are not empty.", param="input")
        marker = self._settings.bad_texts
        if marker is not None and any(marker in text for text in texts):
            raise ApiError(400, "An input could not be embedded.", code="invalid_input", param="input")
        self._admit(request.model, texts, each=True)
        dimensions = request.dimensions or self._settings.embedding_dimensions
        vectors: Iterable[Any] = (embed(text, dimensions) for text in texts)
        if request.encoding_format == "base64":
            vectors = map(to_base64, vectors)
        tokens = sum(map(count_tokens, texts))
        items = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "data": items, "model": request.model, "usage": usage}
        return Answer(orjson.dumps(body), tokens, prompt_tokens=tokens)

    def transcriptions(self, data: Any, spoil: bool = False) -> Answer:
        """Answer `POST /v1/audio/transcriptions`; `data` has the form's fields, and the clip's bytes as `file`."""
        clip_bytes = data.get("file")
        if not isinstance(clip_bytes, bytes):
            raise ApiError(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
        form = _validated(TranscriptionForm, {key: value for key, value in data.items() if key != "file"})
        self._admit(form.model, [])
        try:
            clip = audio.inspect(clip_bytes)
        except ValueError as error:
            message = f"Audio file might be corrupted or unsupported: {error}."
            raise ApiError(400, message, code="invalid_value", param="file") from None
        text = clip.words
        if text is None:
            key = pick(self._settings.seed, b64encode(clip_bytes[:4096]), len(clip_bytes))
            text = invented_words(self._settings.seed, key, max(1, round(clip.duration_s * _WORDS_PER_SECOND)))
        tokens = count_tokens(text)
        if form.response_format == "text":
            return Answer(text.encode() + b"\n", tokens, tokens, "text/plain; charset=utf-8")
        body: dict[str, Any] = {"text": text}
        if form.response_format == "verbose_json":
            language = form.language or clip.language or self._settings.language
            segment = {"id": 0, "seek": 0, "start": 0.0, "end": clip.duration_s, "text": text, "temperature": 0.0}
            body |= {"task": "transcribe", "language": language, "duration": clip.duration_s, "segments": [segment]}
        body["usage"] = {"type": "duration", "seconds": -int(-clip.duration_s // 1)}
        return Answer(orjson.dumps(body), tokens, tokens)

    def _admit(self, model: str, texts: list[str], each: bool = False) -> None:
        """Refuse a model that is not served, a text that the filter rejects, and a prompt that is too long."""
        settings = self._settings
        if settings.models is not None and model not in settings.models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise ApiError(404, message, code="model_not_found", param="model")
        marker = settings.filter_marker
        if marker is not None and any(marker in text for text in texts):
            message = "The prompt was filtered by the content management policy."
            raise ApiError(400, message, code="content_filter", param="prompt")
        if settings.context_window is not None:
            counts = list(map(count_tokens, texts))
            tokens = max(counts, default=0) if each else sum(counts)
            if tokens > settings.context_window:
                message = (
                    f"This model's maximum context length is {settings.context_window} tokens. However, your messages "
                    f"resulted in {tokens} tokens. Please reduce the length of the messages."
                )
                raise ApiError(400, message, code="context_length_exceeded", param="messages")

    def _output(self, choice: Generation) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = []
        status = "incomplete" if choice.cut else "completed"
        if choice.reasoning:
            summary = [{"type": "summary_text", "text": choice.reasoning}]
            output.append({"type": "reasoning", "id": self._id("rs"), "summary": summary})
        if choice.tool is not None:
            call = {"type": "function_call", "id": self._id("fc"), "call_id": self._id("call"), "status": status}
            output.append({**call, "name": choice.tool, "arguments": choice.text})
        else:
            content = [{"type": "output_text", "text": choice.text, "annotations": []}]
            message = {"type": "message", "id": self._id("msg"), "status": status, "role": "assistant"}
            output.append({**message, "content": content})
        return output

    def _id(self, prefix: str) -> str:
        return f"{prefix}-sim{next(self._serial):012d}"


def _validated(kind: type[RequestT], data: Any) -> RequestT:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise from_validation(error) from None


def _texts(value: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    """Return the inputs as texts. Token ids are written as numbers."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [" ".join(map(str, value))]
    return [item if isinstance(item, str) else " ".join(map(str, item)) for item in value if not isinstance(item, int)]


def _last_of_user(messages: Iterable[Message]) -> str:
    texts = [(message.role, message.text()) for message in messages]
    of_user = [text for role, text in texts if role == "user" and text]
    return of_user[-1] if of_user else "\n\n".join(text for _, text in texts)


def _wanted_schema(form: ResponseFormat | None) -> Any:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return FREE_JSON
    schema = form.json_schema.definition if form.json_schema else form.definition
    if form.type != "json_schema" or schema is None:
        message = "Missing required parameter: 'response_format.json_schema'."
        raise ApiError(400, message, code="missing_required_parameter", param="response_format")
    return schema


def _longest(choices: list[Generation]) -> int:
    return max(choice.tokens for choice in choices)


def _usage(prompt_tokens: int, choices: list[Generation]) -> dict[str, Any]:
    completion_tokens = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(choice.reasoning_tokens for choice in choices),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _chat_choice(index: int, choice: Generation, answer_id: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    finish = "length" if choice.cut else "stop"
    if choice.tool is not None:
        call = {"name": choice.tool, "arguments": choice.text}
        message["content"] = None
        message["tool_calls"] = [{"id": f"call-{answer_id}-{index}", "type": "function", "function": call}]
        finish = "length" if choice.cut else "tool_calls"
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
