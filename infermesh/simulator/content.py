"""What the simulated model says: quotes from the prompt, always the same ones for the same prompt."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cached_property, lru_cache
from hashlib import blake2b
from random import Random

__all__ = ["Prompt", "count_tokens", "invented_words", "pick", "take_tokens"]

_CHARS_PER_TOKEN = 4
# To rank the sentences of a whole book would be slow, and the quotes would be no better.
_READ_CHARS = 4_000

_DELIMITED = re.compile(
    r"<([A-Za-z][\w-]*)[^<>]*>(.*?)</\1>"
    r"|\"\"\"(.*?)\"\"\"|'''(.*?)'''|```(?:\w*\n)?(.*?)```",
    re.DOTALL,
)
_VERBS = (
    "summari[sz]e|classify|extract|translate|rewrite|write|return|answer|respond|reply|describe|list|give|identify|"
    "read|explain|analy[sz]e|rate|judge|label|tag|use|do not|don't|you are|your task|output|provide|generate|consider"
)
_INSTRUCTION = re.compile(rf"\W*(?:please\s+|now\s+|then\s+)*(?:{_VERBS})\b", re.IGNORECASE)
# "Summarise this ticket: The printer ..." and "Ticket:\nThe printer ...".
_LEAD_IN = re.compile(rf"\W*(?:(?:please\s+)?(?:{_VERBS})\b[^:\n]{{0,200}}:\s*|[^:\n]{{1,60}}:[ \t]*\n)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_NUMBER = re.compile(r"(?<![\w.-])-?\d{1,15}(?:\.\d{1,6})?(?!\.?\w)")
_GRAMMAR = """
about after also because been before being could does doing from have having here into just more most only other over
same should some such than that their them then there these they this those very were what when where which while will
with would your
"""
_STOPWORDS = frozenset(_GRAMMAR.split())
_SMALL_TALK = """
the team agreed to review our budget before next week and then send a short note about shipping costs while customers
asked for clearer updates on every open order from last month so we will call them back today
"""
_INVENTED = _SMALL_TALK.split()


def count_tokens(text: str) -> int:
    """Estimate tokens: four characters each, rounded up; the same for every model."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def take_tokens(text: str, tokens: int) -> str:
    """Return the longest head of a text that `count_tokens` puts at no more than `tokens`."""
    return text[: tokens * _CHARS_PER_TOKEN]


def pick(seed: int, *parts: object) -> int:
    """Return 64 bits that look random and are the same for the same arguments, in every process."""
    key = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def invented_words(seed: int, key: int, count: int) -> str:
    """Return sentences of `count` words, for a clip that does not carry its own."""
    words = Random(seed ^ key).choices(_INVENTED, k=count)
    sentences = [" ".join(words[start : start + 10]).capitalize() + "." for start in range(0, count, 10)]
    return " ".join(sentences)


@lru_cache(maxsize=65536)
def _whole(phrase: str) -> re.Pattern[str]:
    spaced = r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", phrase)))
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)


def occurrences(phrase: str, text: str) -> int:
    """Count a phrase in a text as whole words; case, underscores and hyphens do not matter."""
    return len(_whole(phrase).findall(text)) if phrase.strip() else 0


class Prompt:
    """A user's message as a source of answers.

    Parameters
    ----------
    text
        The message. Its longest delimited part (a tag's content, triple quotes, a fence, a paragraph) is taken for the
        document that the rest gives instructions about.
    """

    def __init__(self, text: str) -> None:
        self.text = text[:_READ_CHARS]

    @cached_property
    def document(self) -> str:
        """The part to quote from."""
        text = self.text
        blocks = []
        if "<" in text or '"""' in text or "'''" in text or "```" in text:
            blocks = ["".join(match.groups("")[1:]) for match in _DELIMITED.finditer(text)]
        longest = max(blocks, key=len, default="")
        if len(longest) < 16:
            longest = max(text.split("\n\n"), key=len)
        longest = longest.strip()
        lead_in = _LEAD_IN.match(longest)
        return (longest[lead_in.end() :].strip() if lead_in else "") or longest

    @cached_property
    def sentences(self) -> list[str]:
        """The document's sentences, without those that look like instructions unless there are no others."""
        found = [part.strip() for part in _SENTENCE_END.split(self.document)]
        found = [part for part in found if part]
        return [part for part in found if not _INSTRUCTION.match(part)] or found or ["OK."]

    @cached_property
    def _frequencies(self) -> Counter[str]:
        words = Counter(_WORD.findall(self.document.lower()))
        for word in _STOPWORDS & words.keys():
            del words[word]
        return words

    @cached_property
    def ranked(self) -> list[int]:
        """Indices of `sentences`, the most telling first.

        A sentence's score is the sum of its words' counts in the document, divided by the root of its length, so that
        its length does not decide. Earlier sentences get a bonus.
        """
        if len(self.sentences) == 1:
            return [0]
        frequencies = self._frequencies

        def score(index: int) -> float:
            words = _WORD.findall(self.sentences[index].lower())
            return sum(frequencies[word] for word in set(words)) / math.sqrt(len(words) + 4) + 1 / (1 + index)

        return sorted(range(len(self.sentences)), key=lambda index: (-score(index), index))

    @cached_property
    def keywords(self) -> list[str]:
        """The document's words, the most frequent first."""
        return [word for word, _ in self._frequencies.most_common()] or ["text"]

    @cached_property
    def numbers(self) -> list[float]:
        """The document's numbers, in order."""
        return [float(number) for number in _NUMBER.findall(self.document)]

    def extract(self, sentences: int, variant: int = 0) -> str:
        """Quote the most telling sentences, in their order. Another variant quotes others, if there are any."""
        ranked = self.ranked
        count = min(sentences, len(ranked))
        chosen = {ranked[(variant + offset) % len(ranked)] for offset in range(count)}
        return " ".join(self.sentences[index] for index in sorted(chosen))

    def sentence(self, rank: int) -> str:
        """Return the sentence of a rank. Ranks beyond the last start over."""
        return self.sentences[self.ranked[rank % len(self.ranked)]]
