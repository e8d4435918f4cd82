"""Set up the desk of a session whose deployments have batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from infermesh.config.schema import Experiment
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import ConfigError
from infermesh.runs.batches.courier import Counter
from infermesh.runs.batches.desk import BatchDesk, Route
from infermesh.stages import Stage
from infermesh.store import RunStore
from infermesh.store.batches import BatchBook, has_batches
from infermesh.transports import LateValues
from infermesh.transports.batches import BatchWire, make_batch_wire

__all__ = ["FOLDER", "batched_labels", "make_desk", "wire_of"]

FOLDER = "batches"  # in a run's folder


def batched_labels(experiment: Experiment) -> list[str]:
    """The deployments whose requests go through a batch API."""
    return [label for label, entry in experiment.deployments.items() if entry.batch.enabled]


def make_desk(
    experiment: Experiment,
    fleet: Fleet,
    stages: Mapping[str, Stage],
    store: RunStore,
    folder: Path,
    *,
    note: Callable[[str], None],
    stop: Callable[[str], None],
    detach: bool,
) -> BatchDesk | None:
    """Make the desk, and lead the models' requests to it; ``None``: no batch is asked for, and none is to be collected.

    Raises
    ------
    ConfigError
        A deployment has no batch API, or a stage asks it for what no batch does.
    """
    wanted = batched_labels(experiment)
    with store.cursor() as connection:
        owed: set[str] = set()
        if has_batches(connection):
            query = "SELECT DISTINCT deployment FROM batches WHERE state IN ('creating', 'submitted', 'collected')"
            owed = {label for (label,) in connection.execute(query).fetchall()}
    labels = [label for label in experiment.deployments if label in wanted or label in owed]
    if not labels:
        return None
    counters = {label: _counter(label, experiment, fleet) for label in labels}
    for name, stage in stages.items():
        if stage.model is not None:
            served = [label for label in stage.model.labels if label in counters]
            for label in served:
                _check(name, stage, counters[label], fleet)
    desk = BatchDesk(BatchBook(store.cursor()), folder / FOLDER, counters, note=note, stop=stop, detach=detach)
    for name, model in fleet.models.items():
        if served := [label for label in model.labels if label in counters]:
            model.route = Route(desk, served, experiment.models[name].max_retries)
            live = [label for label in model.labels if label not in wanted]
            if live and len(live) < len(model.labels):
                note(
                    f"models.{name}: {', '.join(served)} takes its requests in batches; {', '.join(live)} gets what a "
                    "batch does not bring within batch.max_wait"
                )
    desk.load()
    return desk


def _counter(label: str, experiment: Experiment, fleet: Fleet) -> Counter:
    wire = wire_of(label, experiment, fleet)
    entry = experiment.deployments[label]
    return Counter(label, wire, entry.batch, fleet.deployments[label].price, entry.batch.enabled)


def wire_of(label: str, experiment: Experiment, fleet: Fleet) -> BatchWire:
    """What speaks a deployment's batch API. Raises ``ConfigError`` where it has none."""
    entry, transport = experiment.deployments[label], fleet.deployments[label].transport
    if isinstance(transport, LateValues):
        raise ConfigError(
            f"deployments.{label}.batch: params hold values of environment variables, which a batch's file would keep "
            "on the disk and at the provider. Write them out, or set batch.enabled to false"
        )
    return make_batch_wire(label, entry.model, transport, simulated=entry.api_base == "simulator")


def _check(name: str, stage: Stage, counter: Counter, fleet: Fleet) -> None:
    assert stage.model is not None
    kind = type(stage).__name__.lower()
    operation = {"embed": "embedding", "generate": stage.model.endpoint}.get(kind)
    if operation not in counter.wire.limits.operations:
        raise ConfigError(
            f"stages.{name}: {counter.label} has no batches of this kind ({operation or kind}). Give the stage a model "
            f"of its own, whose deployment has batch.enabled: false"
        )
