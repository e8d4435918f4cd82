"""Long trials of what a run promises, in which processes are killed at random.

``pytest -m chaos tests/chaos -n 0 -s -o faulthandler_timeout=900``: one of them takes longer than a test may elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.service import CountingService
from tests.e2e.conftest import _every_run_holds, launch

__all__ = ["_every_run_holds", "chance", "launch", "service"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("chaos")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The same moments at each trial, as far as the machine allows."""
    return random.Random(request.node.name)


@pytest.fixture
def service() -> Iterator[CountingService]:
    with CountingService() as running:
        yield running
