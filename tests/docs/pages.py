"""Documents as tests: each block of a page runs, in the page's order and in a folder of the page's own.

What a block is told by its fence:

- ``console``: each ``$ command`` is run by bash, and what follows it is what it must print, on a terminal of 80
  columns. ``…`` stands for anything, alone on a line for any lines; ``TIME`` for the name of a run's folder.
- ``bash``, and an indented block that begins with a command: it has to succeed.
- anything with ``title="PATH"``: that file is written.
- ``python``: it is run; a ``text`` block with ``title="output"`` behind it is what it prints.
- ``yaml``, ``json``, ``toml``: it can be read.

A comment right before a block says more: ``<!-- test: numbers vary -->`` (each number matches any), ``exit 3`` (the
code that the last command ends with); ``<!-- skip: next "why" -->`` leaves it out. ``<!-- invisible-code-block: bash``
… ``-->`` runs and is not shown. ``http://localhost:8000/v1`` is a simulator.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import selectors
import subprocess
import sys
import textwrap
import tomllib
import unittest
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from sybil import Document, Example, Region
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

from tests.support import environment

SERVER = "http://localhost:8000/v1"
BLOCK_S = 120.0
COMMANDS = "infermesh|python|printf|cat|cd|export|pip|nox|pytest|bash|mkdir|cp|towncrier|pre-commit"
_INDENTED = re.compile(rf"(?<=\n\n)(?: {{4}}(?:{COMMANDS})\b.*\n(?:(?: {{4}}.*)?\n)*?)(?=\S|\Z| {{0,3}}\S)")
_FENCED = RawFencedCodeBlockLexer(re.compile(r"(?P<arguments>[^\n]*)\n"))
_INVISIBLE = DirectiveInHTMLCommentLexer("invisible-code-block", ".+")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07)")
_NUMBER = re.compile(r"\d(?:[\d,]|\\\.(?=\d))*")  # in a text that re.escape has gone over
_TITLE = re.compile(r'title="([^"]+)"')
_READERS: dict[str, Callable[[str], Any]] = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}


class Page:
    """A document, and the folder in which its blocks run.

    Parameters
    ----------
    path
        Of the document.
    folder
        Empty; the blocks' working directory.
    programs
        A folder that goes first on ``PATH``.
    server
        URL of what answers in place of ``http://localhost:8000/v1``.
    """

    def __init__(self, path: Path, folder: Path, programs: Path, server: str) -> None:
        self._cwd, self._server, self._printed = folder, server, ""
        self._names: dict[str, Any] = {"__name__": "__main__"}
        home = folder.parent / "home"
        home.mkdir(exist_ok=True)
        search = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = environment(PATH=search, HOME=str(home), TERM="dumb", COLUMNS="80", LINES="40")
        self._document = parse(path, self._evaluate)

    def run(self) -> tuple[int, list[str]]:
        """Run the blocks; how many ran, and the reasons of those that were left out."""
        ran, skipped = 0, []
        for example in self._document.examples():
            try:
                example.evaluate()
                ran += is_block(example)
            except unittest.SkipTest as reason:
                skipped.append(str(reason))
        return ran, skipped

    def _evaluate(self, example: Example) -> str | None:
        language, title = told(example)
        text = example.parsed.replace(SERVER, self._server)
        if title == "output":
            return differs(example.parsed, self._printed, varies(example))
        if title:
            target = self._cwd / title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif language == "console":
            return self._session(example, text)
        elif language == "bash":
            code, said = self._shell(f"set -e\n{text}")
            return None if code == expected_code(example) else f"exit code {code}:\n{said}"
        elif language == "python":
            self._printed = self._python(text, example)
        elif language in _READERS:
            _READERS[language](text)
        elif language not in ("text", "sql", "jinja", "jinja2", "ini", "css"):
            return f"{language!r} is no kind of block that the test of pages knows"
        return None

    def _session(self, example: Example, text: str) -> str | None:
        sessions = list(session(text))
        for number, (line, shown) in enumerate(sessions):
            code, said = self._shell(line)
            wanted = expected_code(example) if number == len(sessions) - 1 else None
            if wanted is not None and code != wanted:
                return f"$ {line}\nexit code {code}, not {wanted}:\n{said}"
            if shown and (wrong := differs(shown, said.replace(self._server, SERVER), varies(example))):
                return f"$ {line}\n{wrong}"
        return None

    def _shell(self, line: str) -> tuple[int, str]:
        """Run by bash, in the folder where the last one ended; its code, and what it said on both streams."""
        note = Path(self._environment["HOME"]) / "cwd"
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", f"trap 'pwd > {note}' EXIT\n{line}"],
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        assert process.stderr is not None
        said = _read([ours, process.stderr.fileno()])
        os.close(ours)
        process.stderr.close()
        code = process.wait(BLOCK_S)
        self._cwd = Path(note.read_text().strip())
        return code, _ESCAPES.sub("", said).replace("\r\n", "\n")

    def _python(self, text: str, example: Example) -> str:
        printed = io.StringIO()
        code = compile("\n" * example.line + text, example.path, "exec")
        with contextlib.chdir(self._cwd), contextlib.redirect_stdout(printed), _own_modules(self._cwd):
            exec(code, self._names)
        return printed.getvalue()


def parse(path: Path, evaluator: Any = None) -> Document:
    """A page and its blocks."""
    document = Document.parse(str(path), SkipParser())
    blocks = [*_FENCED(document), *_INVISIBLE(document)]
    for found in _INDENTED.finditer(document.text):
        if not any(block.start <= found.start() < block.end for block in blocks):
            lexemes = {"arguments": "bash", "source": textwrap.dedent(found[0])}
            blocks.append(Region(found.start(), found.end(), lexemes=lexemes))
    for block in blocks:
        block.parsed, block.evaluator = str(block.lexemes["source"]), evaluator
        document.add(block)
    return document


def is_block(example: Example) -> bool:
    """Whether it is one, and no word to the test."""
    return isinstance(example.parsed, str)


def told(example: Example) -> tuple[str, str | None]:
    """The language and the title that a block's fence tells; an indented one is for the shell."""
    info = str(example.region.lexemes["arguments"])
    title = _TITLE.search(info)
    return re.split(r"[\s{]", info.strip())[0], title and title[1]


def _words(example: Example) -> str:
    before = re.search(r"<!-- test: ([^>]*) -->\s*\Z", example.document.text[: example.start])
    return before[1] if before else ""


def varies(example: Example) -> bool:
    return "numbers vary" in _words(example)


def expected_code(example: Example) -> int:
    found = re.search(r"exit (\d+)", _words(example))
    return int(found[1]) if found else 0


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
        pattern = _NUMBER.sub(lambda _: r"\d[\d.,]*", pattern)
    pattern = re.sub(r"\bTIME\b", r"[\\d_-]{19}", pattern)  # last: the pattern has numbers of its own
    return pattern.replace(r"\ ", " +") + r"\n"


def _read(descriptors: Iterable[int]) -> str:
    """All that comes, in the order in which it comes."""
    found = b""
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(BLOCK_S)
            if not ready:
                raise TimeoutError(f"nothing for {BLOCK_S:g} s, after {found[-2000:]!r}")
            for key, _ in ready:
                try:
                    data = os.read(key.fd, 65536)
                except OSError:  # Linux's end of a terminal
                    data = b""
                if not data:
                    selector.unregister(key.fd)
                found += data
    return found.decode(errors="replace")


@contextlib.contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
    """Modules of a page's folder are not those that the next page imports."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
