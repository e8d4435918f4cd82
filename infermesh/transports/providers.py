"""Which transport serves a deployment, under which name, URL and key: one table and one pure function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import ConfigError
from infermesh.redaction import names_secret, secret_parts

__all__ = ["Resolved", "resolve"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What :func:`resolve` found.

    ``missing_key`` names the environment variable to set where the endpoint needs a key and there is none. ``secrets``
    are the values of ``headers`` that came from variables.
    """

    kind: Literal["native", "litellm"]
    wire_model: str
    api_base: str | None
    api_key: str | None = field(default=None, repr=False)
    missing_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class _Provider:
    """A provider that speaks the OpenAI wire format.

    ``base`` is its public URL (``None``: one's own server), ``keys`` and ``bases`` its usual environment variables.
    """

    base: str | None = None
    keys: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()


_OPENAI = _Provider("https://api.openai.com/v1", ("OPENAI_API_KEY",), ("OPENAI_BASE_URL", "OPENAI_API_BASE"))
_VLLM = _Provider(None, ("HOSTED_VLLM_API_KEY",), ("HOSTED_VLLM_API_BASE",))

_NATIVE: dict[str, _Provider] = {
    "openai": _OPENAI,
    "text-completion-openai": _OPENAI,
    "hosted_vllm": _VLLM,
    "vllm": _VLLM,
    "sglang": _Provider(None, ("SGLANG_API_KEY",), ("SGLANG_API_BASE",)),
    "lm_studio": _Provider("http://localhost:1234/v1", ("LM_STUDIO_API_KEY",), ("LM_STUDIO_API_BASE",)),
    "llamacpp": _Provider("http://localhost:8080/v1", ("LLAMACPP_API_KEY",), ("LLAMACPP_API_BASE",)),
    "llamafile": _Provider("http://localhost:8080/v1", ("LLAMAFILE_API_KEY",), ("LLAMAFILE_API_BASE",)),
    "openai_like": _Provider(None, ("OPENAI_LIKE_API_KEY",), ("OPENAI_LIKE_API_BASE",)),
    "custom_openai": _Provider(None),
    "deepseek": _Provider("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",), ("DEEPSEEK_API_BASE",)),
    "groq": _Provider("https://api.groq.com/openai/v1", ("GROQ_API_KEY",), ("GROQ_API_BASE",)),
    "mistral": _Provider("https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), ("MISTRAL_API_BASE",)),
    "openrouter": _Provider("https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",), ("OPENROUTER_API_BASE",)),
    "together_ai": _Provider(
        "https://api.together.xyz/v1", ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY")
    ),
}
# Native only at their OpenAI-compatible path.
_OLLAMA = frozenset(("ollama", "ollama_chat"))
# Of these LiteLLM knows nothing: forced onto it, they go as any OpenAI-compatible server.
_NOT_LITELLMS = frozenset(("vllm", "sglang", "llamacpp"))
# On their own servers the key is optional.
_LOCAL = frozenset(("lm_studio", "llamacpp", "llamafile"))

_OPENAI_NAMES = ("gpt-", "chatgpt-", "o1", "o3", "o4", "text-embedding-", "whisper-", "tts-")

# The providers that LiteLLM alone can serve. A first segment that is neither here nor above, as in `meta-llama/X`, is
# part of the model's name.
_LITELLM_NAMES = """
a2a_agent ai21 ai21_chat aiml aiohttp_openai amazon_nova anthropic anthropic_text assemblyai azure azure_ai azure_speech
azure_text baseten bedrock bedrock_converse bedrock_mantle bytez cerebras chatgpt chutes clarifai cloudflare codestral
cohere cohere_chat cometapi compactifai dashscope databricks datarobot deepgram deepinfra docker_model_runner elevenlabs
fal_ai featherless_ai fireworks_ai friendliai galadriel gemini gigachat github github_copilot gradient_ai heroku
huggingface hyperbolic infinity jina_ai lambda_ai langgraph lemonade litellm_proxy manus maritalk meta_llama minimax
moonshot morph nano-gpt nebius nlp_cloud novita nscale nvidia_nim oci ollama ollama_chat oobabooga ovhcloud perplexity
petals poe predibase publicai ragflow recraft replicate sagemaker sagemaker_chat sambanova sap scaleway snowflake
stability synthetic text-completion-codestral topaz triton v0 vercel_ai_gateway vertex_ai vertex_ai_beta volcengine
voyage wandb watsonx watsonx_text xai xinference zai
"""
_LITELLM = frozenset(_LITELLM_NAMES.split())


def resolve(config: DeploymentConfig, environ: Mapping[str, str], *, label: str = "deployment") -> Resolved:
    """Decide how a deployment is reached.

    Natively go: the prefixes of OpenAI-compatible providers (``openai/``, ``hosted_vllm/`` …), ``ollama/`` at a base
    URL that ends in ``/v1``, OpenAI's own model names without a prefix, and any other name that comes with an
    ``api_base``. Everything else goes through LiteLLM. On the native wire a known prefix is taken off; an unknown first
    segment (``meta-llama/X``) belongs to the name.

    The key is ``api_key``; else the variable that ``api_key_env`` names; else the provider's usual variable.
    ``OPENAI_API_KEY`` goes to a host other than OpenAI's only where the model has the explicit prefix ``openai/``, or
    ``OPENAI_BASE_URL`` (``OPENAI_API_BASE``) names that very base.

    Parameters
    ----------
    config
        The deployment.
    environ
        The environment variables.
    label
        Its label, for messages.

    Raises
    ------
    ConfigError
        A variable that ``api_key_env`` or a header names is not set, or a native deployment has no base URL.
    """
    prefix, slash, rest = config.model.partition("/")
    known = bool(slash) and (prefix in _NATIVE or prefix in _LITELLM)
    prefix = prefix if known else ""
    name = rest if known else config.model
    if not name:
        raise ConfigError(f"deployment {label!r}: model {config.model!r} has no name behind its provider")
    kind = config.transport if config.transport != "auto" else _kind(prefix, name, config.api_base)
    provider = _NATIVE.get(prefix) or _Provider()
    if not prefix and (name.startswith(_OPENAI_NAMES) or _host(config.api_base or "") == "api.openai.com"):
        provider = _OPENAI
    # LiteLLM finds the other providers' URLs itself.
    from_environ = provider.bases if kind == "native" or prefix in _NATIVE else ()
    api_base = config.api_base or next((environ[n] for n in from_environ if environ.get(n)), None)
    api_key = _explicit_key(config, environ, label)
    headers, secrets = _headers(config, environ, label)
    if kind == "litellm":
        if api_key is None and api_base is not None:
            api_key = _usual_key(prefix, provider, api_base, environ)
        wire_model = _litellm_name(config.model, prefix, name, api_base)
        return Resolved("litellm", wire_model, api_base, api_key, headers=headers, secrets=secrets)
    api_base = api_base or provider.base
    if api_base is None:
        raise ConfigError(
            f"deployment {label!r}: {config.model!r} needs api_base, the URL of its server, such as http://host:8000/v1"
        )
    if api_key is None:
        api_key = _usual_key(prefix, provider, api_base, environ)
    missing = None
    if (
        api_key is None
        and provider.base
        and prefix not in _LOCAL
        and _host(api_base) == _host(provider.base)
        and not any(names_secret(name) for name in headers)
    ):
        missing = provider.keys[0]
    return Resolved("native", name, api_base, api_key, missing, headers, secrets)


def _kind(prefix: str, name: str, api_base: str | None) -> Literal["native", "litellm"]:
    if prefix in _NATIVE:
        return "native"
    if prefix in _OLLAMA and api_base is not None and api_base.rstrip("/").endswith("/v1"):
        return "native"
    if not prefix and (api_base is not None or name.startswith(_OPENAI_NAMES)):
        return "native"
    return "litellm"


def _litellm_name(model: str, prefix: str, name: str, api_base: str | None) -> str:
    """The name for LiteLLM, which needs a provider before any server of one's own."""
    if prefix in _NOT_LITELLMS or (not prefix and api_base is not None):
        return f"hosted_vllm/{name}"
    return model


def _explicit_key(config: DeploymentConfig, environ: Mapping[str, str], label: str) -> str | None:
    if config.api_key:
        return config.api_key
    return _variable(config.api_key_env, "api_key_env", environ, label) if config.api_key_env else None


def _headers(
    config: DeploymentConfig, environ: Mapping[str, str], label: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The headers with their values, and which of those came from variables, for messages to be cleaned of."""
    headers: dict[str, str] = {}
    secrets: list[str] = []
    for name, given in (config.headers or {}).items():
        if isinstance(given, str):
            headers[name] = given
        elif isinstance(given, Mapping) and list(given) == ["env"]:
            headers[name] = value = _variable(str(given["env"]), f"headers.{name}", environ, label)
            secrets += secret_parts(value)
        else:
            raise ConfigError(f"deployment {label!r}: headers.{name}: expected text, or {{env: NAME}}")
    return headers, tuple(secrets)


_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*|[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]*)+")


def _variable(name: str, named_by: str, environ: Mapping[str, str], label: str) -> str:
    value = environ.get(name)
    if value:
        return value
    if not _VARIABLE_NAME.fullmatch(name):  # a key, perhaps, that was put in the name's place
        raise ConfigError(
            f"deployment {label!r}: {named_by}: expected the name of an environment variable, such as OPENAI_API_KEY; "
            "what stands there is not shown, in case it is a key"
        )
    raise ConfigError(
        f"deployment {label!r}: the environment variable {name} that {named_by} names is not set: export it, or put "
        "it into the --env-file"
    )


def _usual_key(prefix: str, provider: _Provider, api_base: str, environ: Mapping[str, str]) -> str | None:
    if not prefix and not _is_openais(api_base, environ):
        return None
    keys = provider.keys or (_OPENAI.keys if not prefix else ())
    return next((environ[name] for name in keys if environ.get(name)), None)


def _is_openais(api_base: str, environ: Mapping[str, str]) -> bool:
    """Whether the user has said that OpenAI's key is meant for this base."""
    host = _host(api_base)
    if host == "api.openai.com" or host.endswith(".api.openai.com"):
        return True
    return any(environ.get(name, "").rstrip("/") == api_base.rstrip("/") for name in _OPENAI.bases)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
