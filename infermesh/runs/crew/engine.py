"""Whether a run's requests are sent by workers, and by how many."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping

from infermesh.config.schema import Experiment
from infermesh.errors import ConfigError
from infermesh.hints import counted
from infermesh.stages import Stage

__all__ = ["workers_of"]


def workers_of(experiment: Experiment, stages: Mapping[str, Stage], note: Callable[[str], None]) -> int:
    """How many workers send the requests of a run; 0: its own process does. What is decided is told.

    Parameters
    ----------
    stages
        Those that take rows.

    Raises
    ------
    ConfigError
        The declaration has something that workers cannot do.
    """
    engine = experiment.engine
    if engine.kind == "process" and engine.workers in ("auto", 1):
        return 0
    _refuse(experiment, stages)
    if engine.kind == "ray":
        _refuse_without_ray()
    most, why = _most(experiment, stages)
    on_cluster = engine.kind == "ray" and engine.address != "local"
    wanted = engine.workers if engine.workers != "auto" else most if on_cluster else _processors()
    workers = min(wanted, most)
    what = "processes of this machine" if engine.kind != "ray" else "actors of Ray, started for this run"
    said = f"engine: {counted(workers, 'worker')}, {what}"
    if on_cluster:  # how many it has room for is told when it is asked
        said = f"engine: workers on Ray ({engine.address}), {workers} at most"
    if engine.kind == "process":
        said += f" (engine.workers is {engine.workers}, so engine.kind is local)"
    elif engine.workers == "auto" and not on_cluster:
        said += f" (engine.workers: auto, {counted(wanted, 'processor')})"
    if workers < wanted:
        said += f"; more than {workers} would have nothing to send: {why}"
    note(said)
    if experiment.guards.max_cost_usd is not None:
        note(
            "guards.max_cost_usd: with workers it is looked at as answers come, and nothing is set aside for requests "
            "in flight: the run may cost as many answers more. engine.kind: process keeps to it"
        )
    return workers


def _most(experiment: Experiment, stages: Mapping[str, Stage]) -> tuple[int, str]:
    """The most workers that each can have a request in flight, and what bounds them."""
    bounds = [
        (stage.window, f"stages.{name}.max_parallel_requests is {stage.window}") for name, stage in stages.items()
    ]
    for name, model in experiment.models.items():
        slots = [experiment.deployments[label].max_parallel_requests for label in model.deployments]
        if None not in slots:
            total = sum(slot or 0 for slot in slots)
            bounds.append((total, f"the deployments of {name} take {counted(total, 'request')} at once"))
    return min(bounds, default=(1, "no stage takes rows"))


def _refuse(experiment: Experiment, stages: Mapping[str, Stage]) -> None:
    for name, limits in experiment.limits.items():
        if limits.shared and (limits.rpd is not None or limits.tpd is not None):
            raise ConfigError(
                f"limits.{name}.shared: a quota a day is shared by runs of one process each: use engine.kind: process, "
                "or leave rpd and tpd out"
            )
    if sys.platform == "win32":
        raise ConfigError("engine.kind: workers need a system with Unix sockets. Use engine.kind: process on Windows.")
    own = [
        f"stages.{name}: '{spec}' is a function of the script that was started, which workers do not run. Put it into "
        "a module of its own, or use engine.kind: process."
        for name, stage in stages.items()
        for spec in (stage.facts.get("function"), stage.facts.get("mapper"))
        if isinstance(spec, str) and spec.partition(":")[0] == "__main__"
    ]
    if own:
        raise ConfigError("\n".join(own))


def _refuse_without_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine.kind: ray: Ray is not installed. pip install 'infermesh[ray]', or use engine=local")


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
