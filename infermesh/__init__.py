"""infermesh: a declarative runner for large LLM jobs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infermesh.types import (
        BatchResult,
        DeploymentConfig,
        EmbeddingResult,
        GenerationResult,
        RequestMetrics,
        TokenUsage,
        TranscriptionResult,
    )

__version__ = "0.1.0"

# Where each public name lives; looked up on first use, so that ``import infermesh`` costs next to nothing.
_HOMES = {
    "BatchResult": "infermesh.types",
    "DeploymentConfig": "infermesh.types",
    "EmbeddingResult": "infermesh.types",
    "GenerationResult": "infermesh.types",
    "RequestMetrics": "infermesh.types",
    "TokenUsage": "infermesh.types",
    "TranscriptionResult": "infermesh.types",
}

__all__ = [
    "BatchResult",
    "DeploymentConfig",
    "EmbeddingResult",
    "GenerationResult",
    "RequestMetrics",
    "TokenUsage",
    "TranscriptionResult",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'infermesh' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)
