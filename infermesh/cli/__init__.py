"""The command line: argv → the library. The only place that knows Hydra and Typer."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from infermesh.cli.app import app

    try:
        app(prog_name="infermesh")
    except BrokenPipeError:
        # The reader has gone (| head): end quietly, and keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
