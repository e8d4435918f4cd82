"""Find the files that a declaration names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path


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
            close = difflib.get_close_matches(Path(path).name, [item.name for item in folder.iterdir()], n=1)
            if close:
                return f" Did you mean '{Path(path).parent / close[0]}'?"
    return f" Looked in: {', '.join(str(root) for root in roots)}."
