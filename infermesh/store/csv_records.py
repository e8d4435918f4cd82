"""The records of a CSV text, one by one, with the lines that each was read from.

Python's own reader is fast and knows most of CSV. What it does not know is read here: a blank around quotes, as in
``1, "a, b"``, a delimiter of several characters, and quotes that are escaped by another character. It is read as DuckDB
reads it, so that a file with a malformed line has the same values as one without.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["CsvForm", "records"]

_MOST_LINES = 2000  # in one quoted value; a quote that is open for longer was never closed


@dataclass(frozen=True, slots=True)
class CsvForm:
    """How records are written: ``delimiter``, ``quote`` (empty: none) and what stands before a quote within quotes."""

    delimiter: str
    quote: str
    escape: str


def records(readline: Callable[[], str], form: CsvForm) -> Iterator[tuple[list[str], list[str] | str]]:
    """The lines of each record and its values; of one that cannot be read, its first line, twice.

    After such a line, reading continues with the next one: the lines that were taken since are read again.
    """
    csv.field_size_limit(sys.maxsize)
    again: list[str] = []
    taken: list[str] = []
    cut = _Cutter(form)
    plain = len(form.delimiter) == 1 and form.escape == form.quote

    def lines() -> Iterator[str]:
        while len(taken) < _MOST_LINES and (line := again.pop() if again else readline()):
            taken.append(line)
            yield line

    def give_back(kept: int) -> None:
        again.extend(reversed(taken[kept:]))
        del taken[kept:]

    options: dict[str, Any] = {"delimiter": form.delimiter, "strict": True}
    options |= {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE}
    while True:
        record: list[str] | None = None
        taken = []
        if plain:
            try:
                record = next(csv.reader(lines(), **options))
            except StopIteration:
                return
            except csv.Error:
                pass
        if not plain or any(map(cut.has_blanks, taken)):
            give_back(0)
            record = cut.record(lines())
            if not taken:
                return
        if record is None:
            give_back(1)
        yield taken, taken[0] if record is None else record


class _Cutter:
    """Cuts records value by value."""

    def __init__(self, form: CsvForm) -> None:
        self._delimiter, self._quote = form.delimiter, form.quote
        self._opening: re.Pattern[str] | None = None
        self._blanks: re.Pattern[str] | None = None
        if not form.quote:
            return
        quote, escape, edge = re.escape(form.quote), re.escape(form.escape), re.escape(form.delimiter)
        blank = "" if form.delimiter == " " else " "
        within = rf"[^{quote}]|{quote}{quote}" if escape == quote else rf"[^{quote}{escape}]|{escape}."
        # One blank may stand before the quotes, and any number behind them.
        self._opening = re.compile(f"{blank}?{quote}")
        self._quoted = re.compile(f"{blank}?{quote}((?:{within})*+){quote}{blank}*", re.DOTALL)
        self._escaped = re.compile(f"{escape}(.)", re.DOTALL)
        if blank:
            self._blanks = re.compile(f"(?:^|{edge}) {quote}|{quote} +(?:{edge}|[\r\n]|$)")

    def has_blanks(self, line: str) -> bool:
        """Whether there may be quotes in a line with a blank before or behind them."""
        return self._blanks is not None and self._blanks.search(line) is not None

    def record(self, lines: Iterator[str]) -> list[str] | None:
        """The values of the record that begins with the first line; takes as many lines as it has."""
        text, at = "", 0  # what is taken, and where the next value begins
        values: list[str] = []
        for line in lines:
            closes = not text or self._quote in line
            text += line
            if not closes:
                continue
            while True:
                if self._opening is not None and self._opening.match(text, at):
                    found = self._quoted.match(text, at)
                    if found is None:
                        break  # the quote is closed in a later line
                    values.append(self._escaped.sub(r"\1", found[1]))
                    at = found.end()
                else:
                    end = text.find(self._delimiter, at)
                    end = len(text.rstrip("\r\n")) if end < 0 else end
                    values.append(text[at:end])
                    at = end
                if not text.startswith(self._delimiter, at):
                    return None if text[at:].strip("\r\n") else values
                at += len(self._delimiter)
        return None
