"""A folder beside a file that is being written, and the removal of those that killed writers have left."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside a file, on the same disk; it is removed in the end.

    A writer that is killed cannot remove its own. So each holds a lock on it (flock(2)), which ends with its process,
    and the next writer of the same file removes what nobody holds.

    Raises
    ------
    OSError
        It cannot be made.
    """
    with _locked(path.parent):  # between the making of a folder and its lock, nobody may take it for left behind
        for found in glob.glob(f".{glob.escape(path.name)}.*", root_dir=path.parent, include_hidden=True):
            _remove_if_left(path.parent / found)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        held = contextlib.ExitStack()
        held.enter_context(_locked(folder))
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        with contextlib.suppress(OSError), _locked(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock; without ``wait``, raise ``OSError`` where that cannot be had at once.

    A file system may know no locks: with ``wait``, the work goes on without one.
    """
    if fcntl is None:
        if not wait:
            raise OSError("no locks here")
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)
