"""Find the JSON in an answer that holds more than JSON: thoughts, Markdown fences, words around it.

A model that is served without a reasoning parser writes its thoughts into the text (deepseek-ai/DeepSeek-R1#381,
stanfordnlp/dspy#7489): DeepSeek and Qwen between ``<think>`` tags, whose first one the chat template may have written;
Magistral between ``[THINK]`` marks; gpt-oss in channels (OpenAI's "harmony" format).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

__all__ = ["candidates", "split_thoughts"]

_TAGS = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad"
_CLOSING = re.compile(rf"</(?:{_TAGS})>|\[/THINK\]|<\|end_of_thought\|>|◁/think▷", re.IGNORECASE)
_OPENING = re.compile(rf"\s*(?:<(?:{_TAGS})>|\[THINK\]|<\|begin_of_thought\|>|◁think▷)", re.IGNORECASE)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final\b[^<]*<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:return|end|call)\|>")
_HARMONY_MARK = re.compile(r"<\|(?:channel|message|start|end|return)\|>(?:assistant|analysis|commentary)?")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE_FENCE = re.compile(r"```(?:json)?[ \t]*(.+?)[ \t]*```", re.DOTALL)
_START = re.compile(r"[{\[]")
_TRIES = 64  # places at which a bare value is looked for, so that the time stays linear in the text

_decoder = json.JSONDecoder()


def split_thoughts(text: str) -> tuple[str | None, str]:
    """Split an answer into the model's thoughts and the rest.

    Thoughts that were begun and never ended are all there is: the rest is empty then.

    Examples
    --------
    >>> split_thoughts("<think>Which city?</think> Oslo")
    ('Which city?', 'Oslo')
    >>> split_thoughts("Oslo")
    (None, 'Oslo')
    """
    if final := list(_FINAL_CHANNEL.finditer(text)):
        thoughts, rest = text[: final[-1].start()], text[final[-1].end() :]
        if end := _HARMONY_END.search(rest):
            rest = rest[: end.start()]
        return " ".join(_HARMONY_MARK.sub(" ", thoughts).split()) or None, rest.strip()
    if closing := list(_CLOSING.finditer(text)):
        thoughts, rest = text[: closing[-1].start()], text[closing[-1].end() :]
        return _OPENING.sub("", thoughts, count=1).strip() or None, rest.strip()
    if opening := _OPENING.match(text):
        return text[opening.end() :].strip() or None, ""
    return None, text


def candidates(text: str) -> Iterator[str]:
    """The places of a text that may be the JSON that was asked for, the likeliest first.

    The text without thoughts; what stands in fences, the last one first, since an answer comes after its examples; and
    bare objects and lists between words, the longest first.
    """
    _, text = split_thoughts(text)
    text = text.strip().removeprefix("\ufeff").strip()
    if not text:
        return
    yield text
    fenced = [match[2] for match in _FENCE.finditer(text)] or [match[1] for match in _INLINE_FENCE.finditer(text)]
    yield from (inside.strip() for inside in reversed(fenced) if inside.strip())
    yield from sorted(_bare(text), key=len, reverse=True)


def _bare(text: str) -> list[str]:
    """The JSON objects and lists that stand in a text, from left to right."""
    found: list[str] = []
    position = 0
    for _ in range(_TRIES):
        start = _START.search(text, position)
        if start is None:
            break
        try:
            _, end = _decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            position = start.end()
        else:
            found.append(text[start.start() : end])
            position = end
    return found
