"""Words for messages: a near name, a command to copy, one line of a long text, what to do about a full disk."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# What a terminal obeys or hides: the control characters but tab and line break, and the marks that reorder a line.
# Half a surrogate pair cannot be encoded.
_HIDDEN = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_NEAR = 0.6  # of two names, as difflib measures it: about four letters of ten may differ

_MAKE_ROOM = "make room, then run the same command again"
_ELSEWHERE = "change its rights, or name another place"
_CURES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "raise the limit (ulimit -f) or use another file system, then run the same command again",
    errno.EROFS: "name another place",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENOTDIR: "a part of that path is a file; name a folder",
    errno.EISDIR: "a folder is in the place of a file; name another one, or move the folder away",
    errno.EEXIST: "name another place, or move away what is there",
    errno.ENOENT: "look at the path",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ELOOP: "its links lead back to themselves",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "the whole machine has too many files open; end other programs",
    errno.EIO: "look at the disk, then run the same command again",
    errno.ESTALE: "the network's file system has lost it; run the same command again",
}


def nearest(name: str, valid: Iterator[str] | list[str] | set[str] | Mapping[str, Any]) -> str:
    """The end of a message about an unknown name: the nearest valid one, or all of them if none is near.

    Examples
    --------
    >>> nearest("promt", ["prompt", "text"])
    " Did you mean 'prompt'?"
    """
    names = sorted(str(item) for item in valid)
    if (close := near(name, names)) is not None:
        return f" Did you mean '{close}'?"
    return f" There is: {', '.join(names[:20])}." if names else " There is none."


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts: in the singular for one, with commas between thousands.

    Parameters
    ----------
    plural
        Where it is not the noun with an ``s``; a verb may follow in both.

    Examples
    --------
    >>> counted(1, "row"), counted(20000, "row")
    ('1 row', '20,000 rows')
    >>> counted(1, "row is", "rows are")
    '1 row is'
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def near(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that was probably meant; ``None`` where none is near: a far guess is worse than the list.

    Examples
    --------
    >>> near("promt", ["prompt", "text"])
    'prompt'
    >>> near("customer", ["vectors", "text"])
    """
    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=_NEAR)), None)


def command(*words: object) -> str:
    """A command of ours to copy into a shell: what a shell would take apart is quoted.

    Examples
    --------
    >>> command("resume", "my runs/1")
    "infermesh resume 'my runs/1'"
    """
    return shlex.join(["infermesh", *map(str, words)])


def one_line(text: object, most: int = 400) -> str:
    """A text or an error in one line of at most so many characters; what is too long loses its middle.

    An error begins with what went wrong, and ends with what to do.

    Examples
    --------
    >>> one_line("no answer after a very long time:\\nstart it", 30)
    'no answer after a … start it'
    """
    line = " ".join(str(text).split())
    if len(line) <= most:
        return line
    tail = (most - 3) // 3
    return f"{line[: most - 3 - tail].rstrip()} … {line[len(line) - tail :].lstrip()}"


def visible(text: str) -> str:
    """A text in which nothing is left that a terminal obeys or hides: such characters are written as escapes.

    Examples
    --------
    >>> print(visible("before" + chr(27) + "[2Jafter"))
    before\\x1b[2Jafter
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def cure(text: str) -> str | None:
    """The operating system's reason that stands in a text, and what to do about it; ``None`` if there is none.

    Examples
    --------
    >>> cure("Could not write file: No space left on device")
    'no space left on device: make room, then run the same command again'
    """
    lowered = text.lower()
    for number, advice in _CURES.items():
        reason = os.strerror(number).lower()
        if reason in lowered:
            return f"{reason}: {advice}"
    return None


def cured(text: str) -> str:
    """A text with what to do about the operating system's failure in it, if there is one in it."""
    found = cure(text)
    return text if found is None else f"{text}: {found.partition(': ')[2]}"


def system_words(error: OSError, place: object = None) -> str:
    """The operating system's error in one line: the path, the reason and what to do.

    Parameters
    ----------
    place
        The path to name where the error names none, as that of a full disk.
    """
    path = error.filename if error.filename is not None else place
    reason = error.strerror or str(error) or type(error).__name__
    words = cure(reason) or reason
    return words if path is None else f"{os.fsdecode(path) if isinstance(path, bytes) else path}: {words}"


@contextlib.contextmanager
def named(place: object) -> Iterator[None]:
    """Within the block, an error of the system that names no file, as that of a full disk, names ``place``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and place is not None:
            error.filename = str(place)
        raise
