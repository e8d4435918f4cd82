"""A query's rows for eyes: a table that fits the terminal whatever its columns, or one row a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from infermesh.cli.console import SafeConsole
from infermesh.hints import counted, visible

__all__ = ["Shown", "as_cell", "print_blocks", "print_table", "told_apart"]

_LEAST = 10  # characters that a column keeps at least: fewer say nothing
_MOST_OF_A_WORD = 16  # of a heading
_BETWEEN = 3  # characters between two columns
_EDGES = 2
_CELL = 60  # characters of a cell where the width has no bound
_BLOCK_LINES = 20  # of a value, where a row is a block
_ELIDED = "…"


@dataclass(slots=True)
class Shown:
    """A column: its name, its type in words, whether it holds numbers, and its cells. ``None`` is NULL."""

    name: str
    type: str
    number: bool
    cells: list[str | None]

    def texts(self) -> list[str]:
        """The cells in one line each."""
        return ["NULL" if cell is None else visible(cell.replace("\n", "⏎")) for cell in self.cells]


@dataclass(slots=True)
class _Fitted:
    """A column with the width that it needs, wants and gets."""

    column: Shown
    texts: list[str]
    least: int
    content: int
    heading: int
    width: int = 0

    def lines(self) -> list[str]:
        """The heading, folded at its underscores where it is wider than the column."""
        return _folded(visible(self.column.name), self.width)

    def rows(self) -> list[str]:
        """The cells, each cut to the column's width; values that differ stay different if that can be."""
        if self.column.type.startswith("timestamp"):
            return [_cut_end(text, self.width) for text in self.texts]
        return told_apart(self.texts, self.width)


def print_table(columns: Sequence[Shown], width: int | None) -> int:
    """Print a table to stdout, and return how many of the columns are in it: the others, in the middle, have no room.

    Parameters
    ----------
    width
        In characters; ``None`` has no bound.
    """
    fitted = [_measured(column, width) for column in columns]
    shown, gap = _that_fit(fitted, width)
    for one in shown:
        one.width = one.least
    if width is not None:
        left = width - _taken(shown, gap is not None)
        _widen(shown, lambda one: one.content, left)
        _widen(shown, lambda one: one.heading, width - _taken(shown, gap is not None))
    else:
        for one in shown:
            one.width = max(one.content, one.heading)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    bodies: list[list[Text]] = []
    for position, one in enumerate(shown):
        if position == gap:
            table.add_column(_ELIDED, width=1)
            bodies.append([Text(_ELIDED, style="dim")] * len(one.texts))
        heading = Text("\n".join(one.lines()))
        heading.append("\n" + _cut_end(one.column.type, one.width), style="dim")
        table.add_column(heading, justify="right" if one.column.number else "left", width=one.width, no_wrap=True)
        cells = zip(one.rows(), one.column.cells, strict=True)
        bodies.append([Text(text, style="dim" if cell is None else "") for text, cell in cells])
    for row in zip(*bodies, strict=True):
        table.add_row(*row)
    SafeConsole(width=_taken(shown, gap is not None) if width is None else max(width, 1)).print(table)
    return len(shown)


def print_blocks(columns: Sequence[Shown], width: int | None) -> None:
    """Print each row as a block of lines, ``name  value``, with every column and the values in full."""
    room = max((cell_len(visible(column.name)) for column in columns), default=0)
    beside = None if width is None else max(width - room - 2, _LEAST)
    console = SafeConsole(width=width or 10_000)
    for number in range(len(columns[0].cells) if columns else 0):
        title = f"── row {number + 1} "
        console.print(Text(title + "─" * max(0, min(width or 60, 60) - cell_len(title)), style="dim"))
        for column in columns:
            name = set_cell_size(visible(column.name), room)
            for line, text in enumerate(_block(column, number, beside)):
                style = "dim" if column.cells[number] is None else ""
                console.print(Text.assemble((name if not line else " " * room, "bold"), "  ", (text, style)))


def told_apart(texts: Sequence[str], width: int) -> list[str]:
    """Texts cut to ``width``: at the end, or where different ones would then look the same, in the middle."""
    ended = [_cut_end(text, width) for text in texts]
    if len(set(ended)) == len(set(texts)):
        return ended
    return [_cut_middle(text, width) for text in texts]


def _block(column: Shown, number: int, width: int | None) -> list[str]:
    """A value's lines, none wider than ``width``; vectors are one line, and long texts end with what is missing."""
    cell = column.cells[number]
    if cell is None:
        return ["NULL"]
    lines = [part for line in visible(cell).split("\n") for part in _wrapped(line, width)]
    most = 1 if column.type.endswith("]") and column.type.startswith(("float", "double")) else _BLOCK_LINES
    if len(lines) <= most:
        return lines
    rest = sum(map(len, lines[most:]))
    return [*lines[:most], f"{_ELIDED} {counted(rest, 'more character')}"]


def _wrapped(line: str, width: int | None) -> list[str]:
    """A line in pieces of at most ``width``, broken between words where one ends in the last third."""
    if width is None or cell_len(line) <= width:
        return [line]
    pieces = []
    while cell_len(line) > width:
        head = _head(line, width)
        space = head.rfind(" ")
        if space > 2 * len(head) // 3 and line[len(head) : len(head) + 1] not in ("", " "):
            head = head[:space]
        pieces.append(head)
        line = line[len(head) :].lstrip(" ")
    return [*pieces, line] if line else pieces


def _head(text: str, width: int) -> str:
    """The longest beginning of a text that is no wider than ``width``, and at least one character."""
    taken = 0
    for number, sign in enumerate(text):
        taken += cell_len(sign)
        if taken > width:
            return text[: max(number, 1)]
    return text


def _measured(column: Shown, width: int | None) -> _Fitted:
    texts = column.texts()
    content = max([cell_len(text) for text in texts] + [cell_len(column.type)])
    content = min(content, _CELL if width is None else max(width - _EDGES, 1))
    name = visible(column.name)
    word = max((cell_len(part) for part in _words(name)), default=1)
    least = max(min(content, content if column.number else _LEAST), min(word, _MOST_OF_A_WORD), 4)
    return _Fitted(column, texts, least, max(content, least), max(cell_len(name), least))


def _that_fit(columns: list[_Fitted], width: int | None) -> tuple[list[_Fitted], int | None]:
    """The columns that have room, first ones and last ones by turns, and where the others were."""
    if width is None or _taken(columns, False, least=True) <= width:
        return columns, None
    first: list[_Fitted] = []
    last: list[_Fitted] = []
    low, high = 0, len(columns) - 1
    while low <= high:
        chosen = columns[low] if len(first) <= len(last) else columns[high]
        if _taken([*first, *last, chosen], True, least=True) > width and first:
            break
        if len(first) <= len(last):
            first.append(chosen)
            low += 1
        else:
            last.insert(0, chosen)
            high -= 1
    if not last:  # one column is all there is room for
        first[0].least = max(1, min(first[0].least, width - _EDGES))
    return [*first, *last], len(first) if last else None


def _taken(columns: Sequence[_Fitted], gap: bool, *, least: bool = False) -> int:
    """Characters that a table of these columns takes; with ``gap`` it has a column that stands for others."""
    widths = [one.least if least else one.width for one in columns] + ([1] if gap else [])
    return sum(widths) + _BETWEEN * (len(widths) - 1) + _EDGES


def _widen(columns: Sequence[_Fitted], wish: Callable[[_Fitted], int], room: int) -> None:
    """Give the room that is left to the columns that want more, in equal parts."""
    short = [one for one in columns if one.width < wish(one)]
    while short and room > 0:
        share = max(1, room // len(short))
        for one in short:
            more = min(share, wish(one) - one.width, room)
            one.width += more
            room -= more
        short = [one for one in short if one.width < wish(one)]


def _words(name: str) -> list[str]:
    """A heading's parts: it may be folded after an underscore, a dot or a space."""
    parts, start = [], 0
    for position, sign in enumerate(name, 1):
        if sign in "_. " or position == len(name):
            parts.append(name[start:position])
            start = position
    return parts


def _folded(name: str, width: int) -> list[str]:
    if cell_len(name) <= width:
        return [name]
    lines = [""]
    for part in _words(name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return [_cut_end(line, width) for line in lines]


def _cut_end(text: str, width: int) -> str:
    return text if cell_len(text) <= width else _head(text, max(width - 1, 1)) + (_ELIDED if width > 1 else "")


def _cut_middle(text: str, width: int) -> str:
    """Cut in the middle: what tells one file's name or number from another's is at the end."""
    if cell_len(text) <= width or width < 5:
        return _cut_end(text, width)
    head = (width - 1) // 3
    return _head(text, head) + _ELIDED + _head(text[::-1], width - 1 - head)[::-1]


def as_cell(value: Any) -> str | None:
    """A value's text; floats with six digits."""
    if value is None:
        return None
    return f"{value:.6g}" if isinstance(value, float) else str(value)
