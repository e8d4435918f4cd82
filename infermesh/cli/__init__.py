"""The command line: argv → the library. The only place that knows Typer."""

from __future__ import annotations

import os
import sys

from infermesh.cli.terminal import discard_stdout, guard_streams


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
    if sys.argv[1:2] == ["-sc"]:
        _complete()
        return
    from infermesh.cli.app import app

    app(prog_name="infermesh")


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
