"""Run a simulator in a child process, which ends with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

from infermesh.simulator.remote import fetch_stats, reset_stats
from infermesh.simulator.settings import SimulatorSettings

__all__ = ["SimulatorProcess"]

_ROOT = Path(__file__).resolve().parents[2]


class SimulatorProcess:
    """A simulator in a child process, so that it does not compete with the caller's event loop.

    The child reads from a pipe whose other end this process alone holds. So the child ends when this process ends, even
    by SIGKILL.

    Parameters
    ----------
    settings
        What the service does.
    start_timeout_s
        How long to wait until it accepts requests.

    Attributes
    ----------
    url
        The base URL, `http://127.0.0.1:PORT/v1`.
    pid
        The child's process id.

    Raises
    ------
    RuntimeError
        If the child does not start in time.
    """

    def __init__(self, settings: SimulatorSettings | None = None, *, start_timeout_s: float = 30.0) -> None:
        chosen = settings or SimulatorSettings()
        command = [sys.executable, "-m", "infermesh.simulator", "--exit-with-stdin"]
        # The child must import the same package as the parent.
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [*command, "--settings", chosen.model_dump_json(exclude_defaults=True)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.pid = self._process.pid
        try:
            self.url = self._await_url(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def _await_url(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        # Not every system can read a pipe with a timeout. Killing the child ends the reading.
        timer = Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
        if not line:
            raise RuntimeError(f"the simulator did not start (exit status {self._process.wait()})")
        return str(json.loads(line)["url"])

    def stats(self, hashes: bool = False, lines: bool = False) -> dict[str, Any]:
        """Return what `GET /stats` says."""
        return fetch_stats(self.url, hashes, lines)

    def reset(self) -> None:
        """Set all counts to zero."""
        reset_stats(self.url)

    def close(self) -> None:
        """Stop the child and wait until it has ended."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
