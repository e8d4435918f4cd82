"""The table and the blocks that ``infermesh sql`` prints on a terminal, at any width."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from infermesh.cli.table import Shown, print_blocks, print_table


def column(name: str, *cells: str | None, kind: str = "varchar", number: bool = False) -> Shown:
    return Shown(name, kind, number, list(cells))


def results(columns: int = 65) -> list[Shown]:
    """As many columns as a run with three stages has, with long texts."""
    long = "My card statement shows two payments of 2,349.00 EUR on 3 March. " * 3
    return [column("row_id", "0", "1", kind="bigint", number=True)] + [
        column(f"summaries_field_{number}", f"{number} {long}", None) for number in range(1, columns)
    ]


@pytest.mark.parametrize("width", [5, 12, 40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_none_is_empty(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_table(results(), width)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert max(map(cell_len, lines)) <= width
    assert 1 <= shown < 65
    if width >= 40:
        assert shown >= 2
        assert "row" in lines[-4] + "".join(lines[:6])
        assert "…" in lines[-1], "the columns that are left out have a mark in the middle"
        assert "0" in lines[-2].split()[0]


def test_more_width_shows_more_columns(capsys: pytest.CaptureFixture[str]) -> None:
    counts = [print_table(results(), width) for width in (60, 80, 120, 200)]
    assert counts == sorted(set(counts))
    assert counts[1] >= 5


def test_all_columns_are_there_where_they_fit(capsys: pytest.CaptureFixture[str]) -> None:
    shown = print_table([column("topic", "late parcel"), column("rows", "12345678", kind="bigint", number=True)], 40)
    text = capsys.readouterr().out
    assert shown == 2
    assert "late parcel" in text
    assert "12345678" in text
    assert "…" not in text


def test_one_long_text_takes_the_whole_width(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([column("text", "word " * 60)], 120)
    assert "word " * 20 in capsys.readouterr().out


def test_cells_that_differ_look_different(capsys: pytest.CaptureFixture[str]) -> None:
    """Two files of one folder begin with the same letters."""
    columns = [column("prompt", *(f"pipelines/label/prompts/v{number}.jinja" for number in (1, 2)))]
    columns += [column(f"c{number}", "x" * 100, "y" * 100) for number in range(4)]
    print_table(columns, 80)
    text = capsys.readouterr().out
    assert "v1.jinja" in text
    assert "v2.jinja" in text


def test_wide_signs_and_orders_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([column("text", "茶" * 50, "\x1b[2Jhidden"), column("more", "é" * 90, "b")], 60)
    text = capsys.readouterr().out
    assert max(map(cell_len, text.splitlines())) <= 60
    assert "\x1b" not in text


def test_without_a_bound_every_column_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """As for ``… --format table | less -S``."""
    assert print_table(results(), None) == 65
    assert "summaries_field_64" in capsys.readouterr().out


def test_no_rows_and_no_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table([column("a"), column("b")], 20) == 2
    assert "a" in capsys.readouterr().out
    print_blocks([column("a")], 80)
    assert capsys.readouterr().out == ""


def test_a_block_has_every_column_and_the_whole_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = "First line.\n" + "word " * 40
    vector = "[" + ",".join(["0.123"] * 500) + "]"
    print_blocks([column("body", text, None), column("vector", vector, None, kind="float[]")], 60)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 60
    assert shown.count("word") == 40
    assert "more characters" in shown, "a vector fills no screen"
    assert [line for line in lines if line.startswith("── row")][1].startswith("── row 2 ")
    assert "NULL" in lines[-1]
