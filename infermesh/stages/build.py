"""From the declaration to the stages, in an order in which each comes after the ones that it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from infermesh.config import EmbedStage, Experiment, GenerateStage, StageConfig, TranscribeStage, nearest
from infermesh.errors import ConfigError
from infermesh.stages.base import Stage, StageContext
from infermesh.stages.embed import Embed
from infermesh.stages.generate import Generate
from infermesh.stages.transcribe import Transcribe
from infermesh.store import Column
from infermesh.store.filter import column_references

READABLE = ("status",)


def build_stages(experiment: Experiment, context: StageContext) -> StageGraph:
    """Build every stage and the graph between them.

    Raises
    ------
    ConfigError
        A file or schema that a stage names is not there, a template does not parse, or the stages form a cycle.
    """
    problems: list[str] = []
    stages: dict[str, Stage] = {}
    context = replace(context, stages=tuple(experiment.stages))
    for name, config in experiment.stages.items():
        try:
            stages[name] = _build(name, config, context)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return StageGraph(stages)


def _build(name: str, config: StageConfig, context: StageContext) -> Stage:
    if isinstance(config, GenerateStage):
        return Generate(name, config, context)
    if isinstance(config, EmbedStage):
        return Embed(name, config, context)
    if isinstance(config, TranscribeStage):
        return Transcribe(name, config, context)
    raise ConfigError(f"stages.{name}.kind: {config.kind} is not built yet")


class StageGraph:
    """The stages of a run and who reads whom, found from what templates and conditions name.

    Attributes
    ----------
    stages
        Name → stage, in an order in which each comes after those it requires.
    requires, feeds
        Name → the stages it reads, and those that read it.
    needed
        Name → its output columns that other stages read.
    """

    def __init__(self, stages: dict[str, Stage]) -> None:
        self._references = {name: _references(stage) for name, stage in stages.items()}
        self.requires = {
            name: {reference[0] for reference in references if reference[0] in stages}
            for name, references in self._references.items()
        }
        try:
            order = list(TopologicalSorter(self.requires).static_order())
        except CycleError as error:
            path = " → ".join(reversed(error.args[1]))
            raise ConfigError(f"stages: {path} is a cycle: each waits for the next one's columns.") from None
        # Stages that do not depend on each other keep the order in which they were written.
        depth: dict[str, int] = {}
        for name in order:
            depth[name] = 1 + max((depth[other] for other in self.requires[name]), default=-1)
        self.stages = {name: stages[name] for name in sorted(stages, key=lambda name: depth[name])}
        self.feeds = {name: [other for other in self.stages if name in self.requires[other]] for name in self.stages}
        self.needed = {
            name: sorted(
                {
                    reference[1]
                    for references in self._references.values()
                    for reference in references
                    if reference[0] == name and len(reference) > 1 and reference[1] not in READABLE
                }
            )
            for name in self.stages
        }

    @property
    def signatures(self) -> dict[str, str]:
        """Name → hash of the stage's declaration and of those of all the stages it builds on."""
        found: dict[str, str] = {}
        for name, stage in self.stages.items():
            upstream = [found[other] for other in sorted(self.requires[name])]
            found[name] = hashlib.blake2b("|".join([stage.signature, *upstream]).encode(), digest_size=16).hexdigest()
        return found

    def check_columns(self, source: Sequence[Column]) -> None:
        """Every name that a template or condition uses must be a column of the source or of a stage.

        Raises
        ------
        ConfigError
            One line per missing column, with the nearest one.
        """
        columns = {column.name for column in source}
        problems = []
        for name, stage in self.stages.items():
            for template in stage.templates:
                for used in sorted(template.names - columns - set(self.stages)):
                    hint = nearest(used, columns | set(self.stages))
                    problems.append(f"{template.path}: '{used}' is neither a column of the source nor a stage.{hint}")
            for reference in sorted(self._references[name]):
                if reference[0] in self.stages and len(reference) > 1:
                    outputs = [column.name for column in self.stages[reference[0]].table.outputs] + list(READABLE)
                    upstream, column = reference[:2]
                    if column not in outputs:
                        hint = nearest(column, outputs)
                        problems.append(
                            f"stages.{name}: '{upstream}.{column}' is no column of stage '{upstream}'.{hint}"
                        )
        if problems:
            raise ConfigError("\n".join(problems))


def _references(stage: Stage) -> set[tuple[str, ...]]:
    """``(name,)`` and ``(name, column)`` of everything that the stage's templates and condition mention."""
    found: set[tuple[str, ...]] = set()
    for template in stage.templates:
        found |= {(name,) for name in template.names}
        found |= template.columns
    if stage.where is not None:
        found |= column_references(stage.where, f"stages.{stage.name}.where")
    return found
