"""Which files a source names, and in which format. The store reads them."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infermesh.config.file_names import RowFormat, row_file
from infermesh.config.schema import SourceConfig
from infermesh.errors import ConfigError
from infermesh.inputs.huggingface import HubDataset, open_dataset
from infermesh.inputs.paths import find, similar_file

FileFormat = Literal["jsonl", "csv", "parquet"]
_READ_AS: dict[RowFormat | None, FileFormat] = {
    "jsonl": "jsonl",
    "json": "jsonl",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """What the declaration says of CSV files; ``None`` for what each file is to tell itself."""

    delimiter: str | None = None
    quote: str | None = None
    header: bool = True
    encoding: str | None = None
    comment: str | None = None
    escape: str | None = None
    types: str | Mapping[str, str] = "text"


@dataclass(frozen=True, slots=True)
class Source:
    """What a source names: files of one format, a query, or a dataset.

    ``hive`` makes columns of the folders' names (``lang=en/``).
    """

    files: tuple[str, ...]
    format: FileFormat | None
    sql: str | None
    limit: int | None
    dataset: HubDataset | None = None
    csv: CsvOptions = CsvOptions()
    hive: bool = False

    @property
    def shown(self) -> str:
        """What it is, in a few words, for messages."""
        if self.dataset is not None:
            return f"the dataset {self.dataset.name}"
        more = f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        return ", ".join(self.files[:3]) + more or "the source query"

    @property
    def fingerprint(self) -> str:
        """A text that changes when the rows may have: name, size and time of each file, or the dataset's own."""
        # It is stored, and a query may hold what came from an environment variable.
        query = hashlib.blake2b(self.sql.encode(), digest_size=16).hexdigest() if self.sql else ""
        parts = [f"{query}|{self.limit}|{self.format}"]
        if self.csv != CsvOptions() or self.hive:
            parts.append(repr((self.csv, self.hive)))
        if self.dataset is not None:
            parts.append(self.dataset.fingerprint)
        for file in self.files:
            stat = os.stat(file)
            parts.append(f"{file}|{stat.st_size}|{stat.st_mtime_ns}")
        return "\n".join(parts)


def _pattern(path: Path) -> str:
    """A path as a pattern in which the folders that are there stand for themselves: one may be called ``run [x]``."""
    found = Path(path.anchor)
    parts = []
    for part in path.relative_to(path.anchor).parts:
        found /= part
        parts.append(glob.escape(part) if found.exists() else part)
    return os.path.join(glob.escape(path.anchor), *parts)


def resolve_source(config: SourceConfig, roots: Sequence[Path]) -> Source:
    """Find the files of a source, or load its dataset.

    Parameters
    ----------
    config
        The source.
    roots
        The folders that its path is looked up in. The first in which a file matches counts.

    Raises
    ------
    ConfigError
        No file matches, a file's name does not tell its format, or the dataset cannot be loaded.
    """
    if config.dataset is not None:
        return Source((), None, None, config.limit, open_dataset(config, roots))
    if config.path is None:
        return Source((), None, config.sql, config.limit)
    files: list[str] = []
    for root in roots:
        path = root / os.path.expanduser(config.path)
        matches = [str(path)] if path.is_file() else sorted(glob.glob(_pattern(path), recursive=True))
        files = [match for match in matches if os.path.isfile(match)]
        if files:
            break
    if not files:
        raise ConfigError(_no_file(config.path, roots))
    formats = {_READ_AS.get(row_file(file).format) if config.format == "auto" else config.format for file in files}
    if len(formats) != 1 or None in formats:
        raise ConfigError(
            f"source.path: the format of '{config.path}' cannot be told from its name; expected .jsonl, .csv, .tsv or "
            f".parquet (also .gz, .zst), one kind for all files. Set source.format to jsonl, csv or parquet."
        )
    given = CsvOptions(
        config.delimiter, config.quote, config.header, config.encoding, config.comment, config.escape, config.types
    )
    if given != CsvOptions() and formats != {"csv"}:
        raise ConfigError(
            "source: delimiter, quote, escape, header, encoding, comment and types are for CSV files alone; these are "
            f"{formats.pop()} files. Remove them."
        )
    return Source(tuple(files), formats.pop(), None, config.limit, csv=given, hive=config.hive)


def _no_file(path: str, roots: Sequence[Path]) -> str:
    """What to say where no file matches: of a folder, what is in it."""
    folder = find(path, roots)
    if folder is None or not folder.is_dir():
        return f"source.path: no file matches '{path}'.{similar_file(path, roots)}"
    inside = sorted(item.name for item in folder.iterdir() if item.is_file() and row_file(item.name).format)
    if not inside:
        return f"source.path: '{path}' is a folder, and no file of rows is in it: .jsonl, .csv, .tsv or .parquet"
    each = f"{path.rstrip('/')}/*{Path(inside[0]).suffix}"
    return f"source.path: '{path}' is a folder. Name a file of it, {path.rstrip('/')}/{inside[0]}, or all: {each}"
