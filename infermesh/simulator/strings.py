"""The texts of filled schemas, and the draft that remembers which were used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from infermesh.simulator.content import Prompt, occurrences, pick
from infermesh.simulator.patterns import example

__all__ = ["Draft", "compile_string"]


class Draft:
    """The state of a value that is being written: what to quote, and what was quoted already.

    Parameters
    ----------
    prompt
        What to quote.
    seed
        Decides what cannot be quoted.
    variant
        Another variant gives another value, if the schema allows more than one.
    """

    def __init__(self, prompt: Prompt, seed: int, variant: int = 0) -> None:
        self.prompt = prompt
        self.seed = seed
        self.salt = variant
        self.depth = 0
        self.listing = False
        self._ticks = variant

    @contextmanager
    def deeper(self, listing: bool = False) -> Iterator[None]:
        """Enter an object or a list. The texts of a list are keywords, not sentences."""
        before = self.listing, self.salt
        self.depth, self.listing = self.depth + 1, listing
        try:
            yield
        finally:
            self.depth -= 1
            self.listing, self.salt = before

    def tick(self) -> int:
        """Count the values written so far."""
        self._ticks += 1
        return self._ticks

    def keyword(self, rank: int) -> str:
        """Return the prompt's keyword of a rank. Beyond the last, keywords are numbered."""
        words = self.prompt.keywords
        return words[rank] if rank < len(words) else f"{words[rank % len(words)]} {rank // len(words) + 1}"

    def text(self) -> str:
        """Return the next text that has not been used."""
        if self.listing:
            return self.keyword(max(self.salt - 1, 0))
        rank = self.tick() - 1
        return self.prompt.sentence(rank)

    def choose(self, phrases: Sequence[str]) -> int:
        """Return the index of the phrase that the document mentions most, else the prompt, else of any."""
        for text in (self.prompt.document, self.prompt.text):
            counts = [occurrences(phrase, text) for phrase in phrases]
            most = max(counts)
            if most:
                best = [index for index, count in enumerate(counts) if count == most]
                break
        else:
            best = list(range(len(phrases)))
        if self.salt:
            # In a list: the best one first, then the others in turn.
            ordered = [*best, *(index for index in range(len(phrases)) if index not in best)]
            return ordered[(self.salt - 1) % len(ordered)]
        return best[pick(self.seed, self.prompt.text, *phrases) % len(best)]


_FORMATS: dict[str, Callable[[int], str]] = {
    "date": lambda bits: f"2024-{1 + bits % 12:02}-{1 + bits // 12 % 28:02}",
    "time": lambda bits: f"{bits % 24:02}:{bits // 24 % 60:02}:00Z",
    "date-time": lambda bits: f"2024-{1 + bits % 12:02}-{1 + bits // 12 % 28:02}T{bits // 336 % 24:02}:00:00Z",
    "duration": lambda bits: f"PT{1 + bits % 59}M",
    "email": lambda bits: f"user{bits % 10_000}@example.com",
    "hostname": lambda bits: f"host{bits % 10_000}.example.com",
    "ipv4": lambda bits: f"192.0.2.{bits % 256}",
    "ipv6": lambda bits: f"2001:db8::{bits % 65_536:x}",
    "uri": lambda bits: f"https://example.com/{bits % 10_000}",
    "uuid": lambda bits: str(UUID(int=bits << 64 | bits, version=4)),
}


def compile_string(schema: dict[str, Any]) -> Callable[[Draft], str]:
    """Return the function that writes texts for a schema of type string."""
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    form = _FORMATS.get(schema.get("format", ""))
    if form is not None:
        return lambda draft: form(pick(draft.seed, draft.prompt.text, draft.tick()))
    if "pattern" not in schema:
        return lambda draft: _fit(draft.text(), least, most)
    pattern = str(schema["pattern"])
    written = example(pattern, least, most)
    try:
        compiled = re.compile(pattern)
    except re.error:
        return lambda draft: _fit(draft.text(), least, most)

    def matching(draft: Draft) -> str:
        quoted = draft.text()
        # The prompt often contains what the pattern describes: an order number, a country code.
        found = compiled.search(quoted) or re.search(pattern.removeprefix("^").removesuffix("$"), draft.prompt.document)
        for candidate in (quoted, found.group() if found else "", _fit(quoted, least, most)):
            if least <= len(candidate) <= (most or len(candidate)) and compiled.search(candidate):
                return candidate
        return _fit(quoted, least, most) if written is None else written

    return matching


def _fit(text: str, least: int, most: int | None) -> str:
    """Cut or lengthen a text. It is cut at the end of a word, if one is near."""
    if most is not None and len(text) > most:
        cut = text[:most].rstrip()
        at_word = cut.rsplit(" ", 1)[0]
        text = at_word if len(at_word) >= max(least, most // 2) else cut
    if len(text) < least:
        text = (text or "text") + " " + text
        while len(text) < least:
            text += " " + text
        text = text[: max(least, min(most or least, len(text)))]
    return text
