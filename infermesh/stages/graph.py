"""Which stage reads which, and the waves in which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.stages.base import Stage, hashed
from infermesh.store import SOURCE, Column, QueryTable, StageTable
from infermesh.store.filter import RowFilter, column_references

READABLE = ("status",)


@dataclass(frozen=True, slots=True)
class Wave:
    """The stages over one origin's rows: the source's, or those that a sql stage's query makes."""

    origin: str
    query: QueryTable | None
    graph: StageGraph


class Pipeline:
    """All stages of a run, in waves: stages over the same rows stream; a sql stage's query waits for what it reads.

    Attributes
    ----------
    waves
        In an order in which each comes after those that its query reads.
    stages
        Name → stage over rows, in that order.
    queries
        Name → sql stage, in that order.
    """

    def __init__(self, stages: Mapping[str, Stage], queries: Mapping[str, QueryTable]) -> None:
        names = {*stages, *queries}
        requires: dict[str, set[str]] = {name: set(query.reads) - {SOURCE} for name, query in queries.items()}
        for name, stage in stages.items():
            requires[name] = {reference[0] for reference in references(stage)} & names
            requires[name] |= {stage.rows} & queries.keys() if stage.rows else set()
        try:
            order = list(TopologicalSorter(requires).static_order())
        except CycleError as error:
            path = " → ".join(reversed(error.args[1]))
            raise ConfigError(f"stages: {path} is a cycle: each waits for the next one's columns.") from None
        origins = _origins(order, stages, queries, requires)
        for name, stage in stages.items():
            stage.table = replace(stage.table, origin=origins[name])
        self.queries = {name: queries[name] for name in order if name in queries}
        self.waves = [
            Wave(
                origin,
                self.queries.get(origin),
                StageGraph({name: stage for name, stage in stages.items() if origins[name] == origin}, origin),
            )
            for origin in (SOURCE, *self.queries)
        ]
        self.stages: dict[str, Stage] = {
            name: stage for wave in self.waves for name, stage in wave.graph.stages.items()
        }

    @property
    def signatures(self) -> dict[str, str]:
        """Name → hash of the stage's declaration and of those of all the stages over the same rows it builds on."""
        return {name: signature for wave in self.waves for name, signature in wave.graph.signatures.items()}

    def readers(self, stage: str) -> set[str]:
        """The stages over the same rows that read a stage, or read one that does.

        Raises
        ------
        ConfigError
            There is no such stage, or it is a sql stage.
        """
        for wave in self.waves:
            if stage in wave.graph.stages:
                found: set[str] = set()
                new = {stage}
                while new:
                    new = {reader for name in new for reader in wave.graph.feeds[name]} - found
                    found |= new
                return found
        raise ConfigError(f"stage '{stage}': there is no such stage over rows.{nearest(stage, self.stages)}")

    def filters(self, origins: Mapping[str, Sequence[Column]]) -> dict[str, RowFilter]:
        """Compile each stage's ``where`` against the columns that it may name: its rows' and its upstream stages'.

        Raises
        ------
        ConfigError
            A condition does not parse, or names what is not there.
        """
        found: dict[str, RowFilter] = {}
        for wave in self.waves:
            columns = origins.get(wave.origin)
            for name, stage in wave.graph.stages.items() if columns else ():
                if stage.where is not None:
                    upstream = {other: wave.graph.stages[other].table for other in wave.graph.requires[name]}
                    if wave.origin != SOURCE:
                        upstream[wave.origin] = StageTable(wave.origin, tuple(columns or ()))
                    found[name] = RowFilter(stage.where, f"stages.{name}.where", columns or (), upstream)
        return found

    def check_columns(self, origins: Mapping[str, Sequence[Column]]) -> None:
        """Every name that a template or condition uses must be a column of its rows or of a stage.

        Raises
        ------
        ConfigError
            One line per missing column, with the nearest one.
        """
        problems = [
            problem
            for wave in self.waves
            if origins.get(wave.origin)  # an empty file tells of no columns, and no row will ask for them
            for problem in wave.graph.missing_columns(origins[wave.origin])
        ]
        if problems:
            raise ConfigError("\n".join(problems))


def _origins(
    order: Sequence[str],
    stages: Mapping[str, Stage],
    queries: Mapping[str, QueryTable],
    requires: Mapping[str, set[str]],
) -> dict[str, str]:
    """Whose rows each stage takes: those of the sql stage that it reads, or of the stages that it reads."""
    found = {name: name for name in queries}
    for name in order:
        if name in queries:
            continue
        stage = stages[name]
        if stage.rows not in (None, SOURCE, *queries):
            hint = nearest(str(stage.rows), [SOURCE, *queries])
            raise ConfigError(f"stages.{name}.rows: expected 'source' or a sql stage, got '{stage.rows}'.{hint}")
        for other in stage.reads:
            if other not in stages and other not in queries:
                raise ConfigError(f"stages.{name}.reads: no stage '{other}'.{nearest(other, [*stages, *queries])}")
        read = {found[other]: other for other in sorted(requires[name])}
        if stage.rows is not None:
            read.setdefault(stage.rows, stage.rows)
        if len(read) > 1:
            each = ", ".join(f"{other} (rows of {origin})" for origin, other in read.items())
            raise ConfigError(
                f"stages.{name}: it reads stages over different rows: {each}. A stage of kind sql can join them."
            )
        found[name] = next(iter(read), SOURCE)
    return found


class StageGraph:
    """The stages over one origin's rows and who reads whom, found from what templates and conditions name.

    Attributes
    ----------
    stages
        Name → stage, in an order in which each comes after those it requires.
    requires, feeds
        Name → the stages it reads, and those that read it.
    needed
        Name → its output columns that other stages read.
    """

    def __init__(self, stages: Mapping[str, Stage], origin: str = SOURCE) -> None:
        self._origin = origin
        self._references = {name: references(stage) for name, stage in stages.items()}
        for name, stage in stages.items():
            for other in stage.reads:
                outputs = stages[other].table.outputs if other in stages else ()
                self._references[name] |= {(other,), *((other, column.name) for column in outputs)}
        self.requires = {
            name: {reference[0] for reference in references if reference[0] in stages}
            for name, references in self._references.items()
        }
        order = list(TopologicalSorter(self.requires).static_order())
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
            found[name] = hashed([stage.signature, *upstream])
        return found

    def missing_columns(self, rows: Sequence[Column]) -> list[str]:
        """A line for each name that a template uses and that is neither a column of the rows nor of a stage."""
        problems = []
        columns = {column.name for column in rows}
        outputs = {
            name: [*(column.name for column in stage.table.outputs), *READABLE] for name, stage in self.stages.items()
        }
        whose = "the source"
        if self._origin != SOURCE:
            outputs[self._origin], whose = [*columns, *READABLE], f"stage '{self._origin}'"
        for name, stage in self.stages.items():
            for template in stage.templates:
                for used in sorted(template.names - columns - outputs.keys()):
                    hint = nearest(used, columns | outputs.keys())
                    problems.append(f"{template.path}: '{used}' is neither a column of {whose} nor a stage.{hint}")
            for reference in sorted(self._references[name]):
                if reference[0] in outputs and len(reference) > 1 and reference[1] not in outputs[reference[0]]:
                    upstream, column = reference[:2]
                    hint = nearest(column, outputs[upstream])
                    problems.append(f"stages.{name}: '{upstream}.{column}' is no column of stage '{upstream}'.{hint}")
        return problems


def references(stage: Stage) -> set[tuple[str, ...]]:
    """``(name,)`` and ``(name, column)`` of everything that the stage's templates and condition mention."""
    found: set[tuple[str, ...]] = {(name,) for name in stage.reads}
    for template in stage.templates:
        found |= {(name,) for name in template.names}
        found |= template.columns
    if stage.where is not None:
        found |= column_references(stage.where, f"stages.{stage.name}.where")
    return found
