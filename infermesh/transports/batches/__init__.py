"""Batch APIs: a file or a body of many requests, which a provider answers within a day at a lower price.

A :class:`~infermesh.transports.batches.wire.BatchWire` speaks one provider's dialect. It sends each call once, and
keeps no state: what is to be remembered, and sent again, is another layer's.
"""

from infermesh.transports.batches.anthropic import AnthropicBatches
from infermesh.transports.batches.gemini import GeminiBatches
from infermesh.transports.batches.make import make_batch_wire
from infermesh.transports.batches.openai import OpenAIBatches
from infermesh.transports.batches.wire import BatchLimits, BatchStatus, BatchWire, LineProblem, LineResult

__all__ = [
    "AnthropicBatches",
    "BatchLimits",
    "BatchStatus",
    "BatchWire",
    "GeminiBatches",
    "LineProblem",
    "LineResult",
    "OpenAIBatches",
    "make_batch_wire",
]
