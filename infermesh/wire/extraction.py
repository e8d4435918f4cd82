"""Find the JSON in an answer that holds more than JSON: thoughts, Markdown fences, words around it.

A model that is served without a reasoning parser writes its thoughts into the text (deepseek-ai/DeepSeek-R1#381,
stanfordnlp/dspy#7489). How each family marks them stands in ``_MARKS``; the chat template may have written the first
mark. gpt-oss writes in channels (OpenAI's "harmony" format).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from infermesh.exact_json import loads_leniently

__all__ = ["candidates", "mended", "split_thoughts"]

_TAGS = "think|thinking|thought|thoughts|reason|reasoning|reflection|scratchpad|analysis|seed:think"
_MARKS = (  # what begins thoughts, and what ends them
    (rf"<(?:{_TAGS})>", rf"</(?:{_TAGS})>"),  # DeepSeek, Qwen, Seed-OSS and most others
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"),  # Cohere
    (r"<unused94>(?:thought\n)?", r"<unused95>"),  # MedGemma
    (r"<\|channel>(?:thought\n)?", r"<channel\|>"),  # Gemma 4
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"Here(?: is|'s) my thought process:", r"Here(?: is|'s) my response:"),  # Granite 3
)
_OPENING = re.compile(rf"\s*(?:{'|'.join(opening for opening, _ in _MARKS)})", re.IGNORECASE)
_CLOSING = re.compile("|".join(closing for _, closing in _MARKS), re.IGNORECASE)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
# The same where the server leaves the special tokens out.
_BARE_CHANNELS = re.compile(r"\s*(analysis.*?assistant)final(?:\s*json\b)?", re.DOTALL)
_HARMONY_END = re.compile(r"<\|(?:return|end|call)\|>|<\|END_RESPONSE\|>")
_HARMONY_MARK = re.compile(r"<\|(?:channel|message|start|end|return)\|>(?:assistant|analysis|commentary)?")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE_FENCE = re.compile(r"```(?:json)?[ \t]*(.+?)[ \t]*```", re.DOTALL)
_START = re.compile(r"[{\[]")
_TAIL = re.compile(r"^[ \t]*(?=[{\[`~])", re.MULTILINE)
# A text as it is; outside of texts a comma with nothing after it, and spaces that JSON does not know.
_LOOSE = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|,(?=\s*[}\]])|[\u00a0\u2000-\u200b\u202f\u3000\ufeff]', re.DOTALL
)
_SPLITS = 16  # marks that are tried as the end of the thoughts
_VALUES = 64  # bare values that are tried
_WORK = 16  # characters read in vain, as a multiple of the text's length, so that the time stays linear in it
_DEEP = 5000  # what an attempt costs that ends in too deep nesting

_decoder = json.JSONDecoder(strict=False)


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
    return next(_splits(text))


def _splits(text: str) -> Iterator[tuple[str | None, str]]:
    """The ways to split a text into thoughts and the rest, the likeliest first."""
    if final := list(_FINAL_CHANNEL.finditer(text)):
        thoughts = _HARMONY_MARK.sub(" ", text[: final[-1].start()])
        yield " ".join(thoughts.split()) or None, _ended(text[final[-1].end() :])
    elif channels := _BARE_CHANNELS.match(text):
        thoughts = channels[1].removeprefix("analysis").removesuffix("assistant")
        yield thoughts.strip() or None, text[channels.end() :].strip()
    elif closing := list(_CLOSING.finditer(text)):
        for mark in reversed(closing[-_SPLITS:]):  # a later one may stand in the answer's own text
            thoughts = _OPENING.sub("", text[: mark.start()], count=1)
            yield thoughts.strip() or None, _ended(text[mark.end() :])
    elif opening := _OPENING.match(text):
        yield text[opening.end() :].strip() or None, ""
    else:
        yield None, text


def _ended(rest: str) -> str:
    end = _HARMONY_END.search(rest)
    return (rest if end is None else rest[: end.start()]).strip()


def candidates(text: str, *, last: bool) -> Iterator[tuple[str | None, str]]:
    """The places of a text that may be the JSON that was asked for, the likeliest first, with the thoughts before each.

    Parameters
    ----------
    text
        The answer.
    last
        For a caller that knows a value that fits from one that does not: after the text without thoughts come the
        values in fences and between words, the last one first, since an answer comes after its drafts and examples.
        Without it, what stands in fences comes first, and of what stands between words the longest.
    """
    for thoughts, rest in _splits(text):
        rest = rest.strip().removeprefix("\ufeff").strip()
        if rest:
            yield thoughts, rest
            yield from ((thoughts, value) for value in _values(rest, last))
        elif thoughts:
            yield from _tails(thoughts)


def _tails(thoughts: str) -> Iterator[tuple[str | None, str]]:
    """What may be an answer at the end of thoughts with nothing after them: it begins a line, and ends the text."""
    for line in reversed(list(_TAIL.finditer(thoughts))[-_SPLITS:]):
        tail = thoughts[line.end() :]
        fence = _FENCE.fullmatch(tail)
        yield thoughts[: line.start()].strip() or None, fence[2].strip() if fence else tail


def mended(text: str) -> Any:
    """Decode JSON as models write it: leniently, with commas after the last item and odd spaces, if need be.

    Raises
    ------
    ValueError
        It is not JSON in this sense either.
    """
    try:
        return loads_leniently(text)
    except ValueError:
        if not text.startswith(("{", "[")):
            raise
    return loads_leniently(_LOOSE.sub(lambda found: {'"': found[0], ",": ""}.get(found[0][0], " "), text))


def _values(text: str, last: bool) -> Iterator[str]:
    found = list(_FENCE.finditer(text))
    fenced = [(match.start(2), match[2]) for match in found] or [
        (match.start(1), match[1]) for match in _INLINE_FENCE.finditer(text)
    ]
    fenced = [(start, inside) for start, inside in fenced[-_VALUES:] if inside.strip()]
    bare = _bare(text)
    if last:
        # A fence within a value stands in one of its strings.
        fenced = [item for item in fenced if not any(start < item[0] < start + len(value) for start, value in bare)]
        ordered = sorted([*fenced, *bare], key=lambda item: item[0], reverse=True)
    else:
        ordered = [*reversed(fenced), *sorted(bare, key=lambda item: len(item[1]), reverse=True)]
    for _, value in ordered:
        yield value.strip()


def _bare(text: str) -> list[tuple[int, str]]:
    """The JSON objects and lists that stand in a text, from left to right, each with where it begins."""
    found: list[tuple[int, str]] = []
    position, work = 0, _WORK * len(text)
    while work > 0 and (start := _START.search(text, position)) is not None:
        begin = start.start()
        try:
            _, end = _decoder.raw_decode(text, begin)
        except json.JSONDecodeError as error:
            position = start.end()
            work -= (len(text) if error.msg.startswith("Unterminated") else error.pos) - begin
            work -= 20 + begin // 64  # the exception counts the lines before it
        except (ValueError, RecursionError):
            position = start.end()
            work -= _DEEP
        else:
            found.append((begin, text[begin:end]))
            position = end
    return found[-_VALUES:]
