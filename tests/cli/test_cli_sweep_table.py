"""The table that ends a sweep, on a narrow terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infermesh.bench.sweeps import JobRecord, MeasuredJob
from infermesh.cli.sweep_table import print_table
from infermesh.query.figures import Figures

FIGURES = Figures("r", "done", 100, 0, 0, 10.0, 100, 0, 500, 500, 0.1, 0.2, 0.3, 0.4, 0.5, None)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_swept_values_are_told_apart(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    keys = ["stages.a.prompt"]
    values = [f"pipelines/label/prompts/v{number}.jinja" for number in range(3)]
    records = [JobRecord(number, Path("s"), {keys[0]: value}, [], 0) for number, value in enumerate(values)]
    print_table([MeasuredJob(record, FIGURES, "done") for record in records], keys)
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().err).splitlines()
    assert max(map(len, lines)) <= width
    for number in range(3):
        assert sum(f"v{number}.jinja" in line for line in lines) == 1
    assert all(word in "".join(lines) for word in ("rows/s", "errors", "done"))
    assert ("q_p95" in "".join(lines)) == (width == 120)
