"""Gemini's ``generateContent`` as LiteLLM writes and reads it, for requests that something else sends.

What of LiteLLM is relied on besides (as of 1.110; tests hold it to the installed one): ``transform_request_body`` of
``litellm.llms.vertex_ai.gemini.transformation``, and ``VertexGeminiConfig``'s
``transform_google_generate_content_to_openai_model_response``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import httpx

from infermesh.errors import InputError
from infermesh.transports.litellm import LiteLLMTransport, answer_body, import_litellm
from infermesh.transports.litellm_unsent import LiteLLMFormat, content_parts
from infermesh.types import Request

__all__ = ["LiteLLMContents"]

logger = logging.getLogger("infermesh")

_FILES = "https://generativelanguage.googleapis.com/v1beta/files/"  # what was uploaded there, and is sent as a name
_CACHE = "cache_control"


class LiteLLMContents(LiteLLMFormat):
    """The translations for one deployment."""

    url = "https://generativelanguage.googleapis.com/v1beta"
    texts = ("contents", "system_instruction")
    quick_parts = frozenset(("type", "text"))  # what `detail` a picture is to be seen in is a parameter

    def __init__(self, transport: LiteLLMTransport, model: str) -> None:
        super().__init__(transport, model)
        self._told: set[str] = set()

    def answer(self, message: Mapping[str, Any], request: Request | None = None) -> dict[str, Any]:
        """Translate a response to the body of OpenAI's chat completion, with the provider's id.

        Parameters
        ----------
        request
            What it answers. Without it a call is in ``tool_calls``, though it was asked for by ``functions``.

        Raises
        ------
        ValueError
            LiteLLM cannot read it.
        """
        litellm = import_litellm()
        asked = request.payload.get("functions") if request is not None else None
        try:
            read = litellm.VertexGeminiConfig().transform_google_generate_content_to_openai_model_response(
                completion_response=dict(message),
                model_response=litellm.ModelResponse(),
                model=self._model,
                logging_obj=SimpleNamespace(optional_params={"functions": asked}, litellm_params={}),
                raw_response=httpx.Response(200),
            )
            body = answer_body("chat_completion", read)
        except Exception as error:
            raise ValueError(f"LiteLLM cannot read the response: {type(error).__name__}: {error}") from None
        body["id"] = message.get("responseId")
        return body

    def _arguments(self, request: Request) -> dict[str, Any]:
        """Refuse what LiteLLM would fetch, and leave out what a batch does not have."""
        arguments, label = self._transport.arguments(request), self._transport.label
        for url in (url for part in content_parts(arguments["messages"]) for url in _urls(part)):
            if url.startswith(("http://", "https://")) and not url.startswith(_FILES):
                raise InputError(
                    f"{label}: what is at {url[:100]} is fetched by LiteLLM for a live request, and by nobody for a "
                    "batch: give it as a file, whose bytes are sent",
                    deployment=label,
                )
        if arguments.pop("service_tier", None) is not None:
            self._tell("service_tier is left out of batches: a batch is a tier of its own")
        if any(_CACHE in each for each in (*arguments["messages"], *content_parts(arguments["messages"]))):
            self._tell(f"{_CACHE} is left out of batches: Gemini's caches are made beforehand, and have a time to live")
            arguments["messages"] = [_without(message) for message in arguments["messages"]]
        return arguments

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s: %s", self._transport.label, what)

    def _quick(self, litellm: Any, messages: Any) -> dict[str, Any]:
        from litellm.llms.vertex_ai.gemini.transformation import transform_request_body

        written: Any = transform_request_body(
            messages=messages,
            model=self._model,
            optional_params={},
            custom_llm_provider="gemini",
            litellm_params={},
            cached_content=None,
        )
        found: dict[str, Any] = written
        return found


def _urls(part: Mapping[str, Any]) -> Iterable[str]:
    for name in ("image_url", "video_url", "audio_url", "file"):
        given = part.get(name)
        named = given.values() if isinstance(given, Mapping) else (given,)
        yield from (each for each in named if isinstance(each, str))


def _without(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without marks of what to cache."""
    found = {name: value for name, value in message.items() if name != _CACHE}
    if isinstance(found.get("content"), list):
        found["content"] = [
            {name: value for name, value in part.items() if name != _CACHE} if isinstance(part, Mapping) else part
            for part in found["content"]
        ]
    return found
