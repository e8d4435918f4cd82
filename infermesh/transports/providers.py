"""Which transport serves a deployment, and under which name, URL, key and headers. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from infermesh.config.deployment import DeploymentConfig
from infermesh.config.references import FromEnvironment
from infermesh.errors import ConfigError
from infermesh.redaction import names_secret, origin, secret_parts, shown_url, url_secrets
from infermesh.transports.provider_table import KNOWN_TO_LITELLM, OPENAI, PROVIDERS, Provider, named_bare, split_model

__all__ = ["Resolved", "resolve_deployment"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """How a deployment is reached.

    Attributes
    ----------
    kind
        The transport.
    wire_model
        The model's name in a request.
    api_base, api_key
        ``None``: none is known. LiteLLM then looks itself.
    missing_key
        The environment variable to set, if the endpoint needs a key and there is none.
    headers
        Further headers, with their values.
    secrets
        The values to be kept out of messages: those that came from variables, and what the URL holds of keys.
    """

    kind: Literal["native", "litellm"]
    wire_model: str
    api_base: str | None = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    missing_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


_UNKNOWN = Provider(())  # for a model without a known provider


def resolve_deployment(config: DeploymentConfig, environ: Mapping[str, str], *, label: str = "deployment") -> Resolved:
    """Decide how a deployment is reached.

    The native transport serves: providers of OpenAI's format (``openai/``, ``hosted_vllm/`` …), ``ollama/`` at a base
    URL that ends in ``/v1``, OpenAI's own models without a prefix, and any other name that comes with an ``api_base``.
    LiteLLM serves everything else. On the native wire a known prefix is removed; an unknown one (``meta-llama/X``) is
    part of the model's name.

    The key is ``api_key``, else the value of the variable that ``api_key_env`` names, else that of the provider's usual
    variable. ``OPENAI_API_KEY`` goes to another host than OpenAI's only if the model is written ``openai/…``, or if
    ``OPENAI_BASE_URL`` (``OPENAI_API_BASE``) is that very URL: it must not leak to a server that merely serves a model
    of the same name.

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
        A variable that ``api_key_env`` or a header names is not set, a native deployment has no base URL or that of one
        endpoint, or nobody can tell whose model it is.
    """
    from_variables = _variables_of(config, environ)
    config = _with_values(config, environ)
    prefix, name = split_model(config.model)
    if not name:
        raise ConfigError(f"deployment {label!r}: model {config.model!r} has no name behind its provider")
    provider = PROVIDERS.get(prefix) or named_bare(name) or _UNKNOWN
    if not prefix and _host(config.api_base or "") == "api.openai.com":
        provider = OPENAI
    kind = config.transport if config.transport != "auto" else _kind(provider, config.api_base)
    # LiteLLM finds the URLs of what it alone knows.
    from_environ = provider.base_vars if kind == "native" or prefix else ()
    api_base = config.api_base or next((environ[n] for n in from_environ if environ.get(n)), None)
    api_key = _explicit_key(config, environ, label)
    headers, secrets = _headers(config, environ, label)
    secrets = (*secrets, *from_variables, *url_secrets(api_base or ""))
    if config.transport == "auto" and kind == "litellm" and provider is _UNKNOWN:
        _refuse_unknown(config.model, label)
    if kind == "litellm":
        if prefix == "anthropic" and api_base is not None:  # LiteLLM adds /v1/messages to any other base
            api_base = api_base.rstrip("/").removesuffix("/v1")
        if api_key is None and api_base is not None:
            api_key = _usual_key(prefix, provider, api_base, environ)
        wire_model = _litellm_name(config.model, provider, name, api_base)
        missing = None
        if api_key is None and api_base is None and not any(names_secret(each) for each in headers):
            missing = next(iter(provider.needs), None) if not any(map(environ.get, provider.needs)) else None
        return Resolved("litellm", wire_model, api_base, api_key, missing, headers, secrets)
    api_base = api_base or provider.base_url
    if api_base is None:
        raise ConfigError(
            f"deployment {label!r}: {config.model!r} needs api_base, the URL of its server, such as http://host:8000/v1"
        )
    _refuse_endpoint(api_base, label, shows=not from_variables)
    if api_key is None:
        api_key = _usual_key(prefix, provider, api_base, environ)
    missing = None
    if (
        api_key is None
        and provider.base_url
        and not provider.key_optional
        and _host(api_base) == _host(provider.base_url)
        and not any(names_secret(name) for name in headers)
    ):
        missing = provider.key_vars[0]
    return Resolved("native", name, api_base, api_key, missing, headers, secrets)


def _refuse_unknown(model: str, label: str) -> None:
    """Refuse a model whose server nobody can tell; LiteLLM would say so too, after seconds and for each row."""
    prefix, slash, _ = model.partition("/")
    if not slash and model.startswith(KNOWN_TO_LITELLM):
        return
    close = difflib.get_close_matches(prefix.lower(), PROVIDERS, n=1, cutoff=0.7) if slash else []
    hint = f" Did you mean '{close[0]}/{model.partition('/')[2]}'?" if close else ""
    what = f"no provider '{prefix}' is known" if slash else "it names no provider"
    raise ConfigError(
        f"deployment {label!r}: model {model!r}: {what}, and there is no api_base. For a server of your own, set "
        f"api_base, such as http://host:8000/v1; for a service, write provider/model, such as openai/gpt-4.1.{hint}"
    )


_ENDPOINTS = re.compile(
    r"/+(chat/completions|chat|completions|responses|embeddings|audio/transcriptions|models)/*(?=$|\?)"
)


def _refuse_endpoint(api_base: str, label: str, *, shows: bool) -> None:
    """Refuse a URL that ends in what each request adds to it. Without ``shows`` it is not repeated."""
    if found := _ENDPOINTS.search(api_base):
        base = shown_url(api_base[: found.start()] + api_base[found.end() :]) if shows else "it without that"
        raise ConfigError(
            f"deployment {label!r}: api_base ends in /{found[1]}, which each request adds by itself: write {base}"
        )


def _kind(provider: Provider, api_base: str | None) -> Literal["native", "litellm"]:
    if provider is _UNKNOWN:
        native = api_base is not None
    elif provider.wire == "either":
        native = api_base is not None and api_base.rstrip("/").endswith("/v1")
    else:
        native = provider.wire == "openai"
    return "native" if native else "litellm"


def _litellm_name(model: str, provider: Provider, name: str, api_base: str | None) -> str:
    """The model's name for LiteLLM, which needs a provider for any server of one's own."""
    if provider.litellm_name is not None:
        return f"{provider.litellm_name}/{name}"
    no_provider = model == name
    return f"hosted_vllm/{model}" if no_provider and api_base is not None else model


def _explicit_key(config: DeploymentConfig, environ: Mapping[str, str], label: str) -> str | None:
    if config.api_key:
        return config.api_key
    return _variable(config.api_key_env, "api_key_env", environ, label) if config.api_key_env else None


def _headers(
    config: DeploymentConfig, environ: Mapping[str, str], label: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The headers with their values, and those values that came from variables."""
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


def _with_values(config: DeploymentConfig, environ: Mapping[str, str]) -> DeploymentConfig:
    """The deployment with the values of the variables that its declaration names."""
    base, headers = config.api_base, config.headers or {}
    if isinstance(base, FromEnvironment):
        config = replace(config, api_base=base.value(environ))
    if any(isinstance(given, FromEnvironment) for given in headers.values()):
        values = {
            name: str(given.value(environ)) if isinstance(given, FromEnvironment) else given
            for name, given in headers.items()
        }
        config = replace(config, headers=values)
    return config


def _variables_of(config: DeploymentConfig, environ: Mapping[str, str]) -> list[str]:
    """The values of those variables, but for the host's: messages have to tell it."""
    base, headers = config.api_base, config.headers or {}
    found: list[str] = []
    if isinstance(base, FromEnvironment):
        where = origin(base.value(environ) or "")
        found += [value for value in base.values(environ) if value not in where and where not in value]
    for given in headers.values():
        if isinstance(given, FromEnvironment):
            found += [part for value in given.values(environ) for part in secret_parts(value)]
    return found


_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*|[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]*)+")


def _variable(name: str, named_by: str, environ: Mapping[str, str], label: str) -> str:
    value = environ.get(name)
    if value:
        return value
    if not _VARIABLE_NAME.fullmatch(name):  # perhaps a key that was pasted in the name's place
        raise ConfigError(
            f"deployment {label!r}: {named_by}: expected the name of an environment variable, such as OPENAI_API_KEY; "
            "what stands there is not shown, in case it is a key"
        )
    raise ConfigError(
        f"deployment {label!r}: the environment variable {name} that {named_by} names is not set: export it, or put "
        "it into the --env-file"
    )


def _usual_key(prefix: str, provider: Provider, api_base: str, environ: Mapping[str, str]) -> str | None:
    if not prefix and not _is_openais(api_base, environ):
        return None
    key_vars = provider.key_vars if prefix else OPENAI.key_vars
    return next((environ[name] for name in key_vars if environ.get(name)), None)


def _is_openais(api_base: str, environ: Mapping[str, str]) -> bool:
    """Whether OpenAI's key is meant for this base URL."""
    host = _host(api_base)
    if host == "api.openai.com" or host.endswith(".api.openai.com"):
        return True
    return any(environ.get(name, "").rstrip("/") == api_base.rstrip("/") for name in OPENAI.base_vars)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
