"""The files of a source as their readers take them: decompressed, and without those that hold nothing.

Compressed files are decompressed here, once and to their end, and not by DuckDB: it reads what is left of a ``.zst``
file that was cut short without a word, and would decompress each file as often as it reads it.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from infermesh.config.file_names import row_file, suffix_of
from infermesh.errors import ConfigError
from infermesh.hints import one_line
from infermesh.inputs.formats import container
from infermesh.inputs.sources import FileFormat, Source
from infermesh.runtime.zstandard import zstd

__all__ = ["PlainFile", "encoding_by_mark", "holds_array", "plain_files", "utf8_copy", "workshop"]

_PART = 1 << 16  # bytes
_MARKS = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
          (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file: ``name`` as the user knows it, ``path`` to what is read, which is the file itself or a copy."""

    name: str
    path: str


@contextlib.contextmanager
def workshop(connection: duckdb.DuckDBPyConnection) -> Iterator[Path]:
    """A folder for copies, beside the database, since the disk that has room for the rows is there."""
    own = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    database = connection.execute(own).fetchall()[0][0]
    if database is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = Path(f"{database}.source")  # this process alone writes here, and a killed one has left its copies
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plain_files(source: Source, folder: Path) -> list[PlainFile]:
    """The files of a source that hold something, in order.

    Parameters
    ----------
    folder
        For copies of files that are compressed, and of JSON lines that are not UTF-8.

    Raises
    ------
    ConfigError
        A file is cut short or damaged, or is not what its name says.
    """
    assert source.format is not None
    found = []
    for number, name in enumerate(source.files):
        if os.path.getsize(name) == 0:
            continue
        _check_beginning(name, source.format)
        file = PlainFile(name, name)
        if row_file(name).compression is not None:
            # The first rows of a large file are had without the rest; a record of CSV may have any number of lines.
            lines = source.limit if source.format == "jsonl" else None
            file = PlainFile(name, str(folder / f"{number}.plain"))
            _decompress(name, file.path, lines)
        if source.format == "parquet":
            _check_end(file)
        if source.format == "jsonl" and (encoding := encoding_by_mark(file.path)) not in (None, "utf-8-sig"):
            file = PlainFile(name, utf8_copy(file.path, encoding, folder / f"{number}.utf-8"))
        found.append(file)
    return found


def encoding_by_mark(path: str) -> str | None:
    """The encoding that a file's byte order mark tells; ``None`` without one."""
    with open(path, "rb") as data:
        return _mark(data.read(4))


def _mark(start: bytes) -> str | None:
    return next((name for mark, name in _MARKS if start.startswith(mark)), None)


def utf8_copy(path: str, encoding: str, target: Path) -> str:
    """Make a copy of a text as UTF-8, which is what DuckDB reads, and return its path."""
    with (
        open(path, encoding=encoding, errors="replace", newline="") as text,
        open(target, "w", encoding="utf-8", newline="") as copy,
    ):
        shutil.copyfileobj(text, copy, _PART)
    return str(target)


def _check_beginning(name: str, format: FileFormat) -> None:
    with open(name, "rb") as data:
        holds = container(data.read(16))
    compression = row_file(name).compression
    if compression is not None:
        if holds != compression:
            raise ConfigError(
                f"source: {name} is not compressed with {compression}, as its name says, but "
                f"{f'holds {holds}' if holds else 'is plain'}. Rename it."
            )
    elif format == "parquet":
        if holds != "parquet":
            raise ConfigError(f"source: {name} is no Parquet file{f', but holds {holds}' if holds else ''}")
    elif holds in ("gzip", "zstd"):
        raise ConfigError(f"source: {name} is compressed with {holds}: its name must end in {suffix_of(holds)}")
    elif holds == "parquet" and _ends_as_parquet(name):
        raise ConfigError(f"source: {name} is a Parquet file. Set source.format to parquet, or rename it.")
    elif holds in ("bzip2", "xz", "zip"):
        raise ConfigError(
            f"source: {name} is compressed with {holds}, which is not read. Unpack it, or compress it with gzip or "
            "zstd."
        )


def _check_end(file: PlainFile) -> None:
    if not _ends_as_parquet(file.path):
        raise ConfigError(f"source: {file.name} ends too early for a Parquet file: copy or download it again")


def _ends_as_parquet(path: str) -> bool:
    with open(path, "rb") as data:
        data.seek(max(os.path.getsize(path) - 4, 0))
        return data.read() == b"PAR1"


def _decompress(name: str, target: str, lines: int | None) -> None:
    """Copy what is in a compressed file, or only its first ``lines`` lines that are not blank."""
    opener: Any = gzip.open if row_file(name).compression == "gzip" else zstd.open
    try:
        with open(target, "wb") as copy, io.BufferedReader(opener(name, "rb"), _PART) as data:
            start = data.peek()
            if lines is None or _begins_array(name, start) or _mark(start) not in (None, "utf-8-sig"):
                shutil.copyfileobj(data, copy, _PART)
                return
            while lines > 0 and (line := data.readline()):
                copy.write(line)
                lines -= bool(line.strip())
    except EOFError:
        raise ConfigError(f"source: {name} ends too early: it was cut short. Copy or download it again.") from None
    except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise ConfigError(f"source: {name} is damaged: {one_line(error, 200)}. Copy or download it again.") from None


def holds_array(file: PlainFile) -> bool:
    """Whether a .json file holds one array of objects, and not one object per line."""
    with open(file.path, "rb") as data:
        return _begins_array(file.name, data.read(4096))


def _begins_array(name: str, start: bytes) -> bool:
    return row_file(name).format == "json" and start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
