"""The OpenAI wire format, requests: what the caller means → the JSON that is sent.

Answers are read by :mod:`infermesh.wire.answers`, embeddings by :mod:`infermesh.wire.vectors`. Field names follow the
OpenAI API reference (Chat Completions, Completions, Responses, Embeddings and Audio),
https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson

from infermesh.errors import InputError
from infermesh.exact_json import dumps
from infermesh.types import Audio, Endpoint, Request

GenerationInput = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]

_CHARS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
# What OpenAI's high-detail tiling charges for a 1024 × 1024 picture; others charge the same order of magnitude.
_TOKENS_PER_IMAGE = 765
_TOKENS_PER_AUDIO_BLOCK = 250

# Parameters of client libraries that are not in the wire format → where they belong.
FOREIGN_PARAMETERS = {
    "model": "the deployment decides the model",
    "api_key": "the key belongs to the deployment",
    "api_base": "the URL belongs to the deployment",
    "base_url": "the URL belongs to the deployment",
    "extra_headers": "headers belong to the deployment",
    "num_retries": "retrying is the client's (max_retries)",
    "max_retries": "retrying is the client's, not the wire's",
}

# Where a request of each endpoint holds its input.
INPUT_FIELD: dict[str, str] = {"chat_completion": "messages", "text_completion": "prompt", "responses": "input"}


def messages_from(input: str | Sequence[Mapping[str, Any]], system: str | None = None) -> list[dict[str, Any]]:
    """Chat messages from a prompt or a conversation.

    Parameters
    ----------
    input
        A prompt, which becomes one user message, or a list of messages.
    system
        A system message to put first. A conversation that already opens with a system or developer message keeps its
        own.

    Raises
    ------
    InputError
        The input is neither, or an empty list, or a list with something that is not a message.
    """
    if isinstance(input, str):
        messages: list[dict[str, Any]] = [{"role": "user", "content": input}]
    else:
        messages = _checked_messages(input)
    if system is not None and messages[0].get("role") not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _checked_messages(input: object) -> list[dict[str, Any]]:
    if not isinstance(input, Sequence) or isinstance(input, bytes | bytearray):
        raise InputError(
            f"cannot make chat messages from {type(input).__name__}: pass a prompt (str), or a list of "
            '{"role": ..., "content": ...} messages'
        )
    messages: list[dict[str, Any]] = []
    for i, message in enumerate(input):
        if not isinstance(message, Mapping) or "role" not in message:
            raise InputError(f'message {i} of the conversation is not a {{"role": ..., "content": ...}} object')
        messages.append(dict(message))
    if not messages:
        raise InputError("the conversation is empty: pass at least one message")
    return messages


def generation_request(endpoint: Endpoint, input: GenerationInput, params: Mapping[str, Any]) -> Request:
    """Make the request for one generation.

    Parameters
    ----------
    endpoint
        ``chat_completion``, ``text_completion`` or ``responses``.
    input
        A prompt; for chat and Responses also a list of messages or items; or a mapping that is merged into the payload
        and holds the endpoint's own input field (``messages``, ``prompt``, ``input``).
    params
        Wire parameters (``temperature``, ``max_tokens`` …). One that is ``None`` is not sent; those in ``extra_body``
        are merged. For Responses the chat names are translated: ``max_tokens`` and ``max_completion_tokens`` →
        ``max_output_tokens``, ``response_format`` → ``text.format``, ``reasoning_effort`` → ``reasoning.effort``,
        function tools → flat ones.

    Raises
    ------
    InputError
        The input does not fit the endpoint, or a parameter belongs elsewhere (``model``, ``api_key`` …).
    """
    field = INPUT_FIELD[endpoint]
    payload: dict[str, Any]
    if isinstance(input, str):
        payload = {field: [{"role": "user", "content": input}] if endpoint == "chat_completion" else input}
    elif isinstance(input, Mapping):
        payload = _merged_input(endpoint, field, input)
    elif endpoint == "chat_completion":
        payload = {field: _checked_messages(input)}
    else:
        if not input:
            raise InputError(f"the {endpoint} input is empty")
        payload = {field: input}
    _merge_params(payload, params)
    if endpoint == "text_completion" and not isinstance(payload["prompt"], str):
        _check_token_ids(payload["prompt"])
    if endpoint == "responses":
        _to_responses(payload)
        output_tokens = payload.get("max_output_tokens")
    else:
        output_tokens = payload.get("max_tokens")
        if output_tokens is None:
            output_tokens = payload.get("max_completion_tokens")
    return Request(endpoint, payload, output_tokens=output_tokens)


def _check_token_ids(prompt: Any) -> None:
    """Refuse a list of prompts, to which a server gives as many answers: only the first would be read."""
    if not isinstance(prompt, Sequence) or not all(isinstance(token, int) for token in prompt):
        raise InputError(
            "a text_completion prompt is a text, or a list of token ids (integers): give each of several prompts a "
            "request of its own (generate_batch)"
        )


def _merged_input(endpoint: Endpoint, field: str, input: Mapping[str, Any]) -> dict[str, Any]:
    if field in input:
        payload = dict(input)
        if endpoint == "chat_completion":
            payload[field] = messages_from(payload[field])
        return payload
    if endpoint == "chat_completion" and "role" in input:
        return {field: [dict(input)]}
    raise InputError(f"a {endpoint} input that is a mapping needs the key {field!r}; it has {sorted(map(str, input))}")


def all_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with those in their ``extra_body``, which are sent beside the others."""
    extra = params.get("extra_body")
    return {**params, **extra} if isinstance(extra, Mapping) else dict(params)


def _merge_params(payload: dict[str, Any], params: Mapping[str, Any]) -> None:
    payload.update(params)
    if (extra := payload.pop("extra_body", None)) is not None:
        if not isinstance(extra, Mapping):
            raise InputError(f"extra_body: expected a mapping of further parameters, got {type(extra).__name__}")
        payload.update(extra)
    if None in payload.values():
        for name in [name for name, value in payload.items() if value is None]:
            del payload[name]
    if not FOREIGN_PARAMETERS.keys().isdisjoint(payload):
        name = next(name for name in FOREIGN_PARAMETERS if name in payload)
        raise InputError(f"{name!r} is among the request's parameters: {FOREIGN_PARAMETERS[name]}, remove it")
    if payload.get("stream") or payload.get("n", 1) != 1:
        raise InputError("stream and n > 1 are not supported: each request has one whole answer. Remove them")


def _to_responses(payload: dict[str, Any]) -> None:
    """Chat parameter names → their Responses counterparts, in place."""
    for name in ("max_tokens", "max_completion_tokens"):
        if name in payload:
            payload.setdefault("max_output_tokens", payload.pop(name))
    if (response_format := payload.pop("response_format", None)) is not None:
        form = dict(response_format)
        form.update(form.pop("json_schema", None) or {})
        payload["text"] = {**payload.get("text", {}), "format": form}
    if (effort := payload.pop("reasoning_effort", None)) is not None:
        payload["reasoning"] = {"effort": effort, **payload.get("reasoning", {})}
    if "tools" in payload:
        payload["tools"] = [_flat_function(tool) for tool in payload["tools"]]
    if "tool_choice" in payload:
        payload["tool_choice"] = _flat_function(payload["tool_choice"])


def _flat_function(tool: Any) -> Any:
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        return {"type": tool.get("type", "function"), **tool["function"]}
    return tool


def embedding_request(texts: Sequence[str], params: Mapping[str, Any]) -> Request:
    """Make the request that embeds ``texts`` (one vector each, in order) with wire parameters ``params``.

    Raises
    ------
    InputError
        There is no text, one is not a string, or ``model`` is among the parameters.
    """
    if not texts or isinstance(texts, str):
        raise InputError("nothing to embed: pass a non-empty list of strings")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} to embed is {type(text).__name__}, not a string")
    payload: dict[str, Any] = {"input": list(texts)}
    _merge_params(payload, params)
    return Request("embedding", payload, output_tokens=0)


def transcription_request(audio: Audio, params: Mapping[str, Any]) -> Request:
    """Make the request that transcribes one clip; ``params`` become form fields beside the file.

    Raises
    ------
    InputError
        ``model`` or ``file`` is among the parameters.
    """
    payload: dict[str, Any] = {}
    _merge_params(payload, params)
    if "file" in payload:
        raise InputError("'file' is among the request's parameters: the clip is the audio argument, remove it")
    return Request("transcription", payload, audio=audio)


def estimate_tokens(request: Request) -> int:
    """Estimate the prompt's tokens: UTF-8 bytes / 4, plus 4 a message and a constant an image or audio block.

    For limits that reserve tokens before the server has counted them. Deterministic and cheap: no tokenizer. It counts
    bytes, not characters, because scripts outside ASCII take more tokens a character. Tools and output schemas are not
    counted.
    """
    payload = request.payload
    total = 0
    if request.operation in ("chat_completion", "responses"):
        for name in ("messages", "input", "instructions"):
            content = payload.get(name)
            if content is not None:
                total += _content_tokens(content)
        return total
    for name in ("prompt", "input"):
        content = payload.get(name)
        if isinstance(content, str):
            total += text_tokens(content)
        elif isinstance(content, Sequence):
            total += sum(map(_item_tokens, content))
    return total


def _item_tokens(item: Any) -> int:
    """One item of a list input: a text, a list of token ids, or a token id."""
    if isinstance(item, str):
        return text_tokens(item)
    return len(item) if isinstance(item, list) else 1


def text_tokens(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return (size + _CHARS_PER_TOKEN - 1) // _CHARS_PER_TOKEN


def _content_tokens(content: Any) -> int:
    if isinstance(content, str):
        return text_tokens(content)
    if isinstance(content, list):
        return sum(map(_content_tokens, content))
    if not isinstance(content, Mapping):
        return 0
    kind = content.get("type")
    if kind in ("image_url", "input_image"):
        return _TOKENS_PER_IMAGE
    if kind == "input_audio":
        return _TOKENS_PER_AUDIO_BLOCK
    total = _TOKENS_PER_MESSAGE if "role" in content else 0
    for name in ("content", "text", "output", "arguments"):
        part = content.get(name)
        if part is not None:
            total += _content_tokens(part)
    return total


def payload_bytes(request: Request) -> bytes:
    """The payload as JSON, serialized once and kept in ``request.encoded``: change no payload after the first call.

    The top-level keys are sorted, so that the order of parameters in a config does not matter. Nested objects keep
    their order: in a JSON schema it is the order in which the model writes the properties.

    Raises
    ------
    InputError
        Something in the payload has no JSON form, such as a lone surrogate in a text.
    """
    encoded = request.encoded
    if encoded is None:
        payload = request.payload
        try:
            encoded = dumps({name: payload[name] for name in sorted(payload)})
        except TypeError as error:
            raise InputError(f"the request cannot be written as JSON: {error}") from None
        request.encoded = encoded
    return encoded


def request_body(request: Request, model: str) -> tuple[bytes, memoryview]:
    """The JSON body to send to a deployment that calls the model ``model``, in two parts.

    The second is a view of the payload, which is not copied: a picture in it may have megabytes.
    """
    payload = payload_bytes(request)
    opening = b'{"model":' + orjson.dumps(model) + (b"," if len(payload) > len(b"{}") else b"")
    return opening, memoryview(payload)[1:]


def request_key(request: Request, *extra: str) -> str:
    """Hash what decides the answer: 32 hexadecimal characters of BLAKE2b.

    Parameters
    ----------
    request
        Its operation, its payload and the audio's content are hashed; the audio's file name is not.
    extra
        What else decides the answer, such as the model's name. Order matters.
    """
    payload = payload_bytes(request)
    head, tail = _frame(request.operation, extra)
    hashed = blake2b(head + len(payload).to_bytes(8, "little"), digest_size=16)
    hashed.update(payload)  # not joined first: a picture in it may have megabytes
    if request.audio is not None:
        hashed.update(_counted(blake2b(request.audio.data, digest_size=32).digest()))
    hashed.update(tail)
    return hashed.hexdigest()


def embedding_keys(params: Mapping[str, Any], *extra: str) -> Callable[[str], str]:
    """Make the function that gives a text's :func:`request_key`, as of a request with this text alone.

    It does the same in a tenth of the time: what is around the text in the payload is written once.

    Raises
    ------
    InputError
        As :func:`embedding_request`; the function too, for a text that is none.
    """
    payload = embedding_request([""], params).payload
    names = sorted(payload)
    place = names.index("input")
    before, after = (
        dumps({name: payload[name] for name in some})[1:-1] for some in (names[:place], names[place + 1 :])
    )
    opening = b"{" + (before + b"," if before else b"") + b'"input":['
    closing = b"]" + (b"," + after if after else b"") + b"}"
    head, tail = _frame("embedding", extra)
    around = len(opening) + len(closing)

    def key(text: str) -> str:
        if not isinstance(text, str):
            raise InputError(f"text 0 to embed is {type(text).__name__}, not a string")
        try:
            written = dumps(text)
        except TypeError as error:
            raise InputError(f"the request cannot be written as JSON: {error}") from None
        size = (around + len(written)).to_bytes(8, "little")
        return blake2b(b"".join((head, size, opening, written, closing, tail)), digest_size=16).hexdigest()

    return key


def _counted(part: bytes) -> bytes:
    """A part with its length before it, so that ("ab", "c") and ("a", "bc") differ."""
    return len(part).to_bytes(8, "little") + part


@lru_cache(maxsize=256)
def _frame(operation: str, extra: tuple[str, ...]) -> tuple[bytes, bytes]:
    """What is hashed before and after the payload."""
    after = b"".join(_counted(text.encode("utf-8", "surrogatepass")) for text in extra)
    return _counted(operation.encode()), after


class PromptForm:
    """Makes requests that differ in their prompt alone; what they have in common is checked and encoded once.

    The first request is made as any other is. With the second, a template is made of it, which costs as much as two
    requests: a form that is used once pays nothing for being one.

    Parameters
    ----------
    make
        Makes the request of a prompt. Raises ``InputError`` where the parameters are wrong.
    """

    _MARK = "\ue000prompt\ue000"  # of the private use area, so that nobody's parameters hold it

    def __init__(self, make: Callable[[str], Request]) -> None:
        self._make = make
        self._made = 0
        self._template: Request | None = None
        self._head = self._tail = b""

    def request(self, prompt: str) -> Request:
        """The request of this prompt. Raises ``InputError`` where it has no JSON form."""
        template = self._template
        if template is None:
            self._made += 1
            if self._made != 2 or (template := self._make_template()) is None:
                return self._make(prompt)
        field = INPUT_FIELD[template.operation]
        before = template.payload[field]
        given: Any = prompt if isinstance(before, str) else [*before[:-1], {**before[-1], "content": prompt}]
        request = Request(template.operation, {**template.payload, field: given}, output_tokens=template.output_tokens)
        try:
            request.encoded = b"".join((self._head, orjson.dumps(prompt), self._tail))
        except TypeError as error:
            raise InputError(f"the request cannot be written as JSON: {error}") from None
        return request

    def _make_template(self) -> Request | None:
        """A request with a mark for its prompt; ``None`` where the prompt is only a part of a text that is sent."""
        template = self._make(self._MARK)
        parts = payload_bytes(template).split(orjson.dumps(self._MARK))
        if len(parts) == 2:
            self._head, self._tail = parts
            self._template = template
        return self._template
