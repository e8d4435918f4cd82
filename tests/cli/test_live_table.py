"""The live table fits its terminal: where there is little room, the bar goes before a digit does."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest

from infermesh.cli.console import SafeConsole
from infermesh.cli.progress import LiveTable
from infermesh.runs.progress import short
from infermesh.runs.stats import RunStats, StageStats

FEW = {"answers": StageStats(2000, 670, 0, 0, 64), "verdicts": StageStats(2000, 653, 2, 0, 17)}
MANY = {
    "transcripts_of_long_calls": StageStats(12_000_000, 6_212_345, 12_345, 1_212_345, 1024),
    "b": StageStats(12_000_000, 0, 0, 12_000, 0),
}


def drawn(stages: dict[str, StageStats], width: int) -> list[str]:
    with redirect_stderr(io.StringIO()) as out:
        table = LiveTable(SafeConsole(stderr=True, width=width))
        table.start(RunStats(stages))
        table.stop(RunStats(stages))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", range(60, 140))
@pytest.mark.parametrize("stages", [FEW, MANY])
def test_no_count_and_no_heading_is_cut(stages: dict[str, StageStats], width: int) -> None:
    lines = drawn(stages, width)
    assert max(map(len, lines)) <= width
    headings = next(line for line in lines if "done" in line)
    assert headings.split() == [
        "stage",
        "done",
        "failed",
        *(["skipped"] if stages is MANY else []),
        "in",
        "flight",
        "of",
    ]
    for name, stage in stages.items():
        (line,) = [line for line in lines if line.lstrip().startswith(name[:9])] if len(name) > 1 else [lines[4]]
        counts = [stage.done, stage.failed, *([stage.skipped] if stages is MANY else []), stage.in_flight, stage.total]
        assert line.split()[-len(counts) :] in ([str(count) for count in counts], [short(count) for count in counts])


def test_the_bar_is_as_long_as_there_is_room() -> None:
    bars = [sum(line.count("━") for line in drawn(FEW, width) if "verdicts" in line) for width in (60, 76, 120)]
    assert bars[0] <= bars[1] <= bars[2]
    assert bars[2] >= 6
