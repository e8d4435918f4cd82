"""The story of one stored row: its columns, and in each stage the request, the answer and every attempt.

A run stores no request. It is rendered again, by the code of the run, from the stored config and the stored answers of
the stages before; its ``request_key`` says whether that is what was sent. Nothing is sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infermesh.config.declaration import Declaration, declare
from infermesh.dispatch.fleet import Fleet
from infermesh.errors import InfermeshError
from infermesh.plan.gather import SIMULATOR_URL
from infermesh.plan.rehearsal import Rehearsal, Sent
from infermesh.query.one_row import RowCopy
from infermesh.runs.assemble import assembled
from infermesh.runs.row import StageOutputs, take_stored
from infermesh.stages import Stage, answers, prepare
from infermesh.stages.graph import Wave
from infermesh.store.pending import PendingRows, Row
from infermesh.store.schema import AFTER_OUTPUTS, BEFORE_OUTPUTS, SOURCE, literal

__all__ = ["RowStory", "StageStory", "row_story"]

_OURS = {"row_id", "row_key"}
_AROUND = {column.name for column in (*BEFORE_OUTPUTS, *AFTER_OUTPUTS)}


@dataclass(slots=True)
class StageStory:
    """What a stage did with the row.

    Attributes
    ----------
    status
        ``done``, ``error``, ``skipped`` or ``pending``.
    outputs
        The stage's own columns.
    state
        The columns that every stage has: error, attempts, deployment, tokens, times, ``reused_from``.
    attempts
        A row of the table ``attempts`` for each request that was sent, over all sessions.
    where
        The stage's condition; ``None`` if it has none.
    request
        The request, rendered again; ``None`` if the stage asks no model, or if it cannot be rendered.
    as_sent
        Whether ``request`` is what was sent, by its key; ``None`` if nothing was.
    problem
        Why there is no request.
    """

    name: str
    kind: str
    status: str = "pending"
    outputs: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    where: str | None = None
    request: Sent | None = None
    as_sent: bool | None = None
    problem: str | None = None


@dataclass(slots=True)
class RowStory:
    """A row of a run: its columns by name, and its stages in their order."""

    folder: Path
    run_id: str
    experiment: str
    row_id: int
    columns: dict[str, Any]
    unreadable: str | None
    stages: list[StageStory]


def row_story(folder: Path, row_id: int, origin: str = SOURCE, *, environ: Mapping[str, str] = os.environ) -> RowStory:
    """Tell the story of a row of a run, live or over.

    Parameters
    ----------
    origin
        ``source``, or the sql stage whose row it is.
    environ
        Where the variables are looked up that the config names; keys that are not set are not needed.

    Raises
    ------
    StoreError
        The run cannot be read.
    """
    with RowCopy(folder, row_id, origin) as copy:
        configs = copy.run["config"].get("stages") or {}
        stages = [_stored(copy, name, configs.get(name) or {}) for name in copy.stages]
        (columns,) = copy.rows(origin) or ({},)
        broken = copy.rows("source_errors") if origin == SOURCE else []
        story = RowStory(
            folder,
            copy.run["run_id"],
            copy.run["experiment"],
            row_id,
            {name: value for name, value in columns.items() if name not in _OURS},
            broken[0]["error"] if broken else None,
            stages,
        )
        _render(copy, story, environ)
    return story


def _stored(copy: RowCopy, name: str, config: Mapping[str, Any]) -> StageStory:
    story = StageStory(name, config.get("kind", "generate"), where=config.get("where"))
    for row in copy.rows(name):
        story.status = row["status"]
        story.outputs = {column: value for column, value in row.items() if column not in _AROUND}
        story.state = {column.name: row.get(column.name) for column in AFTER_OUTPUTS if column.name != "sole_request"}
    attempts = copy.rows("attempts", f"stage = {literal(name)}")
    story.attempts = sorted(attempts, key=lambda attempt: (attempt["started_at"], attempt["attempt"]))
    return story


def _render(copy: RowCopy, story: RowStory, environ: Mapping[str, str]) -> None:
    """Render the requests of the row's stages into their stories, or say there why that does not go."""
    try:
        here = Path.cwd()
        places = [here, *(root for root in map(Path, copy.run["roots"] or ()) if root != here)]
        declaration = declare(copy.run["config"], places, environ=environ)
        with assembled(declaration, _with_keys(declaration, environ), simulator_url=SIMULATOR_URL) as (fleet, pipeline):
            wave = next(wave for wave in pipeline.waves if wave.origin == copy.origin)
            asyncio.run(_render_wave(copy, story, declaration, fleet, wave))
    except (InfermeshError, StopIteration, OSError) as error:
        for stage in story.stages:
            stage.problem = stage.problem or " ".join(str(error).split())


async def _render_wave(copy: RowCopy, story: RowStory, declaration: Declaration, fleet: Fleet, wave: Wave) -> None:
    graph, by_name = wave.graph, {stage.name: stage for stage in story.stages}
    tables = [stage.table for name, stage in graph.stages.items() if name in by_name]
    needed = {name: columns for name, columns in graph.needed.items() if name in by_name}
    reader = PendingRows(copy.connection, copy.origin, tables, needed, stale=(), keep_errors=True, only=[copy.row_id])
    rows = reader.read(copy.row_id // reader.size)
    rehearsal = Rehearsal(fleet, (declaration.experiment.simulator, set()), {}, 1)
    for row in rows:
        for name, stage in graph.stages.items():  # each after those it reads
            if name in by_name:
                await _render_stage(rehearsal, fleet, stage, row, graph.requires[name], by_name[name])
                _take(row, name, StageOutputs(stage.table, graph.needed[name]))


async def _render_stage(
    rehearsal: Rehearsal, fleet: Fleet, stage: Stage, row: Row, requires: set[str], story: StageStory
) -> None:
    if stage.model is None or story.status == "skipped" or not requires <= row.context.keys():
        return
    label = story.state.get("deployment")
    if label in stage.model.labels:  # the one that answered: deployments may have other names for the model
        for other in stage.model.labels:
            fleet.deployments[other].transport = fleet.deployments[label].transport
    try:
        item = await prepare(stage, row.context)
        found = rehearsal.begin(stage.name)
        await answers(stage, [item])
    except Exception as error:  # a user's mapper or template may raise anything
        story.problem = f"{getattr(error, 'message', None) or f'{type(error).__name__}: {error}'}"
        return
    if found.requests:
        story.request = found.requests[0]
        key = story.state.get("request_key")
        story.as_sent = None if key is None else key == item.key


def _take(row: Row, stage: str, outputs: StageOutputs) -> None:
    """Put what the stage has stored of the row into its context, whether it is to be done again or not."""
    if (state := row.states.get(stage)) is not None:
        state.redo = False
        take_stored(row, stage, outputs, stale=False, keep_errors=True)


def _with_keys(declaration: Declaration, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with something in place of keys that are not set: nothing is sent."""
    names = [entry.api_key_env for entry in declaration.experiment.deployments.values() if entry.api_key_env]
    return {**dict.fromkeys(names, "not-set"), **environ}
