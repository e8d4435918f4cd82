"""What one deployment takes under another name or in another form, known beforehand or learned from its first refusal.

OpenAI's reasoning models refuse ``max_tokens`` and want ``max_completion_tokens`` (OpenAI's API reference, Chat
Completions; langgenius/dify#24307), and a deployment at Azure may have any name. vLLM transcribes as ``json`` and
``text`` alone (vllm-project/vllm#14818), as do OpenAI's gpt-4o models. What a server refuses with the name of what it
takes instead is learned once a deployment, and the request is sent again at once, at no cost of its retries.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from infermesh.errors import BadRequestError, RequestError
from infermesh.types import Request

__all__ = ["Dialect"]

logger = logging.getLogger("infermesh")

# o1, o3-mini, o4-mini-2025-04-16, gpt-5, gpt-5.1-codex, codex-mini; also fine-tuned (ft:o4-mini:…).
_REASONING = re.compile(r"(?:^|[/:])(?:o[1-9](?:-|$|:)|gpt-5(?!-chat)|codex-)", re.IGNORECASE)
_OPENAI = frozenset(("openai", "azure", "azure_ai", ""))
_INSTEAD = re.compile(
    r"['\"`](?P<old>\w+)['\"`]\s+is not (?:supported|compatible)[^.]*\.\s*(?:please )?use ['\"`](?P<new>\w+)['\"`]",
    re.IGNORECASE,
)
_FORMAT = re.compile(r"response_format|verbose_json", re.IGNORECASE)


class Dialect:
    """How requests to one deployment are written.

    Parameters
    ----------
    label
        The deployment's label, for messages.
    provider
        The prefix of its model (``openai``, ``hosted_vllm`` …), empty where it has none.
    model
        The model's name behind the prefix.
    """

    def __init__(self, label: str, provider: str, model: str) -> None:
        self._label = label
        self.edition = 0  # how often something was learned
        self._renamed: dict[str, str] = {}
        if provider in _OPENAI and _REASONING.search(model):
            self._renamed["max_tokens"] = "max_completion_tokens"
        self._transcript_format = "json" if "gpt-4o" in model else "verbose_json"

    def written(self, request: Request) -> Request:
        """The request in this deployment's words: itself, where those are the usual ones."""
        renamed = self._renamed
        if not renamed or request.operation != "chat_completion" or renamed.keys().isdisjoint(request.payload):
            return request
        payload: dict[str, Any] = {}
        for name, value in request.payload.items():
            payload.setdefault(renamed.get(name, name), value)
        return Request(request.operation, payload, output_tokens=request.output_tokens)

    def transcription(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a transcription. ``verbose_json`` brings language and duration; not every server takes it."""
        fields = dict(payload)
        if "timestamp_granularities" in fields:  # the other formats have no times
            fields.setdefault("response_format", "verbose_json")
        fields.setdefault("response_format", self._transcript_format)
        return fields

    def learn(self, request: Request, error: BadRequestError, edition: int) -> None:
        """Learn from a refusal, and mark the error if the request is worth sending again, written anew.

        Parameters
        ----------
        edition
            What ``edition`` was when the request was written. Another refusal may have taught the same meanwhile.
        """
        if error.status_code in (400, 415, 422):
            error.rewritten = edition != self.edition or self._learns(request, error)

    def _learns(self, request: Request, error: RequestError) -> bool:
        if request.operation == "transcription":
            chosen = "response_format" in request.payload or "timestamp_granularities" in request.payload
            if chosen or self._transcript_format == "json" or not _FORMAT.search(error.message):
                return False
            self._transcript_format = "json"
            self.edition += 1
            logger.warning(
                "%s: it does not take response_format=verbose_json, so transcripts are asked for as json, without "
                "language and duration",
                self._label,
            )
            return True
        found = _INSTEAD.search(error.message)
        if found is None or request.operation != "chat_completion":
            return False
        old, new = found["old"], found["new"]
        if old not in request.payload or new in request.payload or self._renamed.get(old) == new:
            return False
        self._renamed[old] = new
        self.edition += 1
        logger.warning("%s: it takes %s in place of %s, and gets it from now on", self._label, new, old)
        return True
