"""What a file is by its name: the one list of suffixes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["TEMPLATE_SUFFIXES", "RowFile", "RowFormat", "names_template", "row_file", "suffix_of"]

RowFormat = Literal["jsonl", "json", "csv", "tsv", "parquet"]

_ROW_SUFFIXES: dict[str, RowFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSIONS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
TEMPLATE_SUFFIXES = (".jinja", ".j2", ".jinja2", ".txt", ".md")


class RowFile(NamedTuple):
    """What the name of a file of rows says; ``None`` for what it does not say."""

    format: RowFormat | None
    compression: Literal["gzip", "zstd"] | None


def row_file(path: str | Path) -> RowFile:
    """The format and the compression that a file's name tells.

    Examples
    --------
    >>> from infermesh.config.file_names import row_file
    >>> row_file("rows/part-1.JSONL.gz")
    RowFile(format='jsonl', compression='gzip')
    """
    path = Path(path)
    compression = _COMPRESSIONS.get(path.suffix.lower())
    suffix = Path(path.stem).suffix if compression else path.suffix
    return RowFile(_ROW_SUFFIXES.get(suffix.lower()), compression)


def suffix_of(compression: str) -> str:
    """The suffix of files that are compressed so, with its dot."""
    return next(suffix for suffix, name in _COMPRESSIONS.items() if name == compression)


def names_template(text: str) -> bool:
    """Whether a text is the name of a template's file, and not the template itself."""
    return text.endswith(TEMPLATE_SUFFIXES) and "{" not in text and "\n" not in text
