"""From the declaration to running parts: deployments with transports, limits and prices, and models over them."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Mapping

from infermesh.config.deployment import DeploymentConfig
from infermesh.config.schema import DeploymentEntry, Experiment
from infermesh.dispatch import Deployment
from infermesh.dispatch.model import Model
from infermesh.dispatch.pricing import Prices
from infermesh.dispatch.retry import RetryPolicy
from infermesh.limits import DayUsage, LocalRateLimiter, RateLimiter, make_limiter
from infermesh.results import TokenUsage
from infermesh.transports import make_transport


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
        accounts = {name: LocalRateLimiter(limits) for name, limits in experiment.limits.items()}
        prices = Prices()
        self._accounts = {
            name: (accounts[name], [label for label, entry in experiment.deployments.items() if entry.limits == name])
            for name in accounts
        }
        self._told: set[tuple[str, dt.date]] = set()
        self.deployments = {
            label: make_deployment(
                label,
                _resolved(entry, simulator_url, experiment.simulator.api_key or "simulator"),
                _limiter(entry, accounts),
                prices,
                environ=environ,
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

    def restore_usage(self, used: Mapping[str, DayUsage]) -> list[str]:
        """Carry over what the present UTC day has used already: deployment's label → its count.

        An account's count is the sum over its deployments.

        Returns
        -------
        list
            What was carried over, in words.
        """
        told = []
        for name, limiter, labels in self._daily():
            counts = [used[label] for label in labels if label in used]
            requests, tokens = sum(count.requests for count in counts), sum(count.tokens for count in counts)
            if requests:
                limiter.used_today = DayUsage(counts[0].date, requests, tokens)
                told.append(f"{name} has used {requests:,.0f} requests and {tokens:,.0f} tokens today")
        return told

    def used_up(self) -> list[str]:
        """Quotas of the day that hold requests back now, in words; each is told once a day."""
        told = []
        for name, limiter, labels in self._daily():
            used, quota = limiter.used_today, limiter.used_up
            if used is None or quota is None or (name, used.date) in self._told:
                continue
            if any(self.deployments[label].waited_for for label in labels):
                what = "requests wait for it (Ctrl-C stops the run; infermesh resume goes on with it later)"
            elif any(self._replaced(label) for label in labels):
                what = "other deployments take its share"
            else:
                continue
            self._told.add((name, used.date))
            most, count = getattr(limiter.limits, quota), used.requests if quota == "rpd" else used.tokens
            told.append(f"{quota} of {name} is used up until 00:00 UTC ({count:,.0f} of {most:,.0f}): {what}")
        return told

    def _daily(self) -> Iterator[tuple[str, LocalRateLimiter, list[str]]]:
        """Name, limiter and deployments of all that has a quota a day."""
        for name, (limiter, labels) in self._accounts.items():
            if limiter.used_today is not None:
                yield f"account {name}", limiter, labels
        for label, deployment in self.deployments.items():
            if isinstance(deployment.limiter, LocalRateLimiter) and deployment.limiter.used_today is not None:
                yield f"deployment {label}", deployment.limiter, [label]

    def _replaced(self, label: str) -> bool:
        """Whether another deployment of one of its models is at work."""
        return any(
            self.deployments[other].in_flight
            for model in self.models.values()
            if label in model.labels
            for other in model.labels
            if other != label
        )

    def stop(self) -> None:
        """Send nothing more; requests that wait for their turn end with ``StoppedError``."""
        for model in self.models.values():
            model.stop()

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

    given = config.input_cost_per_token is not None or config.output_cost_per_token is not None
    listed = prices.listed(config.model)
    if listed and not given:
        prices.prefetch()
    return Deployment(
        label,
        make_transport(config, label=label, environ=environ),
        limiter,
        max_parallel_requests=config.max_parallel_requests,
        weight=config.weight,
        price=price if given or listed else None,
    )


def _resolved(entry: DeploymentEntry, simulator_url: str | None, simulator_key: str) -> DeploymentConfig:
    embedded = entry.api_base == "simulator"
    return DeploymentConfig(
        model=entry.model,
        api_base=simulator_url if embedded else entry.api_base,
        api_key=simulator_key if embedded else None,  # the user's own must not be sent to it
        api_key_env=entry.api_key_env,
        weight=entry.weight,
        max_parallel_requests=entry.max_parallel_requests,
        transport=entry.transport,
        headers=entry.model_dump()["headers"],
        input_cost_per_token=entry.input_cost_per_token,
        output_cost_per_token=entry.output_cost_per_token,
    )


def _limiter(entry: DeploymentEntry, accounts: Mapping[str, LocalRateLimiter]) -> RateLimiter:
    if isinstance(entry.limits, str):
        return make_limiter(None, accounts[entry.limits])
    return make_limiter(entry.limits)


def _counts_tokens(entry: DeploymentEntry, experiment: Experiment) -> bool:
    config = experiment.limits[entry.limits] if isinstance(entry.limits, str) else entry.limits
    return config is not None and (config.tpm is not None or config.tpd is not None)
