"""Stages: a file per kind. Each turns a row into a request and an answer into columns."""

from infermesh.stages.base import Prepared, Stage, StageContext
from infermesh.stages.build import build_stages

__all__ = ["Prepared", "Stage", "StageContext", "build_stages"]
