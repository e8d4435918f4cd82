"""A process that has imported infermesh already, and forks for each ``infermesh …`` that a page's shell starts.

A command spends most of its time on imports; pages have hundreds of commands. ``python commands.py SOCKET`` serves.
The program ``infermesh`` that :func:`serving` puts on ``PATH`` hands it arguments, folder, variables and streams.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

IMPORTED = (
    *("infermesh.cli.app", "infermesh.cli.run", "infermesh.cli.plan", "infermesh.cli.query", "infermesh.cli.sweep"),
    *("infermesh.cli.oneshot.run", "infermesh.cli.print_rows", "infermesh.cli.compare", "infermesh.runs.execute"),
    *("hydra", "duckdb", "pydantic", "rich.table", "rich.progress", "infermesh.simulator", "genai_prices"),
)
CLIENT = """#!{python} -IS
import json, os, socket, sys
there = socket.socket(socket.AF_UNIX)
there.connect({path!r})
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(there, [len(asked).to_bytes(8, "big")], [0, 1, 2])
there.sendall(asked)
sys.exit(int(there.recv(16) or b"1"))
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Serve; gives the folder that holds the program ``infermesh``."""
    path, programs = folder / "socket", folder / "bin"
    programs.mkdir()
    program = programs / "infermesh"
    program.write_text(CLIENT.format(python=sys.executable, path=str(path)))
    program.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n"
        yield programs
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def serve(path: str) -> None:
    """Fork for each connection. The child answers with its exit code."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Become the command; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(head, "big"):
        asked += connection.recv(65536)
    arguments, folder, variables = json.loads(asked)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        setattr(sys, ("stdin", "stdout", "stderr")[number], open(number, mode, buffering=1, closefd=False))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["infermesh", *arguments]
    code = 1
    try:
        from infermesh.cli import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        for written in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                written.flush()
        connection.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
