"""What a file's name and its first bytes say."""

from __future__ import annotations

import pytest

from infermesh.inputs.formats import names_template, row_file, sniff


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


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", ("png", "image/png")),
        (b"\xff\xd8\xff\xe0", ("jpg", "image/jpeg")),
        (b"GIF89a", ("gif", "image/gif")),
        (b"RIFF\0\0\0\0WEBPVP8 ", ("webp", "image/webp")),
        (b"RIFF\0\0\0\0WAVEfmt ", ("wav", "audio/wav")),
        (b"fLaC", ("flac", "audio/flac")),
        (b"OggS", ("ogg", "audio/ogg")),
        (b"\x1a\x45\xdf\xa3", ("webm", "video/webm")),
        (b"\0\0\0\x20ftypM4A ", ("m4a", "audio/mp4")),
        (b"\0\0\0\x20ftypisom", ("mp4", "video/mp4")),
        (b"ID3\x04", ("mp3", "audio/mpeg")),
        (b"\xff\xfb\x90", ("mp3", "audio/mpeg")),
        (b"%PDF-1.7", ("pdf", "application/pdf")),
    ],
)
def test_a_signature(data: bytes, expected: tuple[str, str]) -> None:
    assert sniff(data) == expected


@pytest.mark.parametrize("data", [b"", b"R", b"RIFF\0\0\0\0AVI ", b"....WAVE....WAVE", b"\xff", b"<svg>", b"hello"])
def test_no_signature(data: bytes) -> None:
    assert sniff(data) is None
