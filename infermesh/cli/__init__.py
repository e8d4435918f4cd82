"""The command line: argv → the library. The only place that knows Typer."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
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
