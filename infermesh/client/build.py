"""Build a client's deployments and the model over them from its arguments."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from infermesh.config.deployment import MAX_RESPONSE_BYTES, DeploymentConfig, check_max_response_bytes
from infermesh.dispatch import Deployment
from infermesh.dispatch.fleet import Account, build_deployments, build_model, shared_limiter
from infermesh.dispatch.model import LogicalModel
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
    max_response_bytes: int = MAX_RESPONSE_BYTES,
) -> dict[str, DeploymentConfig]:
    """The deployments that a client's arguments describe, by label.

    Without ``deployments`` there is one for each ``api_base``: a single one has the model's name for a label, several
    have ``replica-0``, ``replica-1`` and so on. ``api_key`` and ``max_response_bytes`` are given to those that have
    none of their own.

    Raises
    ------
    ConfigError
        Both ``api_base`` and ``deployments`` are given, one of them is empty, or a deployment has an unknown key.
    """
    check_max_response_bytes(max_response_bytes)
    configs = _described(model, api_base, api_key, deployments)
    for label, config in configs.items():
        if config.max_response_bytes is None:
            configs[label] = dataclasses.replace(config, max_response_bytes=max_response_bytes)
    return configs


def _described(
    model: str,
    api_base: str | Sequence[str] | None,
    api_key: str | None,
    deployments: Mapping[str, DeploymentConfig | Mapping[str, Any]] | None,
) -> dict[str, DeploymentConfig]:
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


def spread_slots(
    configs: dict[str, DeploymentConfig], max_parallel_requests: int | None
) -> tuple[dict[str, DeploymentConfig], int | None, int | None]:
    """Where the bound on requests at once is held, and how many a batch may have.

    Returns
    -------
    configs
        As given. An only deployment has the client's bound as its own: requests then wait in one line, not in two.
    slots
        For all deployments together; ``None`` where their own slots will do.
    window
        Requests at once in a batch: the client's bound, else all deployments' slots, else ``None``.

    Raises
    ------
    ConfigError
        A bound below 1.
    """
    if max_parallel_requests is None:
        bounds = [config.max_parallel_requests for config in configs.values()]
        return configs, None, None if None in bounds else sum(n for n in bounds if n is not None)
    if max_parallel_requests < 1:
        raise ConfigError(f"max_parallel_requests: expected at least 1, got {max_parallel_requests}")
    if len(configs) > 1:
        return configs, max_parallel_requests, max_parallel_requests
    ((label, config),) = configs.items()
    own_bound = config.max_parallel_requests
    bound = max_parallel_requests if own_bound is None else min(max_parallel_requests, own_bound)
    return {label: dataclasses.replace(config, max_parallel_requests=bound)}, None, max_parallel_requests


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
    shared: str | None = None,
) -> tuple[LogicalModel, list[Deployment]]:
    """A model over a client's deployments, which share the ``account`` limits and keep their own.

    ``shared`` is the account's name where others on this machine use it too. ``costs`` are US dollars per prompt and
    per answer token, for deployments that do not set their own.
    """
    configs = {label: _with_defaults(config, account, costs) for label, config in configs.items()}
    if shared is not None and account.unlimited:
        raise ConfigError("shared_limits: expected a limit to share: one of rpm, tpm, rpd, tpd")
    limiter = LocalRateLimiter(account) if shared is None else shared_limiter(account, shared, configs, os.environ)
    accounts = [] if account.unlimited else [Account(limiter, [*configs])]
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
    if config.header_bucket_scope is None:
        given["header_bucket_scope"] = account.header_bucket_scope
    if config.default_output_tokens is None:
        given["default_output_tokens"] = account.default_output_tokens
    return dataclasses.replace(config, **given)
