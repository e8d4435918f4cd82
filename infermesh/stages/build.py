"""Build the stages of a declaration, ordered so that each comes after those it reads."""

from __future__ import annotations

from dataclasses import replace

from infermesh.config.schema import EmbedStage, Experiment, GenerateStage, PythonStage, RowStageConfig, SqlStage
from infermesh.errors import ConfigError
from infermesh.inputs.paths import find, similar_file
from infermesh.inputs.row_files import RowFiles
from infermesh.stages.base import Stage, StageContext
from infermesh.stages.embed import Embed
from infermesh.stages.generate import Generate
from infermesh.stages.graph import Pipeline
from infermesh.stages.python import Python
from infermesh.stages.transcribe import Transcribe
from infermesh.store import QueryTable
from infermesh.store.reshape import stage_tables, tables_named


def build_stages(experiment: Experiment, context: StageContext) -> Pipeline:
    """Build every stage and the graph between them.

    Raises
    ------
    ConfigError
        A file, folder or schema that is named does not exist, a template does not parse, the stages form a cycle, or a
        stage reads stages over different rows. All stages' problems are reported at once, one per line.
    """
    problems: list[str] = []
    stages: dict[str, Stage] = {}
    queries: dict[str, QueryTable] = {}
    files = RowFiles(context.roots, experiment.source, experiment.allow_paths)
    context = replace(context, stages=tuple(experiment.stages), files=files)
    for name, config in experiment.stages.items():
        try:
            if isinstance(config, SqlStage):
                queries[name] = _query(name, config, context)
            else:
                stages[name] = _build(name, config, context)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return Pipeline(stages, queries)


def _build(name: str, config: RowStageConfig, context: StageContext) -> Stage:
    if isinstance(config, GenerateStage):
        return Generate(name, config, context)
    if isinstance(config, EmbedStage):
        return Embed(name, config, context)
    if isinstance(config, PythonStage):
        return Python(name, config, context)
    return Transcribe(name, config, context)


def _query(name: str, config: SqlStage, context: StageContext) -> QueryTable:
    path, text = f"stages.{name}.query", config.query
    if text.strip().endswith(".sql") and "\n" not in text.strip():
        file = find(text.strip(), context.roots)
        if file is None:
            raise ConfigError(f"{path}: no file '{text}'.{similar_file(text.strip(), context.roots)}")
        text = file.read_text(encoding="utf-8")
    text = text.strip().rstrip(";")
    return QueryTable(name, text, stage_tables(tables_named(text, path), context.stages))
