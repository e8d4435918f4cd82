"""The graph of stages: which reads which, and the waves in which they run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

from infermesh.config.file_names import TEMPLATE_SUFFIXES
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.inputs.templates import ROW, looks_like_file
from infermesh.stages.base import ModelStage, Stage, hashed
from infermesh.store import SOURCE, Column, QueryTable, StageTable
from infermesh.store.filter import RowFilter, column_references

# What f-strings and str.format write. Neither ``{{ x }}`` nor ``${x}``; JSON has quotes within its braces.
_SINGLE_BRACES = re.compile(r"(?<![{$\w])\{\s*([A-Za-z_]\w*)\s*\}(?!\})")
READABLE = ("status",)  # columns of every stage that templates and conditions may read besides its outputs


@dataclass(frozen=True, slots=True)
class Wave:
    """The stages over one origin: the source (``query`` is ``None``), or the rows that a sql stage's query makes."""

    origin: str
    query: QueryTable | None
    graph: StageGraph


class Pipeline:
    """All stages of a run, grouped into waves.

    Within a wave rows stream from stage to stage. A wave over a sql stage starts when the waves that its query reads
    are complete, because a query may combine any of their rows.

    Attributes
    ----------
    waves
        Each after those that its query reads; the source's is first, even if no stage takes its rows.
    stages
        Name → stage that takes rows, in the order of the waves.
    queries
        Name → sql stage, in the order of the waves.

    Raises
    ------
    ConfigError
        The stages form a cycle, or a stage reads stages over different rows or ones that do not exist.
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
        """Name → signature with upstream, as in :attr:`StageGraph.signatures`.

        A sql stage has none: a changed query shows in the rows it makes, and each row's ``row_key`` is compared.
        """
        return {name: signature for wave in self.waves for name, signature in wave.graph.signatures.items()}

    def readers(self, stage: str) -> set[str]:
        """The stages of the same wave that read a stage, directly or through others.

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
        """Compile each stage's ``where``: name → filter, for the stages that have one.

        Parameters
        ----------
        origins
            ``source`` and the sql stages, each with its columns. A condition may name these, and upstream stages'.

        Raises
        ------
        ConfigError
            A condition does not parse, or names a column that does not exist.
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

    def remarks(self, origins: Mapping[str, Sequence[Column]]) -> list[str]:
        """What is allowed in the stages' templates, and is probably a slip: a line each.

        Parameters
        ----------
        origins
            ``source`` and the sql stages, each with its columns.
        """
        return [line for wave in self.waves if (rows := origins.get(wave.origin)) for line in wave.graph.remarks(rows)]

    def check_columns(self, origins: Mapping[str, Sequence[Column]]) -> None:
        """Check that every name in templates and conditions is a column of the stage's rows, or a stage, or its column.

        Raises
        ------
        ConfigError
            One line per missing name, with the nearest existing one.
        """
        problems = [
            problem
            for wave in self.waves
            if origins.get(wave.origin)  # an empty file has no columns to check against, and no rows that need them
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
    """Name → origin. A stage takes the rows that the declaration names, else those of the stages that it reads.

    A stage that reads none takes the source's rows. A sql stage is its own origin.
    """
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
    """The stages over one origin and their dependencies, derived from what templates and conditions name.

    Attributes
    ----------
    stages
        Name → stage, each after those it requires.
    requires, feeds
        Name → the stages it reads; name → the stages that read it.
    needed
        Name → its output columns that other stages read; only these are loaded into memory on a resumed run.
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
        """Name → hash of the stage's own signature and of those of all stages it reads.

        So an edited stage makes all its readers stale too: whether their requests change depends on the new answers.
        A stale stage is not sent as a whole: its rows are rendered again and compared by ``request_key``.
        """
        found: dict[str, str] = {}
        for name, stage in self.stages.items():
            upstream = [found[other] for other in sorted(self.requires[name])]
            found[name] = hashed([stage.signature, *upstream])
        return found

    def remarks(self, rows: Sequence[Column]) -> Iterator[str]:
        """A line for each stage whose requests are the same for all rows, and for each column in the wrong braces."""
        columns = {column.name for column in rows}
        own = columns | self.stages.keys() | {self._origin, ROW}
        for stage in self.stages.values():
            if not stage.templates or stage.mapper is not None:
                continue
            meant = [
                (template.path, f"{{{name}}}", name)
                for template in stage.templates
                for name in dict.fromkeys(_SINGLE_BRACES.findall(template.source))
                if name in columns
            ]
            reads = any((template.names | template.functions) & own for template in stage.templates)
            for path, written, name in meant:
                same = "" if reads else ", and all rows get the same request"
                yield f"{path}: {written} is sent as it stands{same}. The column is written {{{{ {name} }}}}"
            if not reads and not meant:
                first = stage.templates[0]
                as_text = looks_like_file(first.source) and stage.facts.get("kind") != "transcribe"
                texts = " ".join(template.source for template in stage.templates)
                words = _NO_FILE.format(first.source.strip()) if as_text else _same_for_all(texts, columns)
                # A conversation has a template for each of its texts.
                yield f"{first.path.partition('[')[0]}: {words}"

    def missing_columns(self, rows: Sequence[Column]) -> list[str]:
        """A line for each name in templates and conditions that is neither a column of the rows nor of a stage."""
        problems = []
        columns = {column.name for column in rows}
        outputs = {
            name: [*(column.name for column in stage.table.outputs), *READABLE] for name, stage in self.stages.items()
        }
        whose = "the source"
        if self._origin != SOURCE:
            outputs[self._origin], whose = [*columns, *READABLE], f"stage '{self._origin}'"
        for name, stage in self.stages.items():
            if isinstance(stage, ModelStage) and (problem := stage.missing_input(rows, whose)):
                problems.append(problem)
            for template in stage.templates:
                for used in sorted(template.names - columns - outputs.keys() - {ROW}):
                    hint = _as_item(nearest(used, columns | outputs.keys()))
                    odd = next((name for name in columns if used != name and used in re.split(r"\W+", name)), None)
                    if odd is not None:
                        hint = f" A column whose name is no identifier is written {{{{ row[{odd!r}] }}}}."
                    problems.append(f"{template.path}: '{used}' is neither a column of {whose} nor a stage.{hint}")
                if ROW not in columns | outputs.keys():
                    for _, column in sorted(each for each in template.columns if each[0] == ROW):
                        if column not in columns and not hasattr(dict, column):  # row.get("x") is a call
                            problems.append(
                                f"{template.path}: '{column}' is no column of {whose}.{nearest(column, columns)}"
                            )
            for reference in sorted(self._references[name]):
                if reference[0] in outputs and len(reference) > 1 and reference[1] not in outputs[reference[0]]:
                    upstream, column = reference[:2]
                    hint = nearest(column, outputs[upstream])
                    problems.append(f"stages.{name}: '{upstream}.{column}' is no column of stage '{upstream}'.{hint}")
        return problems


def _as_item(hint: str) -> str:
    """A hint at a column's name as a template writes it: ``my text`` is no identifier."""
    found = re.fullmatch(r" Did you mean '(.*)'\?", hint)
    return f" Did you mean {{{{ row[{found[1]!r}] }}}}?" if found and not found[1].isidentifier() else hint


def references(stage: Stage) -> set[tuple[str, ...]]:
    """``(name,)`` and ``(name, column)`` for everything that the stage's templates, ``where`` and ``reads`` mention."""
    found: set[tuple[str, ...]] = {(name,) for name in stage.reads}
    for template in stage.templates:
        found |= {(name,) for name in template.names | template.functions}
        found |= template.columns
    if stage.where is not None:
        found |= column_references(stage.where, f"stages.{stage.name}.where")
    return found


_NO_FILE = (
    "{} is sent for every row as it stands, as a text. If it is to be a file: there is none of that name, and its name "
    f"has to end in one of {', '.join(TEMPLATE_SUFFIXES)}"
)


def _same_for_all(text: str, columns: Collection[str]) -> str:
    """The words for a template that names no column. The example is one whose name stands in it, as in ``$review``."""
    named = [name for name in sorted(columns) if name.isidentifier()]
    words = set(re.findall(r"\w+", text))
    example = next((name for name in named if name in words), named[0] if named else "column")
    return f"names no column, so all rows get the same request. A column is written {{{{ {example} }}}}"
