"""Words for messages: the nearest valid name, a command to copy, and long texts in one line."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any


def nearest(name: str, valid: Iterator[str] | list[str] | set[str] | Mapping[str, Any]) -> str:
    """The end of a message about an unknown name: the nearest valid one, or all of them if none is near.

    Examples
    --------
    >>> nearest("promt", ["prompt", "text"])
    " Did you mean 'prompt'?"
    """
    names = sorted(str(item) for item in valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" There is: {', '.join(names[:20])}." if names else " There is none."


def command(*words: object) -> str:
    """A command of ours to copy into a shell: what a shell would take apart is quoted.

    Examples
    --------
    >>> command("resume", "my runs/1")
    "infermesh resume 'my runs/1'"
    """
    return shlex.join(["infermesh", *map(str, words)])


def one_line(text: object, most: int = 400) -> str:
    """A text or an error in one line of at most so many characters."""
    return " ".join(str(text).split())[:most]
