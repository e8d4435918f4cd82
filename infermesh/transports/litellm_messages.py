"""Anthropic's Messages as LiteLLM writes and reads them, for requests that something else sends.

LiteLLM's own ``completion`` is called with an HTTP client that sends nothing: it takes what was to be sent, or hands
back an answer that came by another way. So a request in a batch and its answer are what they are live, whatever
LiteLLM's next version makes of them. That takes some milliseconds. Of requests that differ in their texts alone, the
parameters are translated once so, and the messages by ``AnthropicConfig.transform_request``, which takes a tenth of it:
where it was seen to write the same messages for the first of them.

What of LiteLLM is relied on (as of 1.110; tests hold it to the installed one): ``completion(client=…)`` with an
``HTTPHandler`` whose ``post`` gets ``headers`` and ``data``, and ``AnthropicConfig``'s ``transform_request`` and
``transform_parsed_response``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import httpx
import orjson

from infermesh.errors import InputError
from infermesh.exact_json import dumps, loads
from infermesh.transports.litellm import LiteLLMTransport, answer_body, import_litellm
from infermesh.types import Request

__all__ = ["LiteLLMMessages", "Params"]

_BETA = "anthropic-beta"
_JSON_TOOL = "json_tool_call"  # LiteLLM's tool for answers by a schema, where a model knows no schemas
_KEPT = 256  # sets of parameters
_PLAIN_ROLES = frozenset(("system", "user", "assistant"))
_URL = "https://api.anthropic.com/v1/messages"


class Params(NamedTuple):
    """A request in Anthropic's words.

    Attributes
    ----------
    body
        The JSON object.
    betas
        What the header ``anthropic-beta`` has to name for it.
    """

    body: bytes
    betas: tuple[str, ...]


class _Known(NamedTuple):
    """What requests have in common: all but messages and system, as the end of an object."""

    rest: bytes
    betas: tuple[str, ...]
    exact: bool  # whether the quick way writes the same messages


class LiteLLMMessages:
    """The translations for one deployment. LiteLLM is imported by the first."""

    def __init__(self, transport: LiteLLMTransport, model: str) -> None:
        self._transport = transport
        self._model = model
        self._known: dict[bytes, _Known] = {}

    def params(self, request: Request) -> Params:
        """Translate a request. Raises ``InputError`` where LiteLLM does not take it."""
        litellm = import_litellm()
        arguments = self._transport.arguments(request)
        self._refuse_plain_urls(arguments)
        try:
            return self._params(litellm, arguments, request.payload)
        except Exception as error:
            failed = self._transport.failure(error, None)
            if isinstance(failed, InputError):
                raise failed from None
            label = self._transport.label
            raise InputError(f"{label}: LiteLLM cannot write it: {failed.message}", deployment=label) from None

    def _params(self, litellm: Any, arguments: dict[str, Any], payload: Mapping[str, Any]) -> Params:
        messages = arguments["messages"]
        key = _key(payload, messages)
        known = None if key is None else self._known.get(key)
        if known is None or not known.exact:
            body, betas = self._whole(litellm, arguments)
            if key is not None and known is None:
                self._learn(litellm, key, body, betas, messages)
            return Params(dumps(body), betas)
        quick = self._quick(litellm, messages)
        system = b'"system":' + dumps(quick["system"]) + b"," if "system" in quick else b""
        return Params(b'{"messages":' + dumps(quick["messages"]) + b"," + system + known.rest, known.betas)

    def answer(self, message: Mapping[str, Any], request: Request | None = None) -> dict[str, Any]:
        """Translate a message to the body of OpenAI's chat completion, with the provider's id.

        Parameters
        ----------
        request
            What it answers. Without it the answer of LiteLLM's own tool for schemas is taken as it is, as are names of
            tools that LiteLLM has changed, and an answer's beginning that the request gave is not put before it.

        Raises
        ------
        ValueError
            LiteLLM cannot read it.
        """
        litellm = import_litellm()
        try:
            strange = _tools_used(message) - _own_tools(request)
            if request is not None and _needs_request(strange, request):
                arguments = self._transport.arguments(request)
                read = litellm.completion(**{**arguments, **_unsent(), "client": _client()(message)})
            else:
                read = litellm.AnthropicConfig().transform_parsed_response(
                    completion_response=dict(message),  # it changes it
                    raw_response=httpx.Response(200),
                    model_response=litellm.ModelResponse(),
                    json_mode=_JSON_TOOL in strange,
                )
            body = answer_body("chat_completion", read)
        except Exception as error:
            raise ValueError(f"LiteLLM cannot read the message: {type(error).__name__}: {error}") from None
        body["id"] = message.get("id")
        return body

    def _refuse_plain_urls(self, arguments: Mapping[str, Any]) -> None:
        label = self._transport.label
        for part in _parts(arguments["messages"]):
            given = part.get("image_url")
            url = given.get("url") if isinstance(given, Mapping) else given
            if isinstance(url, str) and url.startswith("http://"):
                raise InputError(
                    f"{label}: an image at http:// is one that Anthropic does not fetch, and nobody else for a batch: "
                    "give it at https://, or as a file, whose bytes are sent",
                    deployment=label,
                )

    def _learn(self, litellm: Any, key: bytes, body: dict[str, Any], betas: tuple[str, ...], messages: Any) -> None:
        rest = {name: value for name, value in body.items() if name not in ("messages", "system")}
        quick = self._quick(litellm, messages)
        exact = all(quick.get(name) == body.get(name) for name in ("messages", "system"))
        while len(self._known) >= _KEPT:
            del self._known[next(iter(self._known))]
        self._known[key] = _Known(dumps(rest)[1:], betas, exact)

    def _quick(self, litellm: Any, messages: Any) -> dict[str, Any]:
        """Messages and system alone."""
        written: dict[str, Any] = litellm.AnthropicConfig().transform_request(
            model=self._model, messages=copy.deepcopy(messages), optional_params={}, litellm_params={}, headers={}
        )
        return written

    def _whole(self, litellm: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """All that LiteLLM would send, and what its header names."""
        try:
            litellm.completion(**{**copy.deepcopy(arguments), **_unsent(), "client": _client()(None)})
        except _TakenError as taken:
            return loads(taken.data), _named(taken.headers)
        raise TypeError("nothing was to be sent")


class _TakenError(BaseException):
    """Carries what was to be sent past LiteLLM's ``except Exception``."""

    def __init__(self, headers: Mapping[str, str], data: Any) -> None:
        super().__init__()
        self.headers, self.data = headers, data


@cache
def _client() -> Any:
    """The class of clients that send nothing. LiteLLM's is its base, as LiteLLM asks for that."""
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    class Unsent(HTTPHandler):
        def __init__(self, answer: Mapping[str, Any] | None) -> None:
            self._answer = answer

        def __del__(self) -> None:
            """There is nothing to close."""

        def post(self, url: str, *args: Any, headers: Any = None, data: Any = None, **kwargs: Any) -> httpx.Response:
            if self._answer is None:
                raise _TakenError(headers or {}, data)
            return httpx.Response(200, content=dumps(self._answer), request=httpx.Request("POST", url))

    return Unsent


def _key(payload: Mapping[str, Any], messages: Any) -> bytes | None:
    """What requests that differ in their texts alone have in common; ``None`` for what is best asked whole."""
    shapes = set()
    for message in messages:
        content = message.get("content")
        if not _PLAIN_ROLES.issuperset((message.get("role"),)) or message.keys() - {"role", "content"}:
            return None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            return None
        for part in parts:
            if part.keys() - {"type", "text", "image_url"}:
                return None
            shapes.add(f"{message['role']} {part.get('type')}")
    rest = {name: value for name, value in payload.items() if name != "messages"}
    try:
        return orjson.dumps([sorted(shapes), rest], option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def _unsent() -> dict[str, str]:
    """No key is in play where nothing is sent."""
    return {"api_key": "none", "api_base": _URL}


def _named(headers: Mapping[str, str]) -> tuple[str, ...]:
    said = next((value for name, value in headers.items() if name.lower() == _BETA), "")
    return tuple(sorted({each.strip() for each in said.split(",")} - {""}))


def _parts(messages: Any) -> Iterable[Mapping[str, Any]]:
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, Mapping))


def _tools_used(message: Mapping[str, Any]) -> set[Any]:
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    return {each.get("name") for each in blocks if isinstance(each, Mapping) and each.get("type") == "tool_use"}


def _own_tools(request: Request | None) -> set[Any]:
    """The names of tools that a request gives."""
    tools = (request.payload.get("tools") if request is not None else None) or ()
    given = [each.get("function") for each in tools if isinstance(each, Mapping)]
    return {each.get("name") for each in given if isinstance(each, Mapping)}


def _needs_request(strange: set[Any], request: Request) -> bool:
    """Whether an answer, with tools of other names than the request's, cannot be read without what was asked."""
    asked = request.payload.get("messages") or [{}]
    return bool(strange) or bool(asked[-1].get("prefix")) or "speed" in request.payload
