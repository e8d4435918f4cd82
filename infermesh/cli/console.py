"""Tables and progress by rich, over texts of others. Import it late: rich takes a tenth of a second."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from infermesh.hints import visible

__all__ = ["SafeConsole"]


class SafeConsole(Console):
    """rich's console, in which only rich gives orders to the terminal: texts have their control characters written out.

    Brackets in texts are brackets, not rich's markup.

    Parameters
    ----------
    stderr
        Write to stderr, else to stdout.
    width
        In characters; ``None`` for the terminal's.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        stream = sys.stderr if stderr else sys.stdout
        # A live table puts a stream of its own in front of stderr: the one behind is kept from now on.
        file = getattr(stream, "rich_proxied_file", stream)
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Here, since the columns' widths are taken from it."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Here again, for what does not come as a string."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
