"""``--detach``: a run in a process of its own, which goes on when the terminal is closed.

The command starts itself again without the option, in a session of its own. The new process tells through a pipe when
the run has begun, with its folder; what it says from then on goes into a file there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

from infermesh.cli.common import Progress, fail
from infermesh.hints import command
from infermesh.runs.stats import Observer, RunStats

if sys.platform != "win32":
    import fcntl

__all__ = ["SAID", "in_background", "is_saying", "run_detached", "telling_when_begun"]

SAID = "stderr.log"  # in the run's folder: what a detached run says
_PIPE = "INFERMESH_DETACHED_PIPE"


def run_detached(arguments: Sequence[str]) -> int:
    """Start ``infermesh`` with these arguments in the background, and wait until its run has begun.

    Returns
    -------
    int
        0 once it has; else the exit code of the command, whose words are told.
    """
    if sys.platform == "win32":
        fail("--detach needs a system with Unix sockets and process sessions")
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said, open(reading, encoding="utf-8") as begun:
        process = subprocess.Popen(
            [sys.executable, "-m", "infermesh", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, _PIPE: str(writing)},
            pass_fds=[writing],
            start_new_session=True,  # a closed terminal, and Ctrl-C, are none of its business
        )
        os.close(writing)
        try:
            line = begun.readline()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            _pass_on(said)
            return 130
        if not line:
            code = process.wait()
            _pass_on(said)
            return code if code >= 0 else 128 - code
        told = json.loads(line)
        said.truncate(told["bytes"])
        _pass_on(said)
    folder = told["folder"]
    print(f"running in the background (process {process.pid}): {folder}", file=sys.stderr)
    print(f"  attach    {command('attach', folder)}", file=sys.stderr)
    print(f"  logs      {command('logs', '-f', folder)}   ({SAID} there)", file=sys.stderr)
    print(f"  stop      {command('stop', folder)}", file=sys.stderr)
    process.returncode = 0  # it goes on, and nobody here waits for it
    return 0


def in_background(progress: Progress, batches: bool) -> list[str]:
    """The options that a command passes on to itself."""
    shown = Progress.JSON if progress is Progress.JSON else Progress.LINES
    return ["--progress", shown.value, *(["--detach-batches"] if batches else [])]


def _pass_on(said: BinaryIO) -> None:
    said.seek(0)
    sys.stderr.write(said.read().decode(errors="replace"))


def is_saying(file: IO[str]) -> bool:
    """Whether a process still writes to a run's :data:`SAID`."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def telling_when_begun(observer: Observer, folder: Path) -> Observer:
    """The observer of a run; one that also tells who has detached it, where somebody has."""
    pipe = os.environ.pop(_PIPE, None)  # it is no business of the processes that the run starts
    return observer if pipe is None else _Begun(observer, folder, int(pipe))


class _Begun:
    def __init__(self, observer: Observer, folder: Path, pipe: int) -> None:
        self._observer = observer
        self._folder = folder
        self._pipe = pipe
        os.set_inheritable(pipe, False)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def start(self, stats: RunStats) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        size = os.fstat(2).st_size
        file = os.open(self._folder / SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        with contextlib.suppress(OSError):  # what was said before, for who reads the file alone
            os.write(file, os.pread(2, size, 0))
        with contextlib.suppress(OSError):  # held until the process has ended: `is_saying` looks at it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        with contextlib.suppress(OSError), open(self._pipe, "w", encoding="utf-8") as told:
            told.write(json.dumps({"folder": str(self._folder), "bytes": size}) + "\n")
        self._observer.start(stats)

    def tick(self, stats: RunStats) -> None:
        self._observer.tick(stats)

    def stop(self, stats: RunStats) -> None:
        self._observer.stop(stats)
