"""Which files a row may name."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from infermesh.config.schema import SourceConfig
from infermesh.errors import ConfigError, InputError
from infermesh.inputs.huggingface import dataset_folders
from infermesh.inputs.paths import find, similar_file


class RowFiles:
    """The files that rows may name.

    Rows may come from strangers. So what they name has to be in a folder that the declaration names: one of the roots,
    the source's, or one of ``allow_paths``. Links are followed before that is judged.

    Parameters
    ----------
    roots
        The folders that relative paths are looked up in, and after them the source's.
    source
        Where the rows come from. ``None``: not from files.
    allowed
        Further folders, or single files, relative to the roots.

    Raises
    ------
    ConfigError
        One of ``allowed`` does not exist.
    """

    def __init__(
        self, roots: Sequence[Path] = (), source: SourceConfig | None = None, allowed: Sequence[str] = ()
    ) -> None:
        self._source = source
        self._given_roots = tuple(roots)
        self._named: list[Path] = []
        self._beginning: str | None = None
        for entry in allowed:
            path = find(entry, self._given_roots)
            if path is None:
                raise ConfigError(f"allow_paths: no folder '{entry}'.{similar_file(entry, roots)}")
            self._named.append(path)

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """The folders that relative paths are looked up in."""
        return (*self._given_roots, *(source_folders(self._source, self._given_roots) if self._source else ()))

    @cached_property
    def _allowed(self) -> frozenset[str]:
        begun = () if self._beginning is None else [root / os.path.expanduser(self._beginning) for root in self.roots]
        return frozenset(os.path.realpath(path) for path in (*self.roots, *self._named, *begun))

    def beginning(self, text: str, *, whole: bool) -> RowFiles:
        """The same, and what a template's own text names: the folder before its first value, or the ``whole`` file.

        ``/data/clips/{{ name }}`` allows ``/data/clips``. The root of the file system is not allowed in this way.
        """
        text = text.strip()
        name = text if whole else text.rpartition("/")[0]
        if not name.strip("/"):
            return self
        found = RowFiles(self._given_roots, self._source)
        found._named, found._beginning = self._named, name
        return found

    def find(self, written: str) -> Path | None:
        """The first file of that name in the roots. Whether it may be read is for :meth:`judge`."""
        return find(written, self.roots)

    def judge(self, path: Path, stat: os.stat_result | None = None) -> bool:
        """Refuse a file that is in no allowed folder.

        Parameters
        ----------
        stat
            Of the file that was opened at that path: then it must be the one that is there now.

        Returns
        -------
        bool
            Whether the declaration names that very file, so that nothing of it is left to the row.

        Raises
        ------
        InputError
            It is elsewhere.
        """
        real = os.path.realpath(path)
        named = real in self._allowed
        if not named and not any(str(folder) in self._allowed for folder in Path(real).parents):
            leads = "" if real == str(path) else f", which is '{real:.300}',"
            raise InputError(
                f"the file '{path!s:.300}'{leads} is in no folder that rows may name files in. If it is to be sent, "
                f"set allow_paths: ['{os.path.dirname(real):.300}'] at the top of the experiment "
                "(--allow-path of the commands)"
            )
        if stat is not None and not os.path.samestat(stat, os.stat(real)):
            raise InputError(f"the file '{path!s:.300}' was replaced while it was opened: try again")
        return named


def source_folders(source: SourceConfig, roots: Sequence[Path]) -> list[Path]:
    """The folders that a source names: of its file or its dataset; of a glob, what stands before its first wildcard."""
    if source.dataset is not None:
        return dataset_folders(source.dataset, roots)
    found: list[Path] = []
    for root in roots if source.path is not None else ():
        path = root / os.path.expanduser(source.path or "")
        folder = path.parent if path.is_file() else fixed_folder(path)
        if folder.is_dir() and folder != Path(folder.anchor) and folder not in (*roots, *found):
            found.append(folder)
    return found


def fixed_folder(pattern: Path) -> Path:
    """The folder before a pattern's first wildcard. A folder that is there stands for itself: ``run [x]``."""
    folder = Path(pattern.anchor)
    for part in pattern.parent.relative_to(pattern.anchor).parts:
        if glob.has_magic(part) and not (folder / part).exists():
            break
        folder /= part
    return folder
