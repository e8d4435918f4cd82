"""Which batch API a deployment has."""

from __future__ import annotations

from infermesh.errors import ConfigError
from infermesh.transports.batches.anthropic import AnthropicBatches
from infermesh.transports.batches.gemini import GeminiBatches
from infermesh.transports.batches.openai import OpenAIBatches
from infermesh.transports.batches.wire import BatchWire
from infermesh.transports.litellm import LiteLLMTransport
from infermesh.transports.native import NativeTransport
from infermesh.transports.provider_table import split_model
from infermesh.types import Transport

__all__ = ["make_batch_wire"]

_OWN = frozenset(("hosted_vllm", "vllm", "sglang", "lm_studio", "llamacpp", "llamafile", "ollama", "ollama_chat"))
# Those with OpenAI's files and batches (https://console.groq.com/docs/batch); a server that is named without a known
# provider, or as a proxy, may have them. Others have another wire (Mistral, Together), or no batches.
_SAME_WIRE = frozenset(
    ("", "openai", "text-completion-openai", "groq", "litellm_proxy", "openai_like", "custom_openai")
)


def make_batch_wire(label: str, model: str, transport: Transport, *, simulated: bool = False) -> BatchWire:
    """Make what speaks a deployment's batch API.

    Parameters
    ----------
    simulated
        Whether the embedded simulator is asked, which has batches whatever the model's name says.

    Raises
    ------
    ConfigError
        It has none.
    """
    where = f"deployments.{label}.batch"
    prefix, _ = split_model(model)
    if prefix in _OWN and not simulated:
        raise ConfigError(
            f"{where}: {model} is a server of one's own, which has no batch API: live requests are its batch mode, at "
            "as many in flight as it takes. Set enabled to false"
        )
    if isinstance(transport, NativeTransport) and (simulated or prefix in _SAME_WIRE):
        return OpenAIBatches(transport.access())
    if isinstance(transport, LiteLLMTransport) and (prefix == "anthropic" or (not prefix and _is_claude(model))):
        return AnthropicBatches(transport)
    if isinstance(transport, LiteLLMTransport) and prefix == "gemini":
        return GeminiBatches(transport)
    raise ConfigError(
        f"{where}: the batch API of {prefix or 'this provider'} is not spoken here. OpenAI's is, and what has the "
        "same: groq/NAME, and as openai/NAME with its api_base Azure (https://RESOURCE.openai.azure.com/openai/v1) and "
        "LiteLLM's proxy. So are Anthropic's and Gemini's. Set enabled to false to send live"
    )


def _is_claude(name: str) -> bool:
    """Whether LiteLLM takes a name without a provider for one of Anthropic's."""
    return name.startswith("claude") and "/" not in name
