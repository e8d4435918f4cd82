"""`python -m infermesh.simulator`: serve, and print the URL in one line of JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys


def main() -> None:
    """Read the command line and serve until told to stop."""
    parser = argparse.ArgumentParser(
        "python -m infermesh.simulator", description="A local server with OpenAI's and Anthropic's API."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--settings", default="{}", help="SimulatorSettings as JSON")
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="stop at the end of standard input, and ignore signals"
    )
    options = parser.parse_args()
    if options.exit_with_stdin:
        # Before the slow imports. Ctrl-C and a closed terminal reach every process of the terminal, GNU timeout signals
        # its whole group: the parent decides about this one, which answers what was sent until then.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if (number := getattr(signal, name, None)) is not None:
                signal.signal(number, signal.SIG_IGN)

    from infermesh.simulator.server import serve
    from infermesh.simulator.settings import SimulatorSettings

    try:
        settings = SimulatorSettings.model_validate_json(options.settings)
    except ValueError as error:
        parser.error(f"--settings: {error}")

    def announce(url: str) -> None:
        print(json.dumps({"url": url}), flush=True)

    try:
        serve(settings, options.host, options.port, announce, exit_with_stdin=options.exit_with_stdin)
    except OSError as error:
        sys.exit(f"cannot listen on {options.host}:{options.port}: {error.strerror}")


main()
