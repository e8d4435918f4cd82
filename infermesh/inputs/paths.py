"""Find the files that a declaration names, and open a file that may be anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG

from infermesh.errors import InputError
from infermesh.hints import near


def find(path: str, roots: Sequence[Path]) -> Path | None:
    """The first ``root / path`` that exists. An absolute path is taken as it is."""
    for root in roots:
        candidate = root / os.path.expanduser(path)
        if candidate.exists():
            return candidate
    return None


def similar_file(path: str, roots: Sequence[Path]) -> str:
    """The end of a message about a missing file: the nearest name in its folder, else the folders searched."""
    for root in roots:
        folder = (root / path).parent
        if folder.is_dir():
            others = [item.name for item in folder.iterdir() if item.name != Path(path).name]
            if (close := near(Path(path).name, others)) is not None:
                return f" Did you mean '{Path(path).parent / close}'?"
    return f" Looked in: {', '.join(str(root) for root in roots)}."


@contextmanager
def opened(path: Path, name: str) -> Iterator[tuple[BufferedReader, os.stat_result]]:
    """Open a regular file to read, with what the system says of the very file that is open.

    Parameters
    ----------
    name
        What messages call it: ``the image 'a.png'``.

    Raises
    ------
    InputError
        It is missing, cannot be read, has no bytes, or is a folder, a pipe or a device. A pipe is never waited for.
    """
    try:
        if not path.is_file():  # to open a device may do something
            raise InputError(f"{name} {'is not a file' if path.exists() else 'does not exist'}: check the path")
        with open(path, "rb", opener=_without_waiting) as file:
            stat = os.fstat(file.fileno())
            if not S_ISREG(stat.st_mode):
                raise InputError(f"{name} is not a file: check the path")
            if not stat.st_size:  # all of /proc, too, whatever there is to read in it
                raise InputError(f"{name} is empty")
            yield file, stat
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read: {error}") from None


def read_all(file: BufferedReader, stat: os.stat_result, most: int | None) -> bytes:
    """All of a file of :func:`opened` that has at most ``most`` bytes; a byte more, where it has grown beyond that.

    Python makes a buffer of as many bytes as are asked for. So the file's own size is, and not the limit: to make and
    drop one of 64 MiB takes ten times as long as to read a megabyte.
    """
    data = file.read(stat.st_size + 1)
    if len(data) > stat.st_size:
        data += file.read() if most is None else file.read(max(most + 1 - len(data), 0))
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
