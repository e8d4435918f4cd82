"""Progress on stderr: a live table on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from infermesh.runs.progress import PlainLines, Rates, summary
from infermesh.runs.stats import Observer, RunStats

if TYPE_CHECKING:
    from rich.console import RenderableType


def make_observer() -> Observer:
    """Return a live table if stderr is a terminal, plain lines otherwise."""
    return LiveTable() if sys.stderr.isatty() else PlainLines()


_WIDE = 76  # columns of a terminal that hold a long bar beside all counts


class LiveTable:
    """Each stage's progress bar and counts on a terminal, redrawn in place."""

    def __init__(self) -> None:
        from rich.live import Live

        from infermesh.cli.console import SafeConsole

        self._console = SafeConsole(stderr=True)
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
        self.tick(stats)
        self._live.stop()

    def _render(self, stats: RunStats) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("stage", no_wrap=True)
        width = 20 if self._console.width >= _WIDE else 6
        table.add_column("", width=width)
        skips = any(stage.skipped for stage in stats.stages.values())
        for heading in ("done", "failed", *(["skipped"] if skips else []), "in flight", "of"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, stage in stats.stages.items():
            bar = ProgressBar(total=max(stage.total, 1), completed=stage.settled, width=width)
            failed = Text(str(stage.failed), style="red" if stage.failed else "")
            skipped = [str(stage.skipped)] if skips else []
            table.add_row(name, bar, str(stage.done), failed, *skipped, str(stage.in_flight), str(stage.total or "–"))
        waits = [Text(f"requests wait for {', '.join(stats.waits)}", style="yellow")] if stats.waits else []
        return Group(table, Text(summary(stats, self._rates)), *waits)
