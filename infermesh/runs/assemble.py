"""From an experiment to its deployments, models and stages, ready to be asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from infermesh.config.declaration import Declaration
from infermesh.dispatch.fleet import Fleet
from infermesh.simulator.process import SimulatorProcess
from infermesh.stages import StageContext, build_stages
from infermesh.stages.graph import Pipeline

NOWHERE = "http://127.0.0.1:9/v1"  # stands for the embedded simulator where nothing is asked of it


@contextlib.contextmanager
def assembled(
    declaration: Declaration, environ: Mapping[str, str], *, simulator_url: str | None = None
) -> Iterator[tuple[Fleet, Pipeline]]:
    """Build the deployments, models and stages of a declaration, and start the embedded simulator where it asks for it.

    The simulator and the stages are closed on leaving. With a ``simulator_url``, which then stands for the embedded
    simulator, none is started.

    Raises
    ------
    ConfigError
        The declaration names what is not there.
    """
    with ExitStack() as stack:
        experiment, roots = declaration.experiment, declaration.roots
        stack.enter_context(_importable(roots))
        if experiment.uses_simulator and simulator_url is None:
            simulator_url = stack.enter_context(SimulatorProcess(experiment.simulator)).url
        fleet = Fleet(experiment, simulator_url=simulator_url, environ=environ)
        pipeline = build_stages(experiment, StageContext(fleet.models, roots))
        for stage in pipeline.stages.values():
            stack.callback(stage.close)
        yield fleet, pipeline


@contextlib.contextmanager
def _importable(roots: Sequence[Path]) -> Iterator[None]:
    """Let ``module:name`` in a config import from the roots."""
    added = [str(root) for root in roots if str(root) not in sys.path]
    sys.path[:0] = added
    try:
        yield
    finally:
        for root in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(root)
