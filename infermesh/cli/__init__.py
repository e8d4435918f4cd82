"""The command line: argv → the library. The only place that knows Typer."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def main() -> None:
    """Run the command line and exit with its code."""
    _keep_streams()
    try:
        if sys.argv[1:2] == ["-sc"]:
            _complete()
            return
        from infermesh.cli.app import app

        app(prog_name="infermesh")
    except BrokenPipeError:
        # The reader has gone (| head): end quietly, and keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _keep_streams() -> None:
    """Let nobody's work end because nobody reads its messages: a closed terminal, ``2>&1 | head -1``, ``2>&-``.

    A closed descriptor 0, 1 or 2 is given to the null device first, or the next file that is opened would take its
    place and get the messages.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "wb")))
    elif isinstance(sys.stderr, io.TextIOWrapper):
        raw = _Heard(sys.stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )


class _Heard(io.FileIO):
    """A stream of messages that goes silent when its reader has gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _complete() -> None:
    """Answer a shell that completes ``infermesh run …``: Hydra's script calls the executable with ``-sc query=…``.

    Hydra knows executables without subcommands, so ``run`` is taken out of the line before it looks.
    """
    line = os.environ.get("COMP_LINE", "")
    words = line.split(maxsplit=2)
    if len(words) < 2 or words[1] != "run":
        return
    start = line.index(" run") + len(" run")
    shorter = words[0] + line[start:]
    point = int(os.environ.get("COMP_POINT", len(line))) - (len(line) - len(shorter))
    os.environ.update(COMP_LINE=shorter, COMP_POINT=str(max(point, 0)))
    from infermesh.cli.run import run_hydra

    run_hydra(sys.argv[1:])
