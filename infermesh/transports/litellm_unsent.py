"""LiteLLM as a translator: a provider's format as LiteLLM writes and reads it, for requests that something else sends.

LiteLLM's own ``completion`` is called with an HTTP client that sends nothing: it takes what was to be sent, or hands
back an answer that came by another way. So a request in a batch and its answer are what they are live, whatever
LiteLLM's next version makes of them. That takes some milliseconds. Of requests that differ in their texts alone, the
parameters are translated once so, and the texts by a shorter way, which takes a tenth of it: where it was seen to write
the same for the first of them.

What of LiteLLM is relied on (as of 1.110; tests hold it to the installed one): ``completion(client=…)`` with an
``HTTPHandler`` whose ``post`` gets ``headers``, and the body as ``data`` or ``json``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple

import httpx
import orjson

from infermesh.errors import InputError
from infermesh.exact_json import dumps, loads
from infermesh.transports.litellm import LiteLLMTransport, import_litellm
from infermesh.types import Request

__all__ = ["LiteLLMFormat", "Params", "content_parts"]

_BETA = "anthropic-beta"
_KEPT = 256  # sets of parameters
_PLAIN_ROLES = frozenset(("system", "user", "assistant"))


class Params(NamedTuple):
    """A request in a provider's words.

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
    """What requests have in common: all but their texts, as the end of an object."""

    rest: bytes
    betas: tuple[str, ...]
    exact: bool  # whether the quick way writes the same texts


class LiteLLMFormat(ABC):
    """The translations for one deployment. LiteLLM is imported by the first.

    Attributes
    ----------
    url
        An ``api_base`` that LiteLLM takes; nothing is sent there.
    texts
        The fields of a body that hold its texts: all others are the same for requests that differ in their texts.
    quick_parts
        What a part of a message may have for that.
    """

    url: ClassVar[str]
    texts: ClassVar[tuple[str, ...]]
    quick_parts: ClassVar[frozenset[str]]

    def __init__(self, transport: LiteLLMTransport, model: str) -> None:
        self._transport = transport
        self._model = model
        self._known: dict[bytes, _Known] = {}

    def params(self, request: Request) -> Params:
        """Translate a request. Raises ``InputError`` where LiteLLM does not take it."""
        litellm = import_litellm()
        arguments = self._arguments(request)
        try:
            return self._params(litellm, arguments, request.payload)
        except Exception as error:
            failed = self._transport.failure(error, None)
            if isinstance(failed, InputError):
                raise failed from None
            label = self._transport.label
            raise InputError(f"{label}: LiteLLM cannot write it: {failed.message}", deployment=label) from None

    @abstractmethod
    def answer(self, message: Mapping[str, Any], request: Request | None = None) -> dict[str, Any]:
        """Translate an answer to the body of OpenAI's chat completion, with the provider's id.

        Raises
        ------
        ValueError
            LiteLLM cannot read it.
        """

    def _arguments(self, request: Request) -> dict[str, Any]:
        """What LiteLLM is asked. Raises ``InputError`` for what no batch can have."""
        return self._transport.arguments(request)

    @abstractmethod
    def _quick(self, litellm: Any, messages: Any) -> dict[str, Any]:
        """The fields ``texts`` of a body, of its messages alone. It may change the messages."""

    def _params(self, litellm: Any, arguments: dict[str, Any], payload: Mapping[str, Any]) -> Params:
        messages = arguments["messages"]
        key = _key(payload, messages, self.quick_parts)
        known = None if key is None else self._known.get(key)
        if known is None or not known.exact:
            body, betas = self._whole(litellm, arguments)
            if key is not None and known is None:
                self._learn(litellm, key, body, betas, messages)
            return Params(dumps(body), betas)
        quick = self._quick(litellm, copy.deepcopy(messages))
        texts = dumps({name: quick[name] for name in self.texts if name in quick})[:-1]
        return Params(texts + (known.rest if known.rest == b"}" else b"," + known.rest), known.betas)

    def _learn(self, litellm: Any, key: bytes, body: dict[str, Any], betas: tuple[str, ...], messages: Any) -> None:
        rest = {name: value for name, value in body.items() if name not in self.texts}
        quick = self._quick(litellm, copy.deepcopy(messages))
        exact = all(quick.get(name) == body.get(name) for name in self.texts)
        while len(self._known) >= _KEPT:
            del self._known[next(iter(self._known))]
        self._known[key] = _Known(dumps(rest)[1:], betas, exact)

    def _whole(self, litellm: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """All that LiteLLM would send, and what its header names."""
        try:
            self._complete(litellm, copy.deepcopy(arguments), None)
        except _TakenError as taken:
            return taken.body, _named(taken.headers)
        raise TypeError("nothing was to be sent")

    def _complete(self, litellm: Any, arguments: dict[str, Any], answer: Mapping[str, Any] | None) -> Any:
        """LiteLLM's ``completion``, with this answer. No key is in play where nothing is sent."""
        unsent = {"api_key": "none", "api_base": self.url, "client": _client()(answer)}
        return litellm.completion(**{**arguments, **unsent})


def content_parts(messages: Any) -> Iterable[Mapping[str, Any]]:
    """The parts of messages that have some."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, Mapping))


class _TakenError(BaseException):
    """Carries what was to be sent past LiteLLM's ``except Exception``."""

    def __init__(self, headers: Mapping[str, str], body: dict[str, Any]) -> None:
        super().__init__()
        self.headers, self.body = headers, body


@cache
def _client() -> Any:
    """The class of clients that send nothing. LiteLLM's is its base, as LiteLLM asks for that."""
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    class Unsent(HTTPHandler):
        def __init__(self, answer: Mapping[str, Any] | None) -> None:
            self._answer = answer

        def __del__(self) -> None:
            """There is nothing to close."""

        def post(
            self, url: str, *args: Any, headers: Any = None, data: Any = None, json: Any = None, **kwargs: Any
        ) -> httpx.Response:
            if self._answer is None:
                raise _TakenError(headers or {}, loads(data) if json is None else json)
            return httpx.Response(200, content=dumps(self._answer), request=httpx.Request("POST", url))

    return Unsent


def _key(payload: Mapping[str, Any], messages: Any, quick_parts: frozenset[str]) -> bytes | None:
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
            if part.keys() - quick_parts:
                return None
            shapes.add(f"{message['role']} {part.get('type')}")
    rest = {name: value for name, value in payload.items() if name != "messages"}
    try:
        return orjson.dumps([sorted(shapes), rest], option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def _named(headers: Mapping[str, str]) -> tuple[str, ...]:
    said = next((value for name, value in headers.items() if name.lower() == _BETA), "")
    return tuple(sorted({each.strip() for each in said.split(",")} - {""}))
