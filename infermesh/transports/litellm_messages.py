"""Anthropic's Messages as LiteLLM writes and reads them, for requests that something else sends.

What of LiteLLM is relied on besides (as of 1.110; tests hold it to the installed one): ``AnthropicConfig``'s
``transform_request`` and ``transform_parsed_response``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from infermesh.errors import InputError
from infermesh.transports.litellm import answer_body, import_litellm
from infermesh.transports.litellm_unsent import LiteLLMFormat, content_parts
from infermesh.types import Request

__all__ = ["LiteLLMMessages"]

_JSON_TOOL = "json_tool_call"  # LiteLLM's tool for answers by a schema, where a model knows no schemas


class LiteLLMMessages(LiteLLMFormat):
    """The translations for one deployment."""

    url = "https://api.anthropic.com/v1/messages"
    texts = ("messages", "system")
    quick_parts = frozenset(("type", "text", "image_url"))

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
                read = self._complete(litellm, self._transport.arguments(request), message)
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

    def _arguments(self, request: Request) -> dict[str, Any]:
        """Refuse pictures that LiteLLM would fetch."""
        arguments, label = self._transport.arguments(request), self._transport.label
        for part in content_parts(arguments["messages"]):
            given = part.get("image_url")
            url = given.get("url") if isinstance(given, Mapping) else given
            if isinstance(url, str) and url.startswith("http://"):
                raise InputError(
                    f"{label}: an image at http:// is one that Anthropic does not fetch, and nobody else for a batch: "
                    "give it at https://, or as a file, whose bytes are sent",
                    deployment=label,
                )
        return arguments

    def _quick(self, litellm: Any, messages: Any) -> dict[str, Any]:
        written: dict[str, Any] = litellm.AnthropicConfig().transform_request(
            model=self._model, messages=messages, optional_params={}, litellm_params={}, headers={}
        )
        return written


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
