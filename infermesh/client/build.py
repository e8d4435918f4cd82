"""From a client's arguments to deployments and a model over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from infermesh.config.deployment import DeploymentConfig
from infermesh.dispatch import Deployment
from infermesh.dispatch.fleet import make_deployment
from infermesh.dispatch.model import Model
from infermesh.dispatch.pricing import Prices
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.limits import Limits, LocalRateLimiter, RateLimiter, make_limiter
from infermesh.types import LIMITS, Endpoint, RoutingStrategy


def deployment_configs(
    model: str,
    api_base: str | Sequence[str] | None,
    api_key: str | None,
    deployments: Mapping[str, DeploymentConfig | Mapping[str, Any]] | None,
) -> dict[str, DeploymentConfig]:
    """What a client was told about its deployments, by label.

    Without ``deployments`` there is one for each ``api_base``: a single one is labelled with the model's name, several
    ``replica-0``, ``replica-1`` and so on. ``api_key`` goes to those that have none of their own.

    Raises
    ------
    ConfigError
        Both ``api_base`` and ``deployments`` are given, or one is empty, or a deployment has an unknown key.
    """
    if deployments is None:
        if api_base is None or isinstance(api_base, str):
            return {model: DeploymentConfig(model, api_base, api_key)}
        if not api_base:
            raise ConfigError("api_base: the list is empty: give at least one URL")
        return {f"replica-{i}": DeploymentConfig(model, base, api_key) for i, base in enumerate(api_base)}
    if api_base is not None:
        raise ConfigError("give either api_base or deployments: each of the deployments has its own api_base")
    if not deployments:
        raise ConfigError("deployments: the mapping is empty: give at least one")
    configs = {label: _deployment_config(label, config) for label, config in deployments.items()}
    if api_key is not None:
        for label, config in configs.items():
            if config.api_key is None and config.api_key_env is None:
                configs[label] = dataclasses.replace(config, api_key=api_key)
    return configs


def _deployment_config(label: str, config: DeploymentConfig | Mapping[str, Any]) -> DeploymentConfig:
    if isinstance(config, DeploymentConfig):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(f"deployments.{label}: expected a DeploymentConfig or a mapping, not {type(config).__name__}")
    known = [field.name for field in dataclasses.fields(DeploymentConfig)]
    for key in config:
        if key not in known:
            raise ConfigError(f"deployments.{label}.{key}: unknown key.{nearest(str(key), known)}")
    if "model" not in config:
        raise ConfigError(f"deployments.{label}.model: missing; it is required.")
    return DeploymentConfig(**config)


def client_model(
    name: str,
    configs: Mapping[str, DeploymentConfig],
    *,
    account: Limits,
    strategy: RoutingStrategy,
    endpoint: Endpoint,
    retry: RetryPolicy,
    timeout: float | None,
    costs: tuple[float | None, float | None] = (None, None),
) -> tuple[Model, list[Deployment]]:
    """A model over a client's deployments, which share the ``account`` limits and keep their own.

    ``costs`` are dollars per prompt and per answer token, for deployments that do not say their own.
    """
    prices = Prices()
    shared = None if account.unlimited else LocalRateLimiter(account)
    owns: list[Limits] = []
    made: list[Deployment] = []
    for label, config in configs.items():
        own = _own_limits(config, account)
        owns.append(own)
        if shared is not None and own.unlimited and len(configs) == 1:
            limiter: RateLimiter = shared
        else:
            limiter = make_limiter(own, *([] if shared is None else [shared]))
        if config.input_cost_per_token is None and config.output_cost_per_token is None:
            config = dataclasses.replace(config, input_cost_per_token=costs[0], output_cost_per_token=costs[1])
        made.append(make_deployment(label, config, limiter, prices))
    model = Model(
        name,
        made,
        backends=[config.model for config in configs.values()],
        strategy=strategy,
        endpoint=endpoint,
        retry=retry,
        timeout=timeout,
        counts_tokens=any(limits.tpm is not None or limits.tpd is not None for limits in (account, *owns)),
    )
    return model, made


def _own_limits(config: DeploymentConfig, account: Limits) -> Limits:
    """A deployment's own limits. Where it does not say how to read headers and estimate answers, its account does."""
    own = Limits(**{name: getattr(config, name) for name in LIMITS})
    if own.header_bucket_scope == "auto":
        own = dataclasses.replace(own, header_bucket_scope=account.header_bucket_scope)
    if own.default_output_tokens is None:
        own = dataclasses.replace(own, default_output_tokens=account.default_output_tokens)
    return own
