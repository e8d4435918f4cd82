"""Small files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(file: Path, content: bytes) -> None:
    """Write a small file; the one that is there stays whole until the new one is, as on a full disk.

    Raises
    ------
    OSError
        It cannot be written; the error names ``file``.
    """
    arriving = file.with_name(f".{file.name}.part")
    try:
        arriving.write_bytes(content)
        arriving.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            arriving.unlink(missing_ok=True)
        error.filename = str(file)
        raise
