"""infermesh: large LLM jobs from a declaration, and the Python client that they run on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infermesh.api import Run, open_run, run
    from infermesh.client import LMClient
    from infermesh.errors import (
        APIConnectionError,
        AuthenticationError,
        BadRequestError,
        ConfigError,
        ContentFilterError,
        ContextLengthError,
        InfermeshError,
        InputError,
        MalformedResponseError,
        NoDeploymentError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RequestError,
        RequestTimeoutError,
        ServerError,
        StoreError,
    )
    from infermesh.images import image_block
    from infermesh.types import (
        Attempt,
        BatchResult,
        DeploymentConfig,
        EmbeddingResult,
        GenerationResult,
        RequestMetrics,
        StreamItem,
        TokenUsage,
        ToolCall,
        TranscriptionResult,
    )

__version__ = "0.1.0"

__all__ = [
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
    "__version__",
    "image_block",
    "open_run",
    "run",
]

# Where each public name lives; looked up on first use, so that ``import infermesh`` costs next to nothing.
_TYPES = (
    "Attempt",
    "BatchResult",
    "DeploymentConfig",
    "EmbeddingResult",
    "GenerationResult",
    "RequestMetrics",
    "StreamItem",
    "TokenUsage",
    "ToolCall",
    "TranscriptionResult",
)
_HOMES = {
    "LMClient": "infermesh.client",
    "Run": "infermesh.api",
    "open_run": "infermesh.api",
    "run": "infermesh.api",
    "image_block": "infermesh.images",
    **dict.fromkeys(_TYPES, "infermesh.types"),
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
