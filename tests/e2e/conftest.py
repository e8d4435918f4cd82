"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infermesh.store.schema import DATABASE
from tests.support import assert_holds, command, environment


@pytest.fixture(autouse=True)
def _every_run_holds(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check what must hold of every run that a test leaves. One that breaks a run on purpose is marked."""
    root = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if root is not None and request.node.get_closest_marker("breaks_runs") is None:
        for database in sorted(root.rglob(DATABASE)):
            assert_holds(database.parent)


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
