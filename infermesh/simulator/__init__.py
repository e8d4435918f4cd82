"""A local service with the wire formats of OpenAI and Anthropic: known content, latency, capacity, quotas and faults.

It replaces real endpoints in tests, benchmarks and first steps. Nothing here imports the rest of the package, and the
web server is imported only when one is started.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infermesh.simulator.process import SimulatorProcess
    from infermesh.simulator.server import Simulator, serve
    from infermesh.simulator.settings import BatchSettings, Faults, SimulatorSettings

__all__ = ["BatchSettings", "Faults", "Simulator", "SimulatorProcess", "SimulatorSettings", "serve"]

_HOMES = {
    "BatchSettings": "settings",
    "Faults": "settings",
    "Simulator": "server",
    "SimulatorProcess": "process",
    "SimulatorSettings": "settings",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
