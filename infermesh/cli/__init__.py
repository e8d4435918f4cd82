"""The command line: argv → the library. The only place that knows Typer."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from infermesh.cli.terminal import discard_stdout, guard_streams

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command line and exit with its code."""
    guard_streams()
    try:
        try:
            _run()
        except SystemExit as ended:
            if ended.code:  # it has said why
                _end_with_what_is_written()
            raise
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()  # the reader has gone (| head): end quietly
        sys.exit(0)
    except OSError as error:
        from infermesh.hints import system_words

        discard_stdout()
        print(f"error: {system_words(error)}", file=sys.stderr)
        sys.exit(1)


def _end_with_what_is_written() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        discard_stdout()


def _run() -> None:
    if "_INFERMESH_COMPLETE_LINE" in os.environ:
        from infermesh.cli.completion import answer

        answer(_app)
        return
    _app()(_as_meant(sys.argv[1:]), prog_name="infermesh")


def _app() -> typer.Typer:
    from infermesh.cli.app import app

    return app


def _as_meant(arguments: list[str]) -> list[str]:
    """What Hydra's help says of completion (``-sc install=bash``), as the command that does it here."""
    options = arguments[1:] if arguments[:1] == ["run"] else arguments
    if options[:1] == ["-sc"] and len(options) == 2 and options[1].startswith("install="):
        return ["completion", options[1].removeprefix("install=")]
    return arguments
