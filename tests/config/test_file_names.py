"""What a file's name says."""

from __future__ import annotations

import pytest

from infermesh.config.file_names import names_template, row_file


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rows.jsonl", ("jsonl", None)),
        ("a.b/rows.ndjson.gz", ("jsonl", "gzip")),
        ("ROWS.CSV.ZST", ("csv", "zstd")),
        ("rows.tsv", ("tsv", None)),
        ("rows.json", ("json", None)),
        ("part-0.parquet", ("parquet", None)),
        ("part-0.pq", ("parquet", None)),
        ("rows.gz", (None, "gzip")),
        ("rows.txt", (None, None)),
        ("jsonl", (None, None)),
        ("", (None, None)),
    ],
)
def test_rows_by_name(name: str, expected: tuple[str | None, str | None]) -> None:
    assert row_file(name) == expected


@pytest.mark.parametrize("text", ["a.jinja", "prompts/a.j2", "a.jinja2", "a b.txt", "a.md"])
def test_the_name_of_a_template(text: str) -> None:
    assert names_template(text)


@pytest.mark.parametrize("text", ["{{ a }}.txt", "See\nnotes.md", "a.html", "Write a poem", ""])
def test_a_template_itself(text: str) -> None:
    assert not names_template(text)
