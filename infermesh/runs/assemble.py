"""Build the deployments, models and stages of an experiment."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from infermesh.config.declaration import Declaration
from infermesh.config.schema import Experiment, ModelStageConfig
from infermesh.dispatch.fleet import Fleet
from infermesh.limits import LocalRateLimiter
from infermesh.simulator.process import SimulatorProcess
from infermesh.stages import StageContext, build_stages
from infermesh.stages.graph import Pipeline
from infermesh.types import Limits

NOWHERE = "http://127.0.0.1:9/v1"  # a ``simulator_url`` for callers that send nothing


@contextlib.contextmanager
def assembled(
    declaration: Declaration,
    environ: Mapping[str, str],
    *,
    simulator_url: str | None = None,
    limiter: Callable[[Limits], LocalRateLimiter] = LocalRateLimiter,
) -> Iterator[tuple[Fleet, Pipeline]]:
    """Build the deployments, models and stages of a declaration; start the embedded simulator if it uses one.

    The stages and the simulator are closed on exit.

    Parameters
    ----------
    environ
        Where ``api_key_env`` is looked up.
    simulator_url
        Use this URL as the embedded simulator's and start none; for callers that send nothing, or have one running.
        ``None`` starts one.
    limiter
        As in :class:`~infermesh.dispatch.fleet.Fleet`.

    Raises
    ------
    ConfigError
        The declaration names something that does not exist: a file, a function, a column.
    """
    with ExitStack() as stack:
        experiment, roots = declaration.experiment, declaration.roots
        stack.enter_context(_importable(roots))
        if experiment.uses_simulator and simulator_url is None:
            simulator_url = stack.enter_context(SimulatorProcess(experiment.simulator)).url
        with declaration.long_form.told():
            fleet = Fleet(experiment, simulator_url=simulator_url, environ=environ, limiter=limiter)
        pipeline = build_stages(experiment, StageContext(fleet.models, roots))
        for stage in pipeline.stages.values():
            stage.facts = declaration.taken.hidden(stage.facts)  # they are stored
            stack.callback(stage.close)
        yield fleet, pipeline


@contextlib.contextmanager
def _importable(roots: Sequence[Path]) -> Iterator[None]:
    """Put the roots first on ``sys.path``, so that ``module:name`` in a config imports from them."""
    added = [str(root) for root in roots if str(root) not in sys.path]
    sys.path[:0] = added
    try:
        yield
    finally:
        for root in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(root)


def requests_at_once(experiment: Experiment) -> int:
    """The most requests that can be in flight: bounded by the stages' windows and by the deployments' slots."""
    windows = sum(
        stage.max_parallel_requests for stage in experiment.stages.values() if isinstance(stage, ModelStageConfig)
    )
    slots = [entry.max_parallel_requests for entry in experiment.deployments.values()]
    return min(windows, sum(slot if slot is not None else windows for slot in slots))
