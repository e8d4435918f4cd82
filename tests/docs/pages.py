"""Documents as tests: each block of a page runs, in the page's order and in a folder of the page's own.

What a block is told by its fence:

- ``console``: each ``$ command`` is run by bash, and what follows it is what it must print, on a terminal of 80
  columns. ``…`` stands for anything, alone on a line for any lines; ``TIME`` for the name of a run's folder, in a
  command for the newest one's.
- ``bash``, and an indented block: it has to succeed.
- anything with ``title="PATH"``: that file is written.
- ``python``: it is run; a ``text`` block with ``title="output"`` behind it is what it prints.
- ``yaml``: a part of an experiment; a mark names which.

Any other block is refused, since nothing would run it. Marks stand in a comment right before a block, with commas
between them, as ``<!-- test: numbers vary, exit 3 -->``:

- ``numbers vary``: each number matches any.
- ``exit 3``: the code that the last command ends with; ``exit 1 0 1``: that of each. All others have to be 0.
- ``in NAME``, ``in NAME stages.a``: with this YAML, there, in its declaration, the experiment can be planned.
- ``of NAME``, ``of NAME stages.a``: the experiment has this YAML there: its declaration with it is the same.
- ``long``: the block is left out of the page's short run. Before anything but a block: the page has no short run.

``<!-- skip: next "why" -->`` leaves a block out. ``<!-- invisible-code-block: bash`` … ``-->`` runs and is not shown.
``http://localhost:8000/v1`` is a simulator: the test's, or the one of the page's ``infermesh simulate --port 8000 …``,
which goes on until the page ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import selectors
import shlex
import subprocess
import sys
import textwrap
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from sybil import Example

from tests.docs.blocks import Marks, differs, is_block, parse, session, told
from tests.support import environment

SERVER = "http://localhost:8000/v1"
BLOCK_S = 120.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07)")
_FOLDER = re.compile(r"([\w./-]+)/TIME\b")
_SERVE = "infermesh simulate --port 8000"
_PART = "part_of_page"
# What bash leaves behind for the next block: its folder and its variables.
_AFTER = "trap 'pwd > {note}; env -0 > {note}.env' EXIT\n"


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
        self._ending = contextlib.ExitStack()

    def run(self, long: bool = True) -> tuple[int, list[str]]:
        """Run the blocks; how many ran, and the reasons of those that were left out."""
        ran, skipped = 0, []
        with self._ending, mock.patch.dict(os.environ):
            for example in self._document.examples():
                if is_block(example) and Marks(example).long and not long:
                    continue
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
            return differs(example.parsed, self._printed, Marks(example).numbers_vary)
        if title:
            self._write(title, text)
        elif language == "console":
            return self._session(example, text)
        elif language == "bash":
            return self._succeeds(f"set -e\n{text}", *Marks(example).codes(1))
        elif language == "python":
            self._printed = self._python(text, example)
        elif language == "yaml":
            return self._part(example, text)
        else:
            return f"nothing runs this block of {language or 'no language'}; tests/docs/pages.py says what is run"
        return None

    def _write(self, name: str, text: str) -> Path:
        target = self._cwd / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target

    def _part(self, example: Example, text: str) -> str | None:
        """Lay it over the experiment that it is a part of."""
        found = Marks(example).experiment
        if found is None:
            return "nothing checks this YAML: give it a title, or say before it which experiment it is in"
        how, name, keys = found
        above = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(keys))
        text = textwrap.indent(textwrap.dedent(text), "  " * len(keys))
        part = self._write(f"conf/experiment/{_PART}.yaml", f"# @package _global_\n{above}{text}")
        both = f"'+experiment=[{name},{_PART}]'"
        line = f"infermesh plan {both}"
        if how == "of":
            line = f"diff <(infermesh run {name} --cfg job) <(infermesh run {both} --cfg job)"
        try:
            return self._succeeds(line, *Marks(example).codes(1))
        finally:
            part.unlink()

    def _session(self, example: Example, text: str) -> str | None:
        sessions, marks = list(session(text)), Marks(example)
        if not sessions:
            return "nothing runs this block: no line of it begins with `$ `"
        for (line, shown), wanted in zip(sessions, marks.codes(len(sessions)), strict=True):
            code, orders = self._shell(line)
            if code != wanted:
                return f"$ {line}\nexit code {code}, not {wanted}:\n{orders[0]}"
            wrong = [differs(shown, said.replace(self._server, SERVER), marks.numbers_vary) for said in orders]
            if shown and all(wrong):
                return f"$ {line}\n{wrong[0]}"
        return None

    def _succeeds(self, line: str, wanted: int) -> str | None:
        code, orders = self._shell(line)
        return None if code == wanted else f"{line}\nexit code {code}, not {wanted}:\n{orders[0]}"

    def _shell(self, line: str) -> tuple[int, list[str]]:
        """Run by bash, in the folder and with the variables that the last one left; its code, and all that it said.

        A terminal passes on what it gets a little later than a pipe does. So what was said comes in three orders: as
        it was read, one stream behind the other, and the other way round.
        """
        if line.removeprefix("set -e\n").startswith(_SERVE):
            return self._simulate(line)
        note = Path(self._environment["HOME"]) / "cwd"
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", _AFTER.format(note=note) + self._named(line)],
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        assert process.stderr is not None
        orders = _read(ours, process.stderr.fileno())
        os.close(ours)
        process.stderr.close()
        code = process.wait(BLOCK_S)
        self._cwd = Path(note.read_text().strip())
        variables = note.with_suffix(".env").read_text().split("\0")
        self._environment = dict(variable.split("=", 1) for variable in variables if variable)
        return code, [_ESCAPES.sub("", said.decode(errors="replace")).replace("\r\n", "\n") for said in orders]

    def _named(self, line: str) -> str:
        """A command with the newest folders' names in it."""

        def newest(found: re.Match[str]) -> str:
            folders = [path for path in (self._cwd / found[1]).glob("*-*-*_*-*-*") if path.is_dir()]
            return f"{found[1]}/{max(folders).name}" if folders else found[0]

        return _FOLDER.sub(newest, line)

    def _simulate(self, line: str) -> tuple[int, list[str]]:
        """Start a server of the page's own, on a free port; the page's next blocks ask it."""
        words = shlex.split(line.partition(_SERVE)[2], comments=True)
        command = ["infermesh", "simulate", "--port", "0", *words]
        server = self._ending.enter_context(
            subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
        self._ending.callback(server.terminate)
        assert server.stdout is not None
        self._server = server.stdout.readline().decode().strip()
        return (0, [""]) if self._server else (1, ["it does not start"])

    def _python(self, text: str, example: Example) -> str:
        printed = io.StringIO()
        code = compile("\n" * example.line + text, example.path, "exec")
        with contextlib.chdir(self._cwd), contextlib.redirect_stdout(printed), _own_modules(self._cwd):
            exec(code, self._names)
        return printed.getvalue()


def _read(*descriptors: int) -> list[bytes]:
    """All that comes, as it comes; all of one behind all of the other; and the other way round."""
    found: list[tuple[int, bytes]] = []
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(BLOCK_S)
            if not ready:
                raise TimeoutError(f"nothing for {BLOCK_S:g} s, after {found[-5:]}")
            for key, _ in ready:
                try:
                    data = os.read(key.fd, 65536)
                except OSError:  # Linux's end of a terminal
                    data = b""
                if not data:
                    selector.unregister(key.fd)
                found.append((key.fd, data))
    first = sorted(found, key=lambda each: descriptors.index(each[0]))
    last = sorted(found, key=lambda each: -descriptors.index(each[0]))
    return [b"".join(data for _, data in each) for each in (found, first, last)]


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
