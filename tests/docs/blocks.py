"""What a page of the documentation says: its blocks, the marks before them, and what each must print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from sybil import Document, Example, Region
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

_FENCED = RawFencedCodeBlockLexer(re.compile(r"(?P<arguments>[^\n]*)\n"))
_INVISIBLE = DirectiveInHTMLCommentLexer("invisible-code-block", ".+")
_NUMBER = re.compile(r"\d(?:[\d,]|\\\.(?=\d))*(?:[kM]\b)?")  # in a text that re.escape has gone over
_TITLE = re.compile(r'title="([^"]+)"')
_MARKS = re.compile(r"<!-- test: ([^>]*?) -->\s*")
_MARK = re.compile(r"numbers vary|long|exit \d+(?: \d+)*|(?:in|of) [\w-]+(?: [\w.]+)?")


def parse(path: Path, evaluator: Any = None) -> Document:
    """A page and its blocks."""
    document = Document.parse(str(path), SkipParser())
    for block in [*_FENCED(document), *_INVISIBLE(document), *_indented(document.text)]:
        block.parsed, block.evaluator = str(block.lexemes["source"]), evaluator
        document.add(block)
    return document


def _indented(text: str) -> Iterator[Region]:
    starts = [0, *(found.end() for found in re.finditer("\n", text)), len(text)]
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "code_block" and token.map:
            first, end = token.map
            yield Region(starts[first], starts[end], lexemes={"arguments": "bash", "source": token.content})


def is_block(example: Example) -> bool:
    """Whether it is one, and no word to the test."""
    return isinstance(example.parsed, str)


def told(example: Example) -> tuple[str, str | None]:
    """The language and the title that a block's fence tells; an indented one is for the shell."""
    info = str(example.region.lexemes["arguments"])
    title = _TITLE.search(info)
    return re.split(r"[\s{]", info.strip())[0], title and title[1]


class Marks:
    """What the comment before a block says of it.

    Raises
    ------
    ValueError
        One that has no meaning.
    """

    def __init__(self, example: Example) -> None:
        before = re.search(_MARKS.pattern + r"\Z", example.document.text[: example.start])
        self.words = [word.strip() for word in before[1].split(",")] if before else []
        if unknown := [word for word in self.words if not _MARK.fullmatch(word)]:
            raise ValueError(f"{unknown[0]!r} is no mark that the test of pages knows")
        self.numbers_vary = "numbers vary" in self.words
        self.long = "long" in self.words

    def codes(self, commands: int) -> list[int]:
        """The exit code of each of a block's commands."""
        told = next(([int(code) for code in word.split()[1:]] for word in self.words if word.startswith("exit ")), [0])
        return [0] * (commands - len(told)) + told

    @property
    def experiment(self) -> tuple[str, str, list[str]] | None:
        """``in`` or ``of``, an experiment, and the keys below which the block's text stands there."""
        for word in self.words:
            if word.startswith(("in ", "of ")):
                how, name, *where = word.split()
                return how, name, where[0].split(".") if where else []
        return None


def length(path: Path) -> tuple[bool, bool]:
    """Whether a page has a short run, and whether it has a long one."""
    marked = [Marks(example).long for example in parse(path).examples() if is_block(example)]
    total = sum("long" in found[1] for found in _MARKS.finditer(path.read_text(encoding="utf-8")))
    return total == sum(marked), total > 0


def session(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with its further lines, and what the block shows of its output."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        lines = part.splitlines()
        end = 1
        while end < len(lines) and _open("\n".join(lines[:end])):
            end += 1
        yield "\n".join(lines[:end]), "\n".join(lines[end:])


def _open(command: str) -> bool:
    """Whether bash would ask for another line."""
    if re.search(r"<<-?'?(\w+)'?", command):
        word = re.search(r"<<-?'?(\w+)'?", command)
        return word is not None and not re.search(rf"^{word[1]}$", command, re.M)
    unquoted = re.sub(r"'[^']*'", "", re.sub(r'"(?:\\.|[^"\\])*"', "", command, flags=re.S))
    return '"' in unquoted or "'" in unquoted or command.endswith("\\")


def differs(shown: str, said: str, numbers_vary: bool = False) -> str | None:
    """What is wrong with an output, held against what a page shows of it."""
    pattern = "".join(_line(line, numbers_vary) for line in shown.splitlines() if line.strip())
    lines = "".join(f"{' '.join(line.split())}\n" for line in said.splitlines() if line.strip())
    if re.fullmatch(pattern, lines):
        return None
    return f"it should say\n{textwrap.indent(shown, '    ')}\nit says\n{textwrap.indent(said, '    ')}"


def _line(line: str, numbers_vary: bool) -> str:
    if line.strip() == "…":
        return r"(?:.*\n)*?"
    pattern = re.escape(" ".join(line.split())).replace("…", ".*?")
    pattern = re.sub("─+", "─+", pattern)
    if numbers_vary:
        pattern = _NUMBER.sub(lambda _: r"\d[\d.,]*(?:[kM]\b)?", pattern)
    pattern = re.sub(r"\bTIME\b", r"[\\d_-]{19}", pattern)  # last: the pattern has numbers of its own
    return pattern.replace(r"\ ", " +") + r"\n"
