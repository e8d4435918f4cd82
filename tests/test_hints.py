"""Words for messages."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import re
import shutil
from pathlib import Path

import pytest

import infermesh
from infermesh.hints import counted, cure, cured, nearest, one_line, system_words, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("over\rwritten", r"over\rwritten"),
        ("\x9b31m\x7f\x00", r"\x9b31m\x7f\x00"),
        ("left\u202eright\u2066", r"left\u202eright\u2066"),
        ("half \ud83d", r"half \ud83d"),
        ("a\tb\nc\r\nd – 日本 😀 مرحبا", "a\tb\nc\r\nd – 日本 😀 مرحبا"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_an_error_of_the_system_says_path_reason_and_cure() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert system_words(full, "out.json").startswith("out.json: no space left on device: make room")
    named = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), b"in\xff.jsonl")
    assert system_words(named, "out.json").startswith("in\udcff.jsonl: no such file")
    assert system_words(shutil.Error("of its own")) == "of its own"


def test_only_the_systems_words_have_a_cure() -> None:
    assert cure("Binder Error: no such column") is None
    assert cured("Binder Error: no such column") == "Binder Error: no such column"
    assert cured("write: File too large").startswith("write: File too large: raise the limit")


@pytest.mark.parametrize(
    ("name", "valid", "meant"),
    [
        ("promt", ["prompt", "text"], "prompt"),
        ("msg", ["message", "text"], "message"),
        ("temprature", ["temperature", "top_p"], "temperature"),
        ("customer", ["vectors", "text", "source"], None),
        ("amount", ["text", "source"], None),
    ],
)
def test_a_far_guess_is_no_hint(name: str, valid: list[str], meant: str | None) -> None:
    listed = f" There is: {', '.join(sorted(valid))}."
    assert nearest(name, valid) == (f" Did you mean '{meant}'?" if meant else listed)


def test_a_long_error_keeps_its_beginning_and_its_advice() -> None:
    error = "d refuses the key: " + "words of the server\n" * 50 + "export KEY=…"
    for most in (400, 160, 60):
        shown = one_line(error, most)
        assert len(shown) <= most
        assert shown.startswith("d refuses the key: ")
        assert " … " in shown
        assert shown.endswith("export KEY=…")
    assert one_line("as it is", 8) == "as it is"


@pytest.mark.parametrize(
    ("number", "noun", "plural", "words"),
    [
        (0, "row", None, "0 rows"),
        (1, "row", None, "1 row"),
        (20_000, "row", None, "20,000 rows"),
        (1, "retry", "retries", "1 retry"),
        (2, "row is", "rows are", "2 rows are"),
    ],
)
def test_what_is_counted_has_the_number_of_its_count(number: int, noun: str, plural: str | None, words: str) -> None:
    assert counted(number, noun, plural) == words


_COUNTABLE = re.compile(
    r" (?:(?:more|new|failed|further|sample|warm-up) )?"
    r"(?:rows|row states|jobs|requests|runs|columns|stages|tokens|levels|days|lines|kinds)\b(?!/)"
)


def test_a_message_leaves_the_plural_to_one_function() -> None:
    """``f"{rows} rows"`` says "1 rows" some day. The name of a constant stands for a number that is not one."""
    found = [
        f"{file}:{number.lineno}: {ast.unparse(number.value)}{after.value!r:.30}"
        for file in sorted(Path(infermesh.__file__).parent.rglob("*.py"))
        if "simulator" not in file.parts  # it repeats the words of other servers
        for text in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(text, ast.JoinedStr)
        for number, after in itertools.pairwise(text.values)
        if isinstance(number, ast.FormattedValue) and isinstance(after, ast.Constant)
        if not ast.unparse(number.value).lstrip("_").isupper() and _COUNTABLE.match(str(after.value))
    ]
    assert found == [], "write counted(number, noun) of infermesh/hints.py in its place"
