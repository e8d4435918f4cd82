"""stdout and stderr as the commands use them: nobody's work ends for a message, and no text gives a terminal orders.

What is printed as text is for people: what a server, a model or a row says is shown with its control characters written
out (:func:`~infermesh.hints.visible`). Data goes through ``sys.stdout.buffer``, and stays exact unless it goes to a
terminal.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from infermesh.hints import named, visible

_DATA_ENCODING = "utf-8"


def guard_streams() -> None:
    """Put the guards around stdout and stderr; a second call does nothing.

    A closed terminal, ``2>&1 | head -1`` and ``2>&-`` end no work. A closed descriptor 0, 1 or 2 is given to the null
    device, or the next file that is opened would take its place and get the messages. What an encoding does not have
    is written as an escape.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if not isinstance(sys.stdout, _Shown):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = cast(TextIO, _Shown(sys.stdout or _nowhere(), "stdout"))
    if not isinstance(sys.stderr, _Shown):
        if isinstance(sys.stderr, io.TextIOWrapper):
            raw = _Heard(sys.stderr.fileno(), "wb", closefd=False)
            sys.stderr = io.TextIOWrapper(
                io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
            )
        sys.stderr = cast(TextIO, _Shown(sys.stderr or _nowhere(), "stderr"))


def discard_stdout() -> None:
    """Let what is still to be written to stdout go nowhere, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


class _Heard(io.FileIO):
    """A stream of messages that goes silent when its reader has gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


class _Shown:
    """A text stream that writes control characters out. All else is the stream's behind it.

    Parameters
    ----------
    name
        What errors call it, as they would a file.

    Attributes
    ----------
    rich_proxied_file
        The stream behind it. rich looks for this name and writes there: its own colours are no foreign ones.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self.rich_proxied_file = stream
        self._name = name
        self._bytes = _ShownBytes(self) if stream.isatty() else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    @property
    def buffer(self) -> Any:
        """Where data goes, as bytes."""
        return self.rich_proxied_file.buffer if self._bytes is None else self._bytes

    def write(self, text: str, /) -> int:
        with named(self._name):
            self.rich_proxied_file.write(visible(text))
        return len(text)

    def flush(self) -> None:
        with named(self._name):
            self.rich_proxied_file.flush()

    def writelines(self, lines: Iterable[str], /) -> None:
        for line in lines:
            self.write(line)


class _ShownBytes:
    """Data on a terminal: shown as text is."""

    def __init__(self, text: _Shown) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder(_DATA_ENCODING)("backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text.rich_proxied_file.buffer, name)

    def write(self, data: Any, /) -> int:
        self._text.write(self._decoder.decode(bytes(data)))
        return len(data)

    def flush(self) -> None:
        self._text.flush()
