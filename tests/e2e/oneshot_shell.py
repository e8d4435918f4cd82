"""One-shot commands as real processes: run, kill, read what they wrote."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import environment, here, wait_until

RUN_S = 60.0


class Shell:
    """A folder to run commands in, against one service."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.environ = environment(COLUMNS="100")

    def arguments(self, arguments: Sequence[str], model: bool = True) -> list[str]:
        return [*arguments, *(["--model", "hosted_vllm/any", "--api-base", self.url] if model else [])]

    def argv(self, arguments: Sequence[str], *, model: bool = True) -> list[str]:
        return [sys.executable, "-m", "infermesh", *self.arguments(arguments, model)]

    def here(self, *arguments: str, model: bool = True) -> subprocess.CompletedProcess[str]:
        """The same in this process, where neither streams nor signals are the point."""
        return here(*self.arguments(arguments, model), cwd=self.folder, **self.environ)

    def run(self, *arguments: str, stdin: str = "", model: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(arguments, model=model),
            cwd=self.folder,
            env=self.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )

    def kill_when(self, lines: int, output: str, *arguments: str, number: int = signal.SIGKILL, code: int = -9) -> int:
        """Start, wait until the output has that many whole lines, send the signal; the number of lines then."""
        process = subprocess.Popen(
            self.argv(arguments), cwd=self.folder, env=self.environ, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        path = self.folder / output
        try:
            wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= lines, f"{lines} lines in {output}")
        finally:
            process.send_signal(number)
            process.communicate()
        assert process.returncode == code
        return path.read_bytes().count(b"\n")

    def lines(self, output: str) -> list[dict[str, Any]]:
        """The output's rows by ``_index``; each is there once."""
        rows = [json.loads(line) for line in (self.folder / output).read_text().splitlines()]
        assert len({row["_index"] for row in rows}) == len(rows)
        return sorted(rows, key=lambda row: row["_index"])
