"""What is wrong with a YAML file, in words that say what to write."""

from __future__ import annotations

import re
from pathlib import Path

from yaml import MarkedYAMLError, YAMLError

from infermesh.hints import counted

_ENTRY = re.compile(r"(?P<start>\s*(?:-\s+)?(?P<key>[\w.\-]+|'[^']*'|\"[^\"]*\"):\s+)(?P<value>\S.*?)\s*$")
_ITEM = re.compile(r"(?P<start>\s*-\s+)(?P<value>\S.*?)\s*$")
_GLUED = re.compile(r"\s*([\w.\-]+):(\S.*)$")
_BARE = re.compile(r"\s*([\w.\-]+)\s+(\S.*)$")
_BLOCK = re.compile(r"\s*([\w.\-]+):\s*[|>][-+\d]*\s*$")
_QUOTED = re.compile(r"""(?<![\w"'])("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')""")
_FIRST = "@`%&*!|>"  # a plain value cannot begin with these, or means something else by them


def yaml_words(error: YAMLError, file: Path, shown: str) -> str:
    """What is wrong, where, and what to write, in one line.

    Parameters
    ----------
    error
        As the parser has raised it.
    file, shown
        The file that was read, and what messages call it.
    """
    problem = str(getattr(error, "problem", None) or error)
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    lines = _lines(file)
    if mark is None or not lines:
        return f"{shown}: not YAML: {' '.join(problem.split())}"
    opened = error.context_mark if isinstance(error, MarkedYAMLError) else None
    at = min(mark.line, len(lines) - 1)
    if "duplicate key" in problem:
        return f"{shown}, line {at + 1}: {problem.removeprefix('found ')}: it stands there twice. Remove one."
    if "end of stream" in problem and opened is not None:
        return (
            f"{shown}, line {opened.line + 1}: the quote that opens there is not closed: {lines[opened.line].strip()}"
        )
    if opened is not None and "flow" in str(error.context if isinstance(error, MarkedYAMLError) else ""):
        number = min(opened.line, len(lines) - 1)  # the end of the file is a line more
        return f"{shown}, line {number + 1}: {_brackets(lines[number], opened.column)}"
    for number in dict.fromkeys((at, max(at - 1, 0), *([opened.line] if opened is not None else []))):
        if number < len(lines) and (words := _of_line(lines, number)):
            return f"{shown}, line {number + 1}: {words}"
    if "'\\t'" in problem or lines[at].lstrip(" ").startswith("\t"):
        return f"{shown}, line {at + 1}: a tab stands there: YAML indents with blanks alone. Replace it by blanks."
    if (closing := _unopened(lines[at])) is not None:
        return f"{shown}, line {at + 1}: nothing opens one {closing} of: {lines[at].strip()[:80]}"
    if (words := _indentation(lines, at)) is not None:
        return f"{shown}, line {at + 1}: {words}"
    return f"{shown}, line {at + 1}: not YAML: {problem}: {lines[at].strip()[:80]}"


def _brackets(line: str, column: int) -> str:
    """What is wrong with a list or a mapping in brackets, which opens there."""
    shown, rest = line.strip()[:80], _QUOTED.sub("", line[column:] or line)
    opens, closes = "{}" if rest.startswith("{") or "[" not in rest else "[]"
    if '"' in rest or "'" in rest:
        return f"a quote in it is not closed, or stands alone: {shown}"
    if rest.count(opens) > rest.count(closes):
        return f"the {opens} that opens there is not closed: {shown}"
    return f"between the entries of {opens} {closes} a comma is missing, or one of them needs quotes around it: {shown}"


def _unopened(line: str) -> str | None:
    """The bracket of which a line closes more than it opens; ``None`` if there is none."""
    rest = _QUOTED.sub("", line)
    return next((closes for opens, closes in ("[]", "{}") if rest.count(closes) > rest.count(opens)), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _of_line(lines: list[str], number: int) -> str | None:
    """What is wrong within a line; ``None`` if nothing is that is known here."""
    line = lines[number]
    above = lines[number - 1] if number else ""
    if (block := _BLOCK.match(above)) and line.strip() and _depth(line) <= _depth(above):
        return f"the text of '{block[1]}' must be indented more than '{block[1]}' itself: {line.strip()[:80]}"
    entry = _ENTRY.match(line) or _ITEM.match(line)
    if entry is not None:
        value = entry["value"]
        written = f"{entry['start'].strip()} {quoted(value)}"
        if value.startswith("{{") or value.startswith(("[{{", "{{%", "{%")):
            return f"a value that begins with {value[:2]} needs quotes around it: {written}"
        if value[0] in _FIRST and not re.match(r"[|>][-+\d]*\s*(#.*)?$", value):
            return f"a value that begins with {value[0]} needs quotes around it: {written}"
        if value[0] in "\"'" and not _is_quoted(value):
            return f"a value that begins with a quote ends with it; this one needs quotes around all of it: {written}"
        if re.search(r":(\s|$)", value) and value[0] not in "\"'{[|>#&":
            return f"a value with a colon and a blank in it needs quotes around it: {written}"
        return None
    if not line.strip() or line.lstrip().startswith("#"):
        return None
    if glued := _GLUED.match(line):
        return f"a blank is missing behind the colon: {glued[1]}: {glued[2].strip()}"
    if (bare := _BARE.match(line)) and not _in_block(lines, number):
        return f"'{line.strip()}' is no key with a value. Is a colon missing: {bare[1]}: {bare[2].strip()}"
    return None


def _in_block(lines: list[str], number: int) -> bool:
    """Whether a line may be text of the block (``|``) above it, which is indented wrongly."""
    return any(_BLOCK.match(line) for line in lines[max(number - 30, 0) : number])


def _is_quoted(value: str) -> bool:
    """Whether a value is one quoted text, and at most a comment behind it."""
    return re.fullmatch(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')\s*(#.*)?""", value) is not None


def quoted(value: str) -> str:
    """A text as YAML writes it within quotes, whatever stands in it.

    Examples
    --------
    >>> quoted('Say: {{ x }}')
    '"Say: {{ x }}"'
    """
    if '"' in value or "\\" in value:
        return "'" + value.replace("'", "''") + "'"
    return f'"{value}"'


def _indentation(lines: list[str], at: int) -> str | None:
    """The words about a line that is indented otherwise than the keys before it."""
    if not lines[at].strip():
        return None
    own = _depth(lines[at])
    above = next((line for line in reversed(lines[:at]) if line.strip() and not line.lstrip().startswith("#")), None)
    if above is None:
        return None
    if _in_block(lines, at) and ":" not in lines[at]:
        return f"is it a part of the text above? It must be indented as that text is: {lines[at].strip()[:80]}"
    return (
        f"the indentation does not fit: {counted(own, 'blank')} before '{lines[at].strip()[:40]}', {_depth(above)} "
        f"before '{above.strip()[:40]}' above it. Keys that belong together are indented alike."
    )


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
