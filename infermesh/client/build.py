"""Build a client's deployments and the model over them from its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from infermesh.config.deployment import DeploymentConfig
from infermesh.dispatch import Deployment
from infermesh.dispatch.fleet import Account, build_deployments, build_model
from infermesh.dispatch.model import Model
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.limits import Limits, LocalRateLimiter
from infermesh.types import Endpoint, RoutingStrategy


def deployment_configs(
    model: str,
    api_base: str | Sequence[str] | None,
    api_key: str | None,
    deployments: Mapping[str, DeploymentConfig | Mapping[str, Any]] | None,
) -> dict[str, DeploymentConfig]:
    """The client's deployments, by label.

    Without ``deployments`` there is one for each ``api_base``. A single one gets the model's name as its label, several
    get ``replica-0``, ``replica-1`` and so on. ``api_key`` is for those that name no key of their own.

    Raises
    ------
    ConfigError
        Both ``api_base`` and ``deployments`` are given, one of them is empty, or a deployment has an unknown key.
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
    """Build a model over a client's deployments. They share the ``account`` limits and keep their own.

    ``costs`` are dollars per prompt token and per answer token, for deployments that have none of their own.
    """
    configs = {label: _with_defaults(config, account, costs) for label, config in configs.items()}
    accounts = [] if account.unlimited else [Account(LocalRateLimiter(account), [*configs])]
    deployments = build_deployments(configs, accounts)
    model = build_model(name, configs, deployments, strategy=strategy, endpoint=endpoint, retry=retry, timeout=timeout)
    return model, [*deployments.values()]


def _with_defaults(
    config: DeploymentConfig, account: Limits, costs: tuple[float | None, float | None]
) -> DeploymentConfig:
    """A deployment with what the client says for all of them, where it does not say its own."""
    given: dict[str, Any] = {}
    if config.input_cost_per_token is None and config.output_cost_per_token is None:
        given["input_cost_per_token"], given["output_cost_per_token"] = costs
    if config.header_bucket_scope == "auto":
        given["header_bucket_scope"] = account.header_bucket_scope
    if config.default_output_tokens is None:
        given["default_output_tokens"] = account.default_output_tokens
    return dataclasses.replace(config, **given)
