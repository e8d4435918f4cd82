"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import command, environment

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start ``infermesh …`` in a folder; what still runs after the test is killed."""
    with ExitStack() as stack:

        def start(*arguments: str, cwd: Path, start_new_session: bool = False) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                command(*arguments),
                cwd=cwd,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=start_new_session,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start
