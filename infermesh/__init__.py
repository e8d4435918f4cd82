"""infermesh: large LLM jobs from a declaration, and the Python client that they run on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infermesh.client.client import LMClient
    from infermesh.config.deployment import DeploymentConfig
    from infermesh.errors import (
        APIConnectionError,
        AuthenticationError,
        BadRequestError,
        ConfigError,
        ContentFilterError,
        ContextLengthError,
        InfermeshError,
        InputError,
        InvalidAnswerError,
        MalformedResponseError,
        NoDeploymentError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RequestError,
        RequestTimeoutError,
        ServerError,
        StoreError,
        UnfinishedError,
    )
    from infermesh.inputs.images import image_block
    from infermesh.results import (
        Attempt,
        BatchResult,
        EmbeddingResult,
        GenerationResult,
        RequestMetrics,
        StreamItem,
        TokenUsage,
        ToolCall,
        TranscriptionResult,
    )
    from infermesh.runs.api import Run, open_run, run
    from infermesh.types import USE_CLIENT_DEFAULT

__version__ = "0.1.0"

__all__ = [
    "USE_CLIENT_DEFAULT",
    "APIConnectionError",
    "Attempt",
    "AuthenticationError",
    "BadRequestError",
    "BatchResult",
    "ConfigError",
    "ContentFilterError",
    "ContextLengthError",
    "DeploymentConfig",
    "EmbeddingResult",
    "GenerationResult",
    "InfermeshError",
    "InputError",
    "InvalidAnswerError",
    "LMClient",
    "MalformedResponseError",
    "NoDeploymentError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestError",
    "RequestMetrics",
    "RequestTimeoutError",
    "Run",
    "ServerError",
    "StoreError",
    "StreamItem",
    "TokenUsage",
    "ToolCall",
    "TranscriptionResult",
    "UnfinishedError",
    "__version__",
    "image_block",
    "open_run",
    "run",
]

# Where each public name lives; looked up on first use, so that ``import infermesh`` costs next to nothing.
_RESULTS = (
    "Attempt",
    "BatchResult",
    "EmbeddingResult",
    "GenerationResult",
    "RequestMetrics",
    "StreamItem",
    "TokenUsage",
    "ToolCall",
    "TranscriptionResult",
)
_HOMES = {
    "LMClient": "infermesh.client.client",
    "USE_CLIENT_DEFAULT": "infermesh.types",
    "Run": "infermesh.runs.api",
    "open_run": "infermesh.runs.api",
    "run": "infermesh.runs.api",
    "image_block": "infermesh.inputs.images",
    "DeploymentConfig": "infermesh.config.deployment",
    **dict.fromkeys(_RESULTS, "infermesh.results"),
    **{name: "infermesh.errors" for name in __all__ if name.endswith("Error")},
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'infermesh' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
