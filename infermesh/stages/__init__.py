"""Stages, one file per kind: each turns a row into a request, and the answer into columns."""

from infermesh.stages.base import BatchStage, Prepared, Stage, StageContext, answers, prepare, prepare_each
from infermesh.stages.build import build_stages

__all__ = ["BatchStage", "Prepared", "Stage", "StageContext", "answers", "build_stages", "prepare", "prepare_each"]
