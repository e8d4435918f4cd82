"""What one deployment takes under another name or in another form, known beforehand or learned from its first refusal.

OpenAI's reasoning models refuse ``max_tokens`` and want ``max_completion_tokens`` (OpenAI's API reference, Chat
Completions; langgenius/dify#24307), and a deployment at Azure may have any name. vLLM transcribes as ``json`` and
``text`` alone (vllm-project/vllm#14818), as do OpenAI's gpt-4o models. What a server refuses with the name of what it
takes instead is learned once a deployment, and the request is sent again at once, at no cost of its retries. A server
of Mistral's or an old one of Azure's that has never heard of ``max_completion_tokens`` names nothing in its place. Of
``verbose_json`` servers complain with any status (speaches with 422, others with 404, 500 and 501), or in a success.
``transformers serve`` streams the Responses API unless ``stream`` is false.

Embeddings are asked for in base64, which takes a third of the bytes and a tenth of the time to read (OpenAI's API
reference, Embeddings, ``encoding_format``; its SDK asks for it too). A server that knows no such parameter passes over
it, and answers with numbers; one that refuses it by name is asked for numbers from then on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from infermesh.errors import BadRequestError, RequestError
from infermesh.types import Operation, Request

__all__ = ["Dialect"]

logger = logging.getLogger("infermesh")

# o1, o3-mini, o4-mini-2025-04-16, gpt-5, gpt-5.1-codex, codex-mini; also fine-tuned (ft:o4-mini:…).
_REASONING = re.compile(r"(?:^|[/:])(?:o[1-9](?:-|$|:)|gpt-5(?!-chat)|codex-)", re.IGNORECASE)
_OPENAI = frozenset(("openai", "azure", "azure_ai", ""))
_QUOTE = r"['\"`]?"
# Without quotes, what to use is taken for a name only where it looks like one.
_INSTEAD = re.compile(
    rf"{_QUOTE}\b(?P<old>\w+){_QUOTE}\s+is (?:not|no longer) (?:supported|compatible|allowed)[^.,]*[.,]\s*"
    r"(?:please )?use (?P<new>['\"`]\w+['\"`]|\w+_\w+)",
    re.IGNORECASE,
)
# The two names of one thing: a server that does not know one of them may not name the other (Azure's and Mistral's).
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_NOT_KNOWN = re.compile(
    rf"\b(?P<name>{'|'.join(_LIMITS)})\b{_QUOTE}[^.\w]*(?:(?:is|are|extra|inputs?|fields?|this|parameter)\s+)*"
    r"(?:not (?:supported|permitted|allowed|compatible)|unsupported|unknown|unrecognized|deprecated|forbidden)"
    r"|\b(?:unrecognized|unsupported|unknown|unexpected|extra)\b[^.]{0,60}?"
    rf"\b(?P<behind>{'|'.join(_LIMITS)})\b",
    re.IGNORECASE,
)
_FORMAT = re.compile(r"response_format|verbose_json|\btimestamps?\b[^.]{0,40}\bnot supported", re.IGNORECASE)
_REFUSED = frozenset((400, 415, 422))
_UNABLE = frozenset((404, 500, 501))
_ENCODING = re.compile(r"encoding[_ ]?format|base64", re.IGNORECASE)


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
        self._unstreamed: set[Operation] = set()
        self._packs = True  # embeddings are asked for in base64
        if provider in _OPENAI and _REASONING.search(model):
            self._renamed["max_tokens"] = "max_completion_tokens"
        self._transcript_format = "json" if "gpt-4o" in model else "verbose_json"

    def written(self, request: Request) -> Request:
        """The request in this deployment's words: itself, where those are the usual ones."""
        if self._unstreamed and request.operation in self._unstreamed:
            request = Request(
                request.operation, {"stream": False, **request.payload}, output_tokens=request.output_tokens
            )
        if request.operation == "embedding" and self._packs and "encoding_format" not in request.payload:
            return Request("embedding", {**request.payload, "encoding_format": "base64"}, output_tokens=0)
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

    def learn(self, request: Request, error: RequestError, edition: int) -> RequestError:
        """Learn from a refusal; gives the error to raise, marked if the request is worth sending again, written anew.

        Parameters
        ----------
        edition
            What ``edition`` was when the request was written. Another refusal may have taught the same meanwhile.
        """
        if request.operation == "transcription":
            learns = self._learns_format
        elif request.operation == "chat_completion" and error.status_code in _REFUSED:
            learns = self._learns_name
        elif request.operation == "embedding" and (error.status_code in _REFUSED or error.status_code in _UNABLE):
            learns = self._learns_encoding
        else:
            return error
        if not learns(request, error, edition != self.edition):
            return error
        if not isinstance(error, BadRequestError):  # 404, 500 or 501, in which the server itself is well
            error = BadRequestError(
                error.message, status_code=error.status_code, deployment=error.deployment, request_id=error.request_id
            )
        error.rewritten = True
        return error

    def learn_not_to_stream(self, request: Request, edition: int) -> bool:
        """Learn that a server streams unless it is told not to; whether the request is worth sending again."""
        if "stream" in request.payload or (edition == self.edition and request.operation in self._unstreamed):
            return False
        if request.operation not in self._unstreamed:
            self._unstreamed.add(request.operation)
            self.edition += 1
            logger.warning("%s: it streams unless told not to, and gets stream=false from now on", self._label)
        return True

    def _learns_format(self, request: Request, error: RequestError, anew: bool) -> bool:
        chosen = "response_format" in request.payload or "timestamp_granularities" in request.payload
        if chosen or error.status_code is None or not _FORMAT.search(error.message):
            return False
        if self._transcript_format == "json":
            return anew
        self._transcript_format = "json"
        self.edition += 1
        logger.warning(
            "%s: it does not take response_format=verbose_json, so transcripts are asked for as json, without "
            "language and duration",
            self._label,
        )
        return True

    def _learns_encoding(self, request: Request, error: RequestError, anew: bool) -> bool:
        if "encoding_format" in request.payload or not _ENCODING.search(error.message):
            return False
        if not self._packs:
            return anew
        self._packs = False
        self.edition += 1
        logger.warning("%s: it does not take encoding_format=base64, and is asked for numbers from now on", self._label)
        return True

    def _learns_name(self, request: Request, error: RequestError, anew: bool) -> bool:
        if anew:
            return True
        old, new = _names(error.message)
        if old not in request.payload or new in request.payload or self._renamed.get(old) == new:
            return False
        if self._renamed.get(new) == old:  # it takes neither
            return False
        self._renamed[old] = new
        self.edition += 1
        logger.warning("%s: it takes %s in place of %s, and gets it from now on", self._label, new, old)
        return True


def _names(message: str) -> tuple[str, str]:
    """What a server does not take, and what it takes instead; empty where its refusal does not tell."""
    if found := _INSTEAD.search(message):
        return found["old"], found["new"].strip("'\"`")
    if found := _NOT_KNOWN.search(message):
        old = (found["name"] or found["behind"]).lower()
        return old, _LIMITS[old]
    return "", ""
