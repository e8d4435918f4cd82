"""The providers, as data: what is written before the slash of a model, and what that says.

To add one, add a line to ``_TABLE`` with the page that says so. Names and variables are LiteLLM's
(https://docs.litellm.ai/docs/providers), so that a model is written the same here and there; ``prices`` is a provider's
id in the list of genai-prices. Tests hold both to the installed libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["KNOWN_TO_LITELLM", "OPENAI", "PROVIDERS", "Provider", "named_bare", "split_model"]


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider.

    Attributes
    ----------
    names
        What may stand before the slash of a model.
    wire
        ``openai``: it speaks OpenAI's format. ``litellm``: LiteLLM has to translate. ``either``: OpenAI's at a base URL
        that ends in ``/v1``.
    base_url
        Its public URL, or where its server listens by default; ``None``: one's own server, wherever it is.
    key_vars, base_vars
        The environment variables that usually hold its key and its base URL; the first one that is set counts.
    key_optional
        Whether it answers at ``base_url`` without a key.
    prices
        Its id in the price list. ``None``: no price, as the tokens are those of the user's own hardware, or the list
        does not know the provider.
    lists_models
        Whether the price list has nearly all of its models, so that a name it lacks may be misspelt.
    needs
        The environment variables of which LiteLLM needs one where the deployment names neither key nor URL, the usual
        one first. Empty where there are other ways to log in, or it is not known.
    litellm_name
        What LiteLLM calls it, where it does not know the name.
    bare_names
        What its models' names begin with that may be written without a provider.
    """

    names: tuple[str, ...]
    wire: Literal["openai", "litellm", "either"] = "openai"
    base_url: str | None = None
    key_vars: tuple[str, ...] = ()
    base_vars: tuple[str, ...] = ()
    key_optional: bool = False
    prices: str | None = None
    lists_models: bool = False
    needs: tuple[str, ...] = ()
    litellm_name: str | None = None
    bare_names: tuple[str, ...] = ()


# What LiteLLM alone knows: no URL, no variable and no price of ours.
_TRANSLATED = """
a2a_agent ai21 ai21_chat aiml aiohttp_openai amazon_nova anthropic_text assemblyai azure_speech azure_text baseten
bedrock_converse bedrock_mantle bytez chatgpt chutes clarifai cloudflare codestral cometapi compactifai dashscope
datarobot deepgram deepinfra docker_model_runner elevenlabs fal_ai featherless_ai friendliai galadriel gigachat github
github_copilot gradient_ai heroku huggingface hyperbolic infinity jina_ai lambda_ai langgraph lemonade
manus maritalk meta_llama minimax morph nano-gpt nebius nlp_cloud nscale nvidia_nim oci oobabooga ovhcloud petals poe
predibase publicai ragflow recraft replicate sagemaker sagemaker_chat sambanova sap scaleway snowflake stability
synthetic text-completion-codestral topaz triton v0 vercel_ai_gateway vertex_ai_beta volcengine wandb watsonx
watsonx_text xinference
"""

_TABLE = (
    # Servers of one's own. Their own documentation has the URL; the key is what the server was started with.
    Provider(  # https://docs.vllm.ai/en/stable/serving/openai_compatible_server
        ("hosted_vllm",),
        key_vars=("HOSTED_VLLM_API_KEY",),
        base_vars=("HOSTED_VLLM_API_BASE",),
    ),
    Provider(  # LiteLLM's "vllm" loads a model into the process; here it is the same server
        ("vllm",),
        key_vars=("HOSTED_VLLM_API_KEY",),
        base_vars=("HOSTED_VLLM_API_BASE",),
        litellm_name="hosted_vllm",
    ),
    Provider(  # https://docs.sglang.ai/basic_usage/openai_api.html; the variables are infermesh's own
        ("sglang",),
        key_vars=("SGLANG_API_KEY",),
        base_vars=("SGLANG_API_BASE",),
        litellm_name="hosted_vllm",
    ),
    Provider(  # https://lmstudio.ai/docs/developer/openai-compat
        ("lm_studio",),
        base_url="http://localhost:1234/v1",
        key_vars=("LM_STUDIO_API_KEY",),
        base_vars=("LM_STUDIO_API_BASE",),
        key_optional=True,
    ),
    Provider(  # https://github.com/ggml-org/llama.cpp/tree/master/tools/server; the variables are infermesh's own
        ("llamacpp",),
        base_url="http://localhost:8080/v1",
        key_vars=("LLAMACPP_API_KEY",),
        base_vars=("LLAMACPP_API_BASE",),
        key_optional=True,
        litellm_name="hosted_vllm",
    ),
    Provider(  # https://docs.litellm.ai/docs/providers/llamafile
        ("llamafile",),
        base_url="http://localhost:8080/v1",
        key_vars=("LLAMAFILE_API_KEY",),
        base_vars=("LLAMAFILE_API_BASE",),
        key_optional=True,
    ),
    Provider(  # https://docs.ollama.com/api/openai-compatibility: its own API is at the root
        ("ollama", "ollama_chat"),
        "either",
    ),
    Provider(  # https://docs.litellm.ai/docs/providers/litellm_proxy: somebody's proxy, which speaks OpenAI's format
        ("litellm_proxy",),
        key_vars=("LITELLM_PROXY_API_KEY",),
        base_vars=("LITELLM_PROXY_API_BASE",),
    ),
    # Any server of OpenAI's format.
    Provider(("openai_like",), key_vars=("OPENAI_LIKE_API_KEY",), base_vars=("OPENAI_LIKE_API_BASE",)),
    Provider(("custom_openai",)),
    # Services of OpenAI's format.
    Provider(  # https://platform.openai.com/docs/api-reference; the variables are those of its Python library
        ("openai", "text-completion-openai"),
        base_url="https://api.openai.com/v1",
        key_vars=("OPENAI_API_KEY",),
        base_vars=("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        prices="openai",
        lists_models=True,
        bare_names=("gpt-", "chatgpt-", "o1", "o3", "o4", "text-embedding-", "whisper-", "tts-"),
    ),
    Provider(  # https://api-docs.deepseek.com
        ("deepseek",),
        base_url="https://api.deepseek.com/v1",
        key_vars=("DEEPSEEK_API_KEY",),
        base_vars=("DEEPSEEK_API_BASE",),
        prices="deepseek",
        lists_models=True,
    ),
    Provider(  # https://console.groq.com/docs/openai
        ("groq",),
        base_url="https://api.groq.com/openai/v1",
        key_vars=("GROQ_API_KEY",),
        base_vars=("GROQ_API_BASE",),
        prices="groq",
    ),
    Provider(  # https://docs.mistral.ai/api
        ("mistral",),
        base_url="https://api.mistral.ai/v1",
        key_vars=("MISTRAL_API_KEY",),
        base_vars=("MISTRAL_API_BASE",),
        prices="mistral",
        lists_models=True,
    ),
    Provider(  # https://openrouter.ai/docs/api/reference/overview
        ("openrouter",),
        base_url="https://openrouter.ai/api/v1",
        key_vars=("OPENROUTER_API_KEY",),
        base_vars=("OPENROUTER_API_BASE",),
        prices="openrouter",
    ),
    Provider(  # https://docs.together.ai/docs/inference/openai-compatibility
        ("together_ai",),
        base_url="https://api.together.xyz/v1",
        key_vars=("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"),
        prices="together",
    ),
    # Services that LiteLLM translates for. It finds their URLs and keys; ``needs`` is what its sources look for.
    Provider(
        ("anthropic",),
        "litellm",
        prices="anthropic",
        lists_models=True,
        needs=(
            *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"),
            *("ANTHROPIC_IDENTITY_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_FILE", "ANTHROPIC_FEDERATION_RULE_ID"),
        ),
    ),
    Provider(("azure", "azure_ai"), "litellm", prices="azure"),
    Provider(("bedrock",), "litellm", prices="aws"),
    Provider(("cerebras",), "litellm", prices="cerebras", needs=("CEREBRAS_API_KEY", "CEREBRAS_API_BASE")),
    Provider(
        ("cohere", "cohere_chat"),
        "litellm",
        prices="cohere",
        lists_models=True,
        needs=("COHERE_API_KEY", "CO_API_KEY", "COHERE_API_BASE"),
    ),
    Provider(("databricks",), "litellm", prices="databricks"),
    Provider(("fireworks_ai",), "litellm", prices="fireworks"),
    Provider(
        ("gemini",),
        "litellm",
        prices="google",
        lists_models=True,
        needs=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_BASE"),
    ),
    Provider(("vertex_ai",), "litellm", prices="google"),
    Provider(("moonshot",), "litellm", prices="moonshotai"),
    Provider(("novita",), "litellm", prices="novita"),
    Provider(("perplexity",), "litellm", prices="perplexity"),
    Provider(("voyage",), "litellm", prices="voyageai"),
    Provider(
        ("xai",),
        "litellm",
        prices="x-ai",
        lists_models=True,
        needs=("XAI_API_KEY", "XAI_API_BASE", "XAI_OAUTH_AUTH_FILE"),
    ),
    Provider(("zai",), "litellm", prices="zai"),
    Provider(tuple(_TRANSLATED.split()), "litellm"),
)

PROVIDERS: dict[str, Provider] = {name: provider for provider in _TABLE for name in provider.names}
OPENAI = PROVIDERS["openai"]
# What the names begin with of which LiteLLM can tell the provider by itself: Anthropic's, Bedrock's, fine-tuned ones.
KNOWN_TO_LITELLM = (
    *("claude", "ft:", "arn:", "anthropic.", "amazon.", "meta.", "cohere.", "mistral.", "ai21.", "deepseek.", "qwen."),
    *("openai.", "us.", "eu.", "apac.", "jp.", "au.", "ca.", "sa.", "us-gov.", "global."),
)


def split_model(model: str) -> tuple[str, str]:
    """``provider/name`` → ``(provider, name)``; ``("", model)`` where no provider of that name is known.

    So the first part of ``meta-llama/X`` belongs to the model's name.
    """
    prefix, slash, name = model.partition("/")
    return (prefix, name) if slash and prefix in PROVIDERS else ("", model)


def named_bare(name: str) -> Provider | None:
    """The provider whose models are known without its name, as ``gpt-4.1-mini`` is; ``None`` for any other name."""
    return next((provider for provider in _TABLE if name.startswith(provider.bare_names)), None)
