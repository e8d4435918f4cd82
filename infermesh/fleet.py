"""From the declaration to running parts: deployments with transports, limits and prices, and models over them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from infermesh.config import DeploymentEntry, Experiment, LimitsConfig
from infermesh.limits import Limits, LocalRateLimiter, RateLimiter, make_limiter
from infermesh.model import Model
from infermesh.pricing import Prices
from infermesh.retry import RetryPolicy
from infermesh.router import Deployment
from infermesh.transports import make_transport
from infermesh.types import DeploymentConfig, TokenUsage


class Fleet:
    """All deployments and models of an experiment. A deployment's slots and limits are shared by every model on it.

    Parameters
    ----------
    experiment
        The declaration.
    simulator_url
        Base URL of the embedded simulator, for deployments with ``api_base: simulator``.
    environ
        Where ``api_key_env`` looks.

    Raises
    ------
    ConfigError
        A variable that ``api_key_env`` names is not set.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        simulator_url: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        accounts = {name: LocalRateLimiter(_limits(config)) for name, config in experiment.limits.items()}
        prices = Prices()
        self.deployments = {
            label: make_deployment(
                label, _resolved(entry, simulator_url), _limiter(entry, accounts), prices, environ=environ
            )
            for label, entry in experiment.deployments.items()
        }
        self.models: dict[str, Model] = {}
        for name, model in experiment.models.items():
            entries = [experiment.deployments[label] for label in model.deployments]
            self.models[name] = Model(
                name,
                [self.deployments[label] for label in model.deployments],
                backends=[entry.model for entry in entries],
                strategy=model.routing_strategy,
                endpoint=model.endpoint,
                params=model.params,
                retry=RetryPolicy(max_retries=model.max_retries),
                timeout=model.timeout,
                counts_tokens=any(_counts_tokens(entry, experiment) for entry in entries),
            )

    async def aclose(self) -> None:
        """Close every connection."""
        for deployment in self.deployments.values():
            await deployment.transport.aclose()


def make_deployment(
    label: str,
    config: DeploymentConfig,
    limiter: RateLimiter,
    prices: Prices,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Deployment:
    """One deployment with its transport and its price function."""

    def price(usage: TokenUsage) -> float | None:
        return prices.cost(
            config.model,
            usage,
            input_cost_per_token=config.input_cost_per_token,
            output_cost_per_token=config.output_cost_per_token,
        )

    return Deployment(
        label,
        make_transport(config, label=label, environ=environ),
        limiter,
        max_parallel_requests=config.max_parallel_requests,
        weight=config.weight,
        price=price,
    )


def _resolved(entry: DeploymentEntry, simulator_url: str | None) -> DeploymentConfig:
    embedded = entry.api_base == "simulator"
    return DeploymentConfig(
        model=entry.model,
        api_base=simulator_url if embedded else entry.api_base,
        # The simulator asks for no key, and the user's own must not be sent to it.
        api_key="simulator" if embedded else None,
        api_key_env=entry.api_key_env,
        weight=entry.weight,
        max_parallel_requests=entry.max_parallel_requests,
        transport=entry.transport,
        headers=entry.headers,
        input_cost_per_token=entry.input_cost_per_token,
        output_cost_per_token=entry.output_cost_per_token,
    )


def _limits(config: LimitsConfig) -> Limits:
    return Limits(**config.model_dump())


def _limiter(entry: DeploymentEntry, accounts: Mapping[str, LocalRateLimiter]) -> RateLimiter:
    if isinstance(entry.limits, str):
        return make_limiter(None, accounts[entry.limits])
    return make_limiter(_limits(entry.limits) if entry.limits is not None else None)


def _counts_tokens(entry: DeploymentEntry, experiment: Experiment) -> bool:
    config = experiment.limits[entry.limits] if isinstance(entry.limits, str) else entry.limits
    return config is not None and (config.tpm is not None or config.tpd is not None)
