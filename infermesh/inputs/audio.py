"""Read clips for transcription from a path, bytes or a file object, within a size limit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from infermesh.errors import InputError
from infermesh.inputs.formats import CLIPS, SNIFFED, is_clip, sniff
from infermesh.inputs.paths import opened, read_all
from infermesh.types import Audio

if TYPE_CHECKING:
    from infermesh.inputs.row_files import RowFiles

__all__ = ["DEFAULT_MAX_BYTES", "read_audio"]

DEFAULT_MAX_BYTES = 25 * 1024 * 1024  # OpenAI's limit


def read_audio(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    max_bytes: int | None = DEFAULT_MAX_BYTES,
    files: RowFiles | None = None,
) -> Audio:
    """Read one clip.

    Parameters
    ----------
    source
        A path, the bytes, or an open binary file, which is read from its present position.
    max_bytes
        The largest clip allowed, in bytes. ``None``: no limit. No more than that is ever read.
    files
        The files that a row may name, if a row names this one. It is then refused elsewhere, and if it holds neither
        sound nor a film. ``None``: the path is trusted.

    Returns
    -------
    Audio
        The bytes and a file name whose extension tells the format (wav, mp3, flac, ogg, m4a, mp4, webm): servers go by
        it.

    Raises
    ------
    InputError
        Missing, not a file, empty, too large, not bytes, or not for a row to name.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data, filename = bytes(source), ""
        _check_size(len(data), max_bytes, "the clip")
    elif isinstance(source, str | os.PathLike):
        data, filename = _from_path(source, max_bytes, files)
    elif hasattr(source, "read"):
        data, filename = _from_file(source, max_bytes)
    else:
        raise InputError(f"cannot read audio from {type(source).__name__}: pass a path, bytes or an open binary file")
    if not data:
        raise InputError(f"{filename or 'the clip'} is empty: nothing to transcribe")
    if not os.path.splitext(filename)[1]:
        found = sniff(data)
        filename = f"{filename or 'audio'}.{found.suffix if found else 'wav'}"
    return Audio(data, filename)


def _from_path(source: str | os.PathLike[str], max_bytes: int | None, files: RowFiles | None) -> tuple[bytes, str]:
    name = os.fspath(source)
    refuse_url(name)
    path = Path(os.path.expanduser(name))
    label = f"audio file {name!r:.300}"
    with opened(path, label) as (file, stat):
        trusted = files is None or files.judge(path, stat)
        _check_size(stat.st_size, max_bytes, repr(name))
        if not trusted and not is_clip(file.peek(SNIFFED)):
            raise InputError(
                f"{label} is not sent, since a row names it and it is neither sound nor a film: expected {CLIPS}"
            )
        data = read_all(file, stat, max_bytes)
    _check_size(len(data), max_bytes, repr(name))
    return data, path.name


def refuse_url(name: str) -> None:
    """Raise ``InputError`` for a URL: nothing is fetched."""
    if "://" in name[:12]:
        raise InputError(f"{name[:200]!r} is a URL, and nothing is fetched: download the clip first and give its path")


def _from_file(source: Any, max_bytes: int | None) -> tuple[bytes, str]:
    name = getattr(source, "name", None)
    filename = os.path.basename(name) if isinstance(name, str) else ""
    chunks: list[bytes] = []
    size = 0
    try:
        # A raw or network file may return less than was asked for: read until its end.
        while chunk := source.read(1 << 20 if max_bytes is None else min(1 << 20, max_bytes + 1 - size)):
            if not isinstance(chunk, bytes | bytearray):
                raise InputError("the audio file is open in text mode: open it with mode 'rb'")
            chunks.append(bytes(chunk))
            size += len(chunk)
            if max_bytes is not None and size > max_bytes:
                _too_large(f"more than {max_bytes:,}", max_bytes, filename or "the clip")
    except (OSError, ValueError) as error:
        raise InputError(f"the audio file {filename!r} cannot be read: {error}") from None
    return b"".join(chunks), filename


def _check_size(size: int, max_bytes: int | None, name: str) -> None:
    if max_bytes is not None and size > max_bytes:
        _too_large(f"{size:,}", max_bytes, name)


def _too_large(size: str, max_bytes: int, name: str) -> None:
    raise InputError(
        f"{name:.300} has {size} bytes, and clips of at most {max_bytes:,} are sent: shorten or compress it, or set "
        "max_transcription_bytes to a larger number (None for no limit) if the server takes it"
    )
