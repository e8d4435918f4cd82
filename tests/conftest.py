"""Fixtures of every test: a simulated service, a folder to run in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from infermesh.simulator import Simulator, SimulatorSettings
from tests.support import Lab

# Some hundred commands are started: the first one compiles the package, not each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same inputs at each run; ``pytest --hypothesis-profile long`` looks at many more, other ones each time.
_ANYWHERE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]  # it is a shared machine
settings.register_profile("short", derandomize=True, deadline=None, max_examples=50, suppress_health_check=_ANYWHERE)
settings.register_profile("long", deadline=None, max_examples=3000, suppress_health_check=_ANYWHERE)
settings.load_profile("short")


@pytest.fixture(scope="session")
def _plain_simulator() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(_plain_simulator: Simulator) -> Simulator:
    """A service without latency or faults, its counts at zero."""
    _plain_simulator.reset()
    return _plain_simulator


@pytest.fixture
def start_simulator() -> Iterator[Callable[..., Simulator]]:
    """Start services with the given settings; they are closed after the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Simulator(SimulatorSettings(**settings)))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A folder with nothing in it yet."""
    return Lab(tmp_path)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what takes long unless it is asked for: ``pytest -m engines tests/engines``, the same with chaos."""
    name = collection_path.name
    return True if name in ("engines", "chaos") and name not in config.option.markexpr else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked ``long`` or ``browser``, unless the markers that are asked for speak of it."""
    for marker in ("long", "browser"):
        if marker not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left_out)
