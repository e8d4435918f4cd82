"""The end of an event loop."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import asyncio, os, signal, sys, threading, time
from infermesh.runtime.loop import run_loop

async def main():
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.5)  # keeps the loop from closing
    threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT)).start()
    return "whole"

print(run_loop(main()))
"""


@pytest.mark.parametrize("after_s", ["0.1", "0.2"])
def test_an_interrupt_while_the_loop_closes_keeps_the_result(after_s: str) -> None:
    ended = subprocess.run([sys.executable, "-c", CODE, after_s], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "whole\n"), ended.stderr
