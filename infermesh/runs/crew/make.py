"""The hub of a session's workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from infermesh.config.declaration import Declaration
from infermesh.dispatch.fleet import Fleet
from infermesh.runs.crew.hub import Hub
from infermesh.runs.crew.links import Links
from infermesh.runs.crew.links.local import LocalLinks
from infermesh.runs.crew.messages import PROTOCOL, Start
from infermesh.runs.crew.quotas import Quotas, Shares
from infermesh.runs.crew.wave import CrewWave
from infermesh.runs.gate import Known
from infermesh.runs.stats import RunStats
from infermesh.stages import Stage
from infermesh.store import Column, GroupWriter

__all__ = ["CrewWave", "Hub", "make_hub"]


def make_hub(
    workers: int,
    declaration: Declaration,
    environ: Mapping[str, str],
    origins: Mapping[str, Sequence[Column]],
    fleet: Fleet,
    stages: Mapping[str, Stage],
    *,
    writer: GroupWriter,
    stats: RunStats,
    known: Known | None,
    note: Callable[[str], None],
    check: Callable[[], None],
    stop: Callable[[str], None],
) -> Hub:
    """The hub of a session. It starts its workers at the first row."""
    experiment = declaration.experiment
    engine = experiment.engine
    first = Start(
        PROTOCOL, declaration, dict(environ), fleet.simulator_url, list(sys.path), origins, 0, workers, engine.silence
    )
    links: Links = LocalLinks()
    if engine.kind == "ray":
        from infermesh.runs.crew.links.ray import RayLinks  # late: few have Ray

        links = RayLinks(engine, declaration.roots[0], embedded=fleet.simulator_url is not None, note=note)
    return Hub(
        lambda number, workers: replace(first, number=number, workers=workers),
        workers,
        silence_s=engine.silence,
        max_lost=engine.max_lost,
        links=links,
        quotas=Quotas(fleet),
        shares=Shares(stages, experiment.deployments),
        writer=writer,
        stats=stats,
        known=known,
        note=note,
        check=check,
        stop=stop,
    )
