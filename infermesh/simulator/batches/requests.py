"""The requests of a batch, read one by one from a file: JSON Lines, or Anthropic's one JSON object."""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from infermesh.simulator.content import count_tokens
from infermesh.simulator.errors import ApiError

__all__ = ["Scan", "listed_requests", "prompt_tokens", "read_lines"]

_BLOCK = 1 << 20


@dataclass(slots=True)
class Scan:
    """What is known of a batch's lines after a first reading.

    Attributes
    ----------
    starts
        Where each line begins, in bytes.
    custom_ids
        Of each line.
    tokens
        Of all prompts.
    model
        Of the first line.
    errors
        Why the batch cannot be, as OpenAI lists it. Empty: it can.
    """

    starts: array[int] = field(default_factory=lambda: array("Q"))
    custom_ids: list[str] = field(default_factory=list)
    tokens: int = 0
    model: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield where a line begins and the line, without its end. Only \\n ends a line; U+2028 does not."""
    with path.open("rb") as file:
        start = 0
        for line in file:
            yield start, line.rstrip(b"\r\n")
            start += len(line)


def prompt_tokens(body: dict[str, Any]) -> int:
    """Estimate the tokens of a request's texts, as the answer's usage will count them."""
    texts: list[Any] = [body.get("system"), body.get("instructions"), body.get("prompt"), body.get("input")]
    texts += [message.get("content") for message in body.get("messages") or () if isinstance(message, dict)]
    geminis = [*(body.get("contents") or ()), body.get("systemInstruction"), body.get("system_instruction")]
    texts += [each.get("parts") for each in geminis if isinstance(each, dict)]
    return sum(_tokens(text) for text in texts)


def _tokens(value: Any) -> int:
    if isinstance(value, str):
        return count_tokens(value)
    if isinstance(value, list):
        return sum(map(_tokens, value))
    return _tokens(value.get("text", value.get("content"))) if isinstance(value, dict) else 0


def listed_requests(path: Path) -> Iterator[Any]:
    """Yield each item of `requests` of a JSON object, of which only a block is in memory at a time.

    Raises
    ------
    ApiError
        400, for what is no JSON object with a list `requests`.
    """
    found = False
    with path.open("rb") as file:
        reader = _Reader(file)
        reader.take("{")
        while reader.next() != "}":
            key = reader.value()
            reader.take(":")
            if key == "requests" and reader.next() == "[":
                found = True
                reader.take("[")
                while reader.next() != "]":
                    yield reader.value()
                    reader.separator("]")
                reader.take("]")
            else:
                reader.value()
            reader.separator("}")
    if not found:
        raise ApiError(400, "requests: Field required")


class _Reader:
    """A cursor in a JSON text that is read block by block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def next(self) -> str:
        """Return the next character that is no space, without going over it."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            self._more()

    def take(self, character: str) -> None:
        """Go over a character that has to be there."""
        if self.next() != character:
            raise self._broken(f"expected {character!r}")
        self._at += 1

    def separator(self, closing: str) -> None:
        """Go over a comma, unless the list or object ends."""
        if self.next() != closing:
            self.take(",")

    def value(self) -> Any:
        """Return the next value."""
        self.next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._broken(error.msg) from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        if self._ended:
            raise self._broken("it ends too early")
        rest = self._text[self._at :]
        # As much again as there is: a value of any length is read in few attempts.
        block = self._file.read(max(_BLOCK, len(rest)))
        self._ended = not block
        try:
            self._text, self._at = rest + self._decode(block, final=not block), 0
        except UnicodeDecodeError:
            raise self._broken("it is not UTF-8") from None

    @staticmethod
    def _broken(why: str) -> ApiError:
        return ApiError(400, f"The request body is not valid JSON: {why}")
