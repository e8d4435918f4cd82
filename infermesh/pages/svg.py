"""Small static pictures, as SVG made here: the graph of a run's stages, and a histogram. Colours come from the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from infermesh.pages.words import clean

__all__ = ["Node", "graph", "histogram"]

_BOX = (216, 92)
_GAP = (44, 26)
_EDGE = 8
_NAME, _DETAIL = 24, 32  # characters that fit a box, of the name and of the lines below it


@dataclass(frozen=True, slots=True)
class Node:
    """A box of the graph: a name, what it is, up to two lines of counts, and a CSS class (``good``, ``bad`` …)."""

    name: str
    about: str
    counts: Sequence[str]
    state: str = ""


def layers(edges: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Node → the steps of the longest way to it from one that reads none. ``edges``: node → what it reads."""
    found: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in found:
            read = [other for other in edges.get(name, ()) if other in edges and other not in (name, *above)]
            found[name] = max((depth(other, (*above, name)) + 1 for other in read), default=0)
        return found[name]

    for name in edges:
        depth(name)
    return found


def graph(nodes: Sequence[Node], edges: Mapping[str, Sequence[str]], label: str, *, across: bool) -> Markup:
    """The graph as ``<svg>``: from left to right, or (for a phone) from top to bottom.

    Parameters
    ----------
    edges
        Node → the nodes that it reads.
    label
        What the picture shows, in words.
    """
    layer = layers(edges)
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        columns.setdefault(layer[node.name], []).append(node)
    places: dict[str, tuple[int, int]] = {}
    for number in sorted(columns):
        for order, node in enumerate(columns[number]):
            cell = (number, order) if across else (order, number)
            places[node.name] = (
                _EDGE + cell[0] * (_BOX[0] + _GAP[0]),
                _EDGE + cell[1] * (_BOX[1] + (_GAP[1] if across else _GAP[0])),
            )
    lines, deepest = [], 0
    for name, read in edges.items():
        for other in read:
            if other in places and name in places and other != name:
                path, low = _line(places[other], places[name], layer[name] - layer[other], across)
                lines.append(path)
                deepest = max(deepest, low)
    width = max(x for x, _ in places.values()) + _BOX[0] + _EDGE
    height = max(y for _, y in places.values()) + _BOX[1] + _EDGE
    width, height = (width, max(height, deepest + _EDGE)) if across else (max(width, deepest + _EDGE), height)
    boxes = "".join(_box(node, *places[node.name]) for node in nodes)
    return Markup(
        f'<svg class="{"across" if across else "down"}" role="img" aria-label="{escape(clean(label))}" width="{width}" '
        f'height="{height}">{"".join(lines)}{boxes}</svg>'
    )


def _line(start: tuple[int, int], end: tuple[int, int], steps: int, across: bool) -> tuple[str, int]:
    """An arrow between two boxes, and how far down (or right) it goes. It bends around the boxes between them."""
    wide, high = _BOX
    x1, y1 = (start[0] + wide, start[1] + high // 2) if across else (start[0] + wide // 2, start[1] + high)
    x2, y2 = (end[0], end[1] + high // 2) if across else (end[0] + wide // 2, end[1])
    bend = 0
    if steps > 1 and (y1 == y2 if across else x1 == x2):
        bend = (high if across else wide) // 2 + 20
    if across:
        middle = (x1 + x2) // 2
        path = f"M{x1},{y1} C{middle},{y1 + bend} {middle},{y2 + bend} {x2 - 7},{y2}"
        head = f"M{x2},{y2} l-8,-4 v8 z"
        return f'<path class="edge" d="{path}"/><path class="head" d="{head}"/>', max(y1, y2) + bend
    middle = (y1 + y2) // 2
    path = f"M{x1},{y1} C{x1 + bend},{middle} {x2 + bend},{middle} {x2},{y2 - 7}"
    head = f"M{x2},{y2} l-4,-8 h8 z"
    return f'<path class="edge" d="{path}"/><path class="head" d="{head}"/>', max(x1, x2) + bend


def _box(node: Node, x: int, y: int) -> str:
    def text(row: int, words: str, most: int, kind: str) -> str:
        shown = words if len(words) <= most else f"{words[: most - 1]}…"
        return f'<text class="{kind}" x="{x + 12}" y="{y + row}">{escape(clean(shown))}</text>'

    title = escape(clean(f"{node.name}: {node.about}, {', '.join(filter(None, node.counts))}"))
    return (
        f'<g class="{node.state}"><title>{title}</title>'
        f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6"/>'
        f"{text(22, node.name, _NAME, 'name')}{text(42, node.about, _DETAIL, 'about')}"
        f"{''.join(text(62 + 18 * line, words, _DETAIL, 'counts') for line, words in enumerate(node.counts))}</g>"
    )


def histogram(bins: Sequence[tuple[float, float, int]], label: str, *, unit: str = "s") -> Markup:
    """Counts as bars over equal steps. ``bins``: from, to, count."""
    wide, high, left, foot = 640, 150, 52, 34
    most = max(count for _, _, count in bins)
    bar = (wide - left - 10) / len(bins)
    lines = []
    for share in (0, 1):
        y = 10 + high * (1 - share)
        value = f"{most * share:,}"
        lines.append(
            f'<line class="grid" x1="{left}" x2="{wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="about" text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{value}</text>'
        )
    bars = [
        f'<rect class="bar" x="{left + place * bar + 1:.1f}" y="{10 + high * (1 - count / most):.1f}" '
        f'width="{bar - 1.5:.1f}" height="{high * count / most:.1f}"><title>{low:.3g} to {up:.3g} {unit}: {count:,}'
        "</title></rect>"
        for place, (low, up, count) in enumerate(bins)
        if count
    ]
    step = max(1, len(bins) // 5)
    marks = [
        f'<text class="about" text-anchor="middle" x="{left + place * bar:.1f}" y="{high + 28}">{bins[place][0]:.3g} '
        f"{unit}</text>"
        for place in range(0, len(bins), step)
        if left + place * bar < wide - 24
    ]
    return Markup(
        f'<svg class="bins" role="img" aria-label="{escape(clean(label))}" width="{wide}" height="{10 + high + foot}">'
        f"{''.join(lines)}{''.join(bars)}{''.join(marks)}</svg>"
    )
