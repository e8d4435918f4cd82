"""Progress: a live table on a terminal, a plain line every few seconds elsewhere, lines of JSON for programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from infermesh.cli.common import Progress
from infermesh.hints import counted
from infermesh.runs.progress import JsonLines, PlainLines, Rates, failing, short, summary, waiting
from infermesh.runs.stats import Observer, RunStats

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from infermesh.cli.console import SafeConsole


def make_observer(progress: Progress = Progress.AUTO) -> Observer:
    """What shows progress; ``auto`` is a live table if stderr is a terminal, and plain lines otherwise."""
    if progress is Progress.JSON:
        return JsonLines()
    live = progress is Progress.TABLE or (progress is Progress.AUTO and sys.stderr.isatty())
    return LiveTable() if live else PlainLines()


# From the roomiest to the narrowest, of which the first that fits is taken: the bar's width, whether numbers are in
# short (12.3k), the longest name of a stage.
_LAYOUTS = ((20, False, 40), (6, False, 30), (6, True, 24), (0, True, 24), (0, True, 12))
_ERROR_LINES = 3
_ROOM = 1000  # more columns than any terminal has, to see how many a table would like


class LiveTable:
    """Each stage's progress bar and counts on a terminal, redrawn in place. ``console``: by default that of stderr."""

    def __init__(self, console: SafeConsole | None = None) -> None:
        from rich.live import Live

        from infermesh.cli.console import SafeConsole

        self._console = console or SafeConsole(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._rates = Rates()

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text)

    def start(self, stats: RunStats) -> None:
        self._rates.update(stats)
        self._live.start()
        self.tick(stats)

    def tick(self, stats: RunStats) -> None:
        self._rates.update(stats)
        self._live.update(self._render(stats), refresh=True)

    def stop(self, stats: RunStats) -> None:
        self._rates.update(stats)
        self._live.update(self._render(stats, last=True), refresh=True)
        self._live.stop()

    def _render(self, stats: RunStats, *, last: bool = False) -> RenderableType:
        """``last``: the run's end tells of failures itself."""
        from rich.console import Group
        from rich.text import Text

        held = waiting(stats)
        waits = [Text(held, style="yellow")] if held else []
        kinds = [] if last else failing(stats)
        errors = [Text(line, style="red", no_wrap=True, overflow="ellipsis") for line in kinds[:_ERROR_LINES]]
        if len(kinds) > _ERROR_LINES:
            errors.append(Text(f"and {counted(len(kinds) - _ERROR_LINES, 'further kind')} of error", style="red"))
        return Group(self._table(stats), Text(summary(stats, self._rates)), *waits, *errors)

    def _table(self, stats: RunStats) -> Table:
        """The widest table that the terminal has room for: a count that is cut says nothing."""
        roomy = self._console.options.update(max_width=_ROOM)
        for layout in _LAYOUTS:
            table = _stages(stats, *layout)
            if self._console.measure(table, options=roomy).maximum <= self._console.width:
                break
        return table


def _stages(stats: RunStats, bar: int, in_short: bool, name_width: int) -> Table:
    """A row for each stage. ``bar``: the width of its bar, 0 for none."""
    from rich import box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def number(count: int) -> str:
        return short(count) if in_short else str(count)

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=in_short)
    table.add_column("stage", no_wrap=True, overflow="ellipsis", max_width=name_width)
    if bar:
        table.add_column("", width=bar)
    skips = any(stage.skipped for stage in stats.stages.values())
    for heading in ("done", "failed", *(["skipped"] if skips else []), "in flight", "of"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, stage in stats.stages.items():
        bars = [ProgressBar(total=max(stage.total, 1), completed=stage.settled, width=bar)] if bar else []
        failed = Text(number(stage.failed), style="red" if stage.failed else "")
        skipped = [number(stage.skipped)] if skips else []
        total = number(stage.total) if stage.total else "–"
        table.add_row(name, *bars, number(stage.done), failed, *skipped, number(stage.in_flight), total)
    return table
