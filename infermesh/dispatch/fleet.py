"""Build deployments (transport, limits, prices) and the models over them, for an experiment or for a client."""

from __future__ import annotations

import datetime as dt
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from infermesh.config.deployment import DeploymentConfig
from infermesh.config.schema import DeploymentEntry, Experiment, ModelEntry, ModelStageConfig
from infermesh.dispatch import Deployment
from infermesh.dispatch.model import LogicalModel
from infermesh.dispatch.pricing import Prices, asked_tiers
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import ConfigError
from infermesh.hints import counted
from infermesh.limits import CompositeLimiter, DayUsage, LocalRateLimiter, OpenLimiter, RateLimiter, make_limiter
from infermesh.limits.shared import SharedRateLimiter
from infermesh.redaction import origin
from infermesh.results import TokenUsage
from infermesh.transports import LateValues, make_transport
from infermesh.transports.late_values import references_in
from infermesh.transports.provider_table import split_model
from infermesh.transports.providers import resolve_deployment
from infermesh.types import Endpoint, Limits, RoutingStrategy

_WORTH_TELLING_S = 5.0  # a shorter pause is not worth a line
_NEXT_WORD_S = 600.0  # a server that paces a whole run by pauses is told of every ten minutes


WAITED_FOR = "requests wait for it (Ctrl-C stops the run; infermesh resume goes on with it later)"


class Fleet:
    """All deployments and models of an experiment. Models share the slots and limits of the deployments they share.

    Parameters
    ----------
    experiment
        The declaration.
    simulator_url
        Base URL of the embedded simulator, for deployments with ``api_base: simulator``.
    environ
        Where keys are looked up.
    limiter
        Makes the limiter of an account, and of a deployment that has limits of its own.

    Raises
    ------
    ConfigError
        A variable that ``api_key_env`` or a header names is not set, or a URL is missing or wrong.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        simulator_url: str | None = None,
        environ: Mapping[str, str] = os.environ,
        limiter: Callable[[Limits], LocalRateLimiter] = LocalRateLimiter,
    ) -> None:
        self.simulator_url = simulator_url
        configs = {label: _config(entry, experiment, simulator_url) for label, entry in experiment.deployments.items()}
        self._accounts: dict[str, Account] = {}
        for name, limits in experiment.limits.items():
            labels = [*experiment.members_of(name)]
            if limits.shared and not limits.unlimited and limiter is LocalRateLimiter:  # else it is dealt by a hub
                own: LocalRateLimiter = shared_limiter(limits, name, {each: configs[each] for each in labels}, environ)
            else:
                own = limiter(limits)
            self._accounts[name] = Account(own, labels)
        self._announced: set[tuple[str, dt.date]] = set()
        self._next_word: dict[str, float] = {}  # label → when a pause of it is worth a line again
        self._away: dict[str, str] = {}  # what is told to be away or to refuse: label → why
        self._patience = {name: _patience(model) for name, model in experiment.models.items()}
        patience = {
            label: max(self._patience[name] for name, model in experiment.models.items() if label in model.deployments)
            for label in {label for model in experiment.models.values() for label in model.deployments}
        }
        accounts = [*self._accounts.values()]
        told = {(experiment.deployments[label].model, tier.lower()) for label, tier in asked_tiers(experiment)}
        self._unpriced: list[str] = []
        self.deployments = build_deployments(
            configs,
            accounts,
            environ=environ,
            patience=patience,
            limiter=limiter,
            prices=Prices(self._unpriced.append, told),
        )
        if late := [*references_in([each.params for each in (*experiment.models.values(), *_stages(experiment))])]:
            for deployment in self.deployments.values():
                deployment.transport = LateValues(deployment.transport, late, environ)
        self.models = {
            name: build_model(
                name,
                {label: configs[label] for label in model.deployments},
                self.deployments,
                strategy=model.routing_strategy,
                endpoint=model.endpoint,
                params=model.params,
                retry=RetryPolicy(
                    max_retries=model.max_retries,
                    max_pause_s=model.max_pause,
                    waits_unasked=True,
                    patience_s=self._patience[name],
                ),
                timeout=model.timeout,
            )
            for name, model in experiment.models.items()
        }

    def restore_usage(self, used: Mapping[str, DayUsage]) -> list[str]:
        """Restore the counts of the present UTC day, which quotas a day start from.

        Parameters
        ----------
        used
            Deployment's label → what it has used today. An account's count is the sum over its deployments.

        Returns
        -------
        list
            A line for each count that was restored, for the user.
        """
        told = []
        for name, limiter, labels in self._daily():
            counts = [used[label] for label in labels if label in used]
            requests, tokens = sum(count.requests for count in counts), sum(count.tokens for count in counts)
            if requests:
                limiter.used_today = DayUsage(counts[0].date, requests, tokens)
                told.append(
                    f"{name} has used {counted(round(requests), 'request')} and {counted(round(tokens), 'token')} today"
                )
        return told

    def used_up(self) -> list[str]:
        """A line for each quota a day that holds requests back now, for the user. Each is reported once a day."""
        told = []
        for name, limiter, labels in self._daily():
            used, quota = limiter.used_today, limiter.used_up
            if used is None or quota is None or (name, used.date) in self._announced:
                continue
            if any(self.deployments[label].waited_for for label in labels):
                what = WAITED_FOR
            elif any(self._replaced(label) for label in labels):
                what = "other deployments take its share"
            else:
                continue
            told += self.day_is_over(name, limiter, quota, what)
        return told

    def day_is_over(self, name: str, limiter: LocalRateLimiter, quota: str, what: str) -> list[str]:
        """The line for a quota a day that is used up, with ``what`` becomes of requests; none where it was told."""
        used = limiter.used_today
        if used is None or (name, used.date) in self._announced:
            return []
        self._announced.add((name, used.date))
        most, count = getattr(limiter.limits, quota), used.requests if quota == "rpd" else used.tokens
        return [f"{quota} of {name} is used up until 00:00 UTC ({count:,.0f} of {most:,.0f}): {what}"]

    def waits(self, now: float) -> list[str]:
        """A line for each deployment that pauses, refuses or is away, and for each that is back; each is told once.

        Parameters
        ----------
        now
            The event loop's time.
        """
        told = [line for account in self._accounts.values() for line in _notes(account.limiter)]
        day_is_over = {each for _, limiter, labels in self._daily() if limiter.used_up for each in labels}
        for label, deployment in self.deployments.items():
            health, rest = deployment.health, deployment.limiter.paused_for
            # A day's quota has a line of its own: see `used_up`.
            if rest > _WORTH_TELLING_S and now >= self._next_word.get(label, 0.0) and label not in day_is_over:
                self._next_word[label] = now + max(rest, _NEXT_WORD_S)
                told.append(f"{label}: its server wants {rest:,.0f} s without a request, which are waited for")
            if health.cool_until and health.cause in ("away", "refusal") and label not in self._away:
                self._away[label] = health.cause
                told.append(self._away_line(label, deployment))
            elif not health.since and label in self._away:
                del self._away[label]
                told.append(f"{label} answers again")
        return told

    def unpriced(self) -> list[str]:
        """A line for each tier that has served answers, and that the price list does not have; each is told once."""
        told, self._unpriced[:] = [*self._unpriced], []
        return told

    def told_of(self, label: str) -> bool:
        """Whether a deployment is told to be away or to refuse."""
        return label in self._away

    def waiting_for(self) -> list[str]:
        """What requests wait for at this moment, in words: a quota, a pause, a server that cannot be reached."""
        found: dict[str, None] = {}  # several deployments may wait for their account
        days = {
            label: f"{each.used_up} of {name}"
            for name, each, labels in self._daily()
            for label in labels
            if each.used_up
        }
        for label, deployment in self.deployments.items():
            limiter, rest = deployment.limiter, deployment.limiter.paused_for
            if deployment.awaited:
                found[f"{label} (cannot be reached)"] = None
            elif rest > _WORTH_TELLING_S and deployment.waited_for:
                until = time.strftime("%H:%M:%S", time.localtime(time.time() + rest))
                pause = f"{label} (pauses until {until}, {rest:,.0f} s)"
                found[f"{days[label]} (used up until 00:00 UTC)" if label in days else pause] = None
            elif (quota := limiter.binding) is not None:
                found[self._quota(label, quota)] = None
        return [*found]

    def _quota(self, label: str, quota: str) -> str:
        """A quota that holds a deployment's requests, in words: its account's, or its own."""
        for name, account in self._accounts.items():
            if label in account.labels and account.limiter.binding == quota:
                return f"{quota} of {name} ({getattr(account.limiter.limits, quota):,g} a minute)"
        own = _own(self.deployments[label].limiter)
        rate = f" ({getattr(own.limits, quota):,g} a minute)" if own is not None else ""
        return f"{quota} of {label}{rate}"

    def _away_line(self, label: str, deployment: Deployment) -> str:
        why = deployment.health.why.removeprefix(f"{label}: ")
        if deployment.health.cause == "refusal":
            last = "its requests fail" if self._alone(label) else "other deployments take its requests"
            return f"{label} refuses requests ({last}): {why}"
        if not self._alone(label) or not deployment.patience_s:
            return f"{label} cannot be reached: {why}"
        most = deployment.patience_s
        bound = "until it answers" if most == math.inf else f"for up to {most:g} s (models.*.max_wait_unreachable)"
        why += "" if why.endswith(("?", ".")) else "."
        return f"{label} cannot be reached: {why} No request is sent but a probe now and then, {bound}; Ctrl-C stops"

    def _alone(self, label: str) -> bool:
        """Whether one of its models has no other deployment that is well."""
        return any(
            not any(not self.deployments[other].health.cool_until for other in self._serving(model) if other != label)
            for model in self.models.values()
            if label in model.labels
        )

    def unreachable(self, now: float) -> str | None:
        """Why the run is to stop: a model whose requests have waited too long for deployments that are away.

        One at least is away, and the others are as well or refuse. ``None``: there is no such model. One without
        patience lets its requests fail, and stops nobody.

        Parameters
        ----------
        now
            The event loop's time.
        """
        for name, model in self.models.items():
            patience = self._patience[name]
            members = [self.deployments[label] for label in self._serving(model)]
            away = [member for member in members if member.awaited]
            if not patience or not away or not all(member.awaited or member.refuses for member in members):
                continue
            if not any(member.waited_for_with(patience) for member in away):
                continue
            away_s = now - max(member.health.since for member in members)
            if away_s >= patience:
                each = "; ".join(member.health.why for member in members)
                return f"models.{name}.max_wait_unreachable is {patience:g} s, and nobody answers: {each}"
        return None

    def _serving(self, model: LogicalModel) -> Sequence[str]:
        """The labels of a model's deployments that take requests."""
        return [label for label in model.labels if self.deployments[label].weight]

    def limiters(self) -> Iterator[tuple[str, LocalRateLimiter, Sequence[str]]]:
        """Name, limiter and deployments of each account, and of each deployment that has limits of its own."""
        for name, account in self._accounts.items():
            yield f"account {name}", account.limiter, account.labels
        of_accounts = [account.limiter for account in self._accounts.values()]
        for label, deployment in self.deployments.items():
            own = _own(deployment.limiter)
            if own is not None and own not in of_accounts:
                yield f"deployment {label}", own, [label]

    # While requests pass

    def set_account_limits(self, name: str, limits: Limits) -> None:
        """Change the limits of an account. Needs a running event loop, as the next ones do."""
        account = self._accounts[name]
        account.limiter.change(limits)
        self._recount()

    def set_limits(self, label: str, limits: Limits) -> None:
        """Change a deployment's limits of its own, whether it has had any or not."""
        limiter: Any = self.deployments[label].limiter
        limiter = getattr(limiter, "limiter", limiter)  # a worker listens at it
        limiter.change(limits)
        self._recount()

    def set_weight(self, label: str, weight: float) -> None:
        """Change a deployment's share of the load; 0 takes it out, once what was sent there has ended."""
        self.deployments[label].weight = weight
        self._choose_anew()

    def set_slots(self, label: str, slots: int | None, *, shared: bool = False) -> None:
        """Change how many requests a deployment takes at once; ``shared``: somebody else says how many of them here."""
        deployment = self.deployments[label]
        deployment.max_parallel_requests = slots
        if not shared or slots is None:
            deployment.resize(slots)
        self._choose_anew()

    def _choose_anew(self) -> None:
        for model in self.models.values():
            model.router.refresh()
        for deployment in self.deployments.values():
            deployment.look_again()

    def _recount(self) -> None:
        for model in self.models.values():
            model.counts_tokens = any(self.deployments[label].limiter.counts_tokens for label in model.labels)

    def _daily(self) -> Iterator[tuple[str, LocalRateLimiter, Sequence[str]]]:
        """Those of :meth:`limiters` that have a quota a day."""
        return (each for each in self.limiters() if each[1].used_today is not None)

    def _replaced(self, label: str) -> bool:
        """Whether another deployment of one of its models has requests in flight."""
        return any(
            self.deployments[other].in_flight
            for model in self.models.values()
            if label in model.labels
            for other in model.labels
            if other != label
        )

    def stop(self) -> None:
        """Send nothing more. Requests that wait to be sent end with ``StoppedError``."""
        for model in self.models.values():
            model.stop()

    async def aclose(self) -> None:
        for deployment in self.deployments.values():
            await deployment.transport.aclose()


def _own(limiter: RateLimiter) -> LocalRateLimiter | None:
    """What keeps to the limits that were declared for a deployment, or set later; ``None``: there are none."""
    limiter = getattr(limiter, "limiter", limiter)  # a worker listens at it
    if isinstance(limiter, CompositeLimiter):
        limiter = limiter.own
    if isinstance(limiter, OpenLimiter) and not limiter.told.limits.unlimited:
        limiter = limiter.told
    return limiter if isinstance(limiter, LocalRateLimiter) else None


def _stages(experiment: Experiment) -> list[ModelStageConfig]:
    return [stage for stage in experiment.stages.values() if isinstance(stage, ModelStageConfig)]


def _patience(model: ModelEntry) -> float:
    return math.inf if model.max_wait_unreachable is None else model.max_wait_unreachable


class Account(NamedTuple):
    """Limits that several deployments share, and the labels of those deployments."""

    limiter: LocalRateLimiter
    labels: Sequence[str]


def build_deployments(
    configs: Mapping[str, DeploymentConfig],
    accounts: Sequence[Account] = (),
    *,
    environ: Mapping[str, str] = os.environ,
    patience: Mapping[str, float] | None = None,
    limiter: Callable[[Limits], LocalRateLimiter] = LocalRateLimiter,
    prices: Prices | None = None,
) -> dict[str, Deployment]:
    """Make the deployments of an experiment or a client, with their transports, limiters and price functions.

    Parameters
    ----------
    configs
        Label → deployment. Its own limits hold beside those of its accounts.
    accounts
        What deployments share.
    environ
        Where keys are looked up.
    patience
        Label → seconds for which requests wait for it where it cannot be reached; without, they fail.
    limiter
        Makes the limiter of a deployment that has limits of its own.
    prices
        What answers cost.

    Raises
    ------
    ConfigError
        A limit is out of its range, a variable is not set, a URL is missing or wrong.
    """
    prices = prices or Prices()
    made = {
        label: Deployment(
            label,
            make_transport(config, label=label, environ=environ),
            _limiter(label, config, accounts, limiter),
            max_parallel_requests=config.max_parallel_requests,
            weight=config.weight,
            price=_price(config, prices),
            patience_s=(patience or {}).get(label, 0.0),
        )
        for label, config in configs.items()
    }
    for account in accounts:
        if isinstance(account.limiter, SharedRateLimiter):
            under = [made[label].limiter for label in account.labels if label in made]
            composites = [each for each in under if isinstance(each, CompositeLimiter)]
            account.limiter.before = partial(_waiting, composites)
    return made


def _waiting(limiters: Sequence[RateLimiter]) -> int:
    return sum(limiter.waiting for limiter in limiters)


def _notes(limiter: LocalRateLimiter) -> list[str]:
    if not isinstance(limiter, SharedRateLimiter):
        return []
    found, limiter.notes[:] = [*limiter.notes], []
    return found


def shared_limiter(
    limits: Limits, name: str, configs: Mapping[str, DeploymentConfig], environ: Mapping[str, str]
) -> SharedRateLimiter:
    """The limiter of an account that others on this machine use too.

    It is the same account where its name is, and its keys are; without a key, where its servers are.

    Raises
    ------
    ConfigError
        As :class:`~infermesh.limits.shared.SharedRateLimiter`, or a deployment cannot be resolved.
    """
    whose = set()
    for label, config in configs.items():
        found = resolve_deployment(config, environ, label=label)
        whose.add(found.api_key or (origin(found.api_base) if found.api_base else split_model(config.model)[0]))
    return SharedRateLimiter(limits, name, "\n".join(sorted(whose)))


def build_model(
    name: str,
    configs: Mapping[str, DeploymentConfig],
    deployments: Mapping[str, Deployment],
    *,
    strategy: RoutingStrategy,
    endpoint: Endpoint,
    retry: RetryPolicy,
    timeout: float | None,
    params: Mapping[str, Any] | None = None,
) -> LogicalModel:
    """Make a model over those ``deployments`` that ``configs`` names, whose order it keeps."""
    served_by = [deployments[label] for label in configs]
    return LogicalModel(
        name,
        served_by,
        backends=[config.model for config in configs.values()],
        strategy=strategy,
        endpoint=endpoint,
        params=params,
        retry=retry,
        timeout=timeout,
        counts_tokens=any(deployment.limiter.counts_tokens for deployment in served_by),
    )


def _limiter(
    label: str,
    config: DeploymentConfig,
    accounts: Sequence[Account],
    limiter: Callable[[Limits], LocalRateLimiter],
) -> RateLimiter:
    try:
        own = config.limits
    except ConfigError as error:
        raise ConfigError(f"deployments.{label}.{error}") from None
    shared = [account for account in accounts if label in account.labels]
    if own.unlimited and len(shared) == 1 and len(shared[0].labels) == 1:
        return shared[0].limiter  # nobody to share it with: no need to go through two
    return make_limiter(own, *(account.limiter for account in shared), local=limiter)


def _price(config: DeploymentConfig, prices: Prices) -> Callable[[TokenUsage], float | None] | None:
    """The function that prices an answer's tokens. ``None``: neither the config nor the list can know."""

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
    return price if given or listed else None


def _config(entry: DeploymentEntry, experiment: Experiment, simulator_url: str | None) -> DeploymentConfig:
    config = entry.deployment_config()
    if entry.api_base != "simulator":
        return config
    # The user's own key must not be sent to the simulator.
    return replace(config, api_base=simulator_url, api_key=experiment.simulator.api_key or "no-key-needed")
