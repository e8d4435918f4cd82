"""Estimate a job's requests, tokens, cost and duration, and its bottleneck. A pure function of facts.

The model: every stage puts a load on resources, some of them shared: its window, its deployments' slots and quotas, the
simulator's capacity, the client's own speed. Rows stream, so the stages of a wave work at the same time. The job takes
as long as its most loaded resource, plus the time until the first row reaches that resource and the time that the last
row takes after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from infermesh.hints import counted
from infermesh.limits import steady_rate
from infermesh.plan.facts import DeploymentFacts, QuotaFacts, ServiceFacts, StageFacts

__all__ = ["Estimate", "Resource", "StageEstimate", "estimate", "helpful_workers"]

DAY_S = 86400.0
# What one process does with rows, templates, requests and commits: `python -m benchmarks.run` on two slow cores.
CLIENT_REQUESTS_PER_S = 2500.0
# With workers, the same for each, up to what the one process stores that leases their rows: a quarter of the work.
HUB_REQUESTS_PER_S = 4 * CLIENT_REQUESTS_PER_S
CLIENT = "the client's own speed"
WORTH_WORKERS_S = 20.0  # a shorter job is over before workers have brought much
# The embedded simulator is a Python web server in one process.
SIMULATOR_REQUESTS_PER_S = 1500.0
# How long the runner waits for a micro-batch to fill, and the writer between commits.
BATCH_LINGER_S = 0.25
COMMIT_S = 0.1
# Of more sets of deployments than this, only each set and the union of all are checked, not every union.
_MOST_SETS = 6


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """A stage's totals over all its rows, cost in US dollars. ``None`` is unknown."""

    facts: StageFacts
    requests: int | None
    prompt_tokens: float | None
    completion_tokens: float | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that limits the job's speed.

    Attributes
    ----------
    name, detail
        What it is, and its load and limit, in words.
    seconds
        How long it is busy.
    wall_s
        The same plus the time before its first row and after its last.
    stages
        The stages that load it.
    days
        How many UTC days a daily quota needs; ``None`` if the rest of today is enough, or it is no daily quota.
    """

    name: str
    detail: str
    seconds: float
    wall_s: float
    stages: tuple[str, ...]
    days: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a whole job.

    Attributes
    ----------
    stages
        In the order of the facts.
    resources
        Everything that takes time, longest first.
    wall_s
        Duration in seconds; ``None`` if nothing is known that takes time.
    complete
        False if a stage's latency or rows are unknown: ``wall_s`` is then a lower bound.
    days
        UTC days that daily quotas spread the job over; ``None`` if today is enough.
    unknown
        A line for each stage whose number of rows is unknown.
    """

    stages: list[StageEstimate]
    resources: list[Resource]
    wall_s: float | None
    complete: bool
    days: int | None = None
    unknown: list[str] = field(default_factory=list)

    @property
    def binding(self) -> Resource | None:
        """The bottleneck; ``None`` if nothing is known that takes time."""
        return self.resources[0] if self.resources else None


def estimate(
    stages: Sequence[StageFacts],
    deployments: Mapping[str, DeploymentFacts],
    quotas: Mapping[str, QuotaFacts],
    service: ServiceFacts | None = None,
    *,
    until_midnight_s: float = DAY_S,
    workers: int = 0,
) -> Estimate:
    """Estimate a job. For a pipeline of several waves, see :func:`infermesh.plan.gather.make_plan`.

    Parameters
    ----------
    stages
        Each after those that it requires.
    deployments
        By label.
    quotas
        By name, as in :attr:`DeploymentFacts.quota`.
    service
        The embedded simulator; ``None`` if no deployment uses it.
    until_midnight_s
        Seconds to the next UTC day, when daily quotas start again.
    workers
        Processes that send the requests, each with a processor of its own; 0: the run's own does.
    """
    model = _Model(stages, deployments, quotas, service, until_midnight_s, workers)
    found = model.resources()
    if found:
        # Rows that arrive one by one leave micro-batches half empty, which makes more requests. How empty depends on
        # the duration, so estimate twice.
        model.set_batch_fill(_longest(found))
        found = model.resources()
    known = [stage for stage in stages if stage.rows is not None]
    silent = [
        stage.name
        for stage in known
        if stage.rows and stage.deployments and stage.latency is None and not stage.batched
    ]
    unknown = [f"{stage.name}: rows are not known before the run" for stage in stages if stage.rows is None]
    days = max((resource.days for resource in found if resource.days), default=None)
    wall = _longest(found) if found else None if silent else 0.0
    return Estimate(model.shares(), found, wall, not silent and not unknown, days, unknown)


class _Model:
    """Computes each resource's load. ``_per_request`` is stage → rows per request."""

    def __init__(
        self,
        stages: Sequence[StageFacts],
        deployments: Mapping[str, DeploymentFacts],
        quotas: Mapping[str, QuotaFacts],
        service: ServiceFacts | None,
        until_midnight_s: float,
        workers: int = 0,
    ) -> None:
        self._workers = workers
        self._stages = {stage.name: stage for stage in stages}
        self._busy = [stage for stage in stages if stage.rows and stage.deployments and not stage.batched]
        self._deployments = deployments
        self._quotas = quotas
        self._service = service
        self._until_midnight_s = until_midnight_s
        self._per_request: dict[str, float] = {stage.name: stage.batch for stage in stages}

    def set_batch_fill(self, wall_s: float) -> None:
        """Set how many rows a micro-batch carries if the job takes ``wall_s`` and rows arrive evenly."""
        for stage in self._busy:
            if stage.batch > 1 and any(self._stages[other].rows for other in stage.requires if other in self._stages):
                arriving = 1 + (stage.rows or 0) / max(wall_s, 1e-9) * BATCH_LINGER_S
                self._per_request[stage.name] = min(stage.batch, arriving)

    def requests(self, stage: StageFacts) -> int:
        return math.ceil((stage.rows or 0) / self._per_request[stage.name])

    def shares(self) -> list[StageEstimate]:
        found = []
        for stage in self._stages.values():
            rows = stage.rows
            if rows is None:
                found.append(StageEstimate(stage, None, None, None, None))
                continue

            def total(each: float | None, rows: int = rows, stage: StageFacts = stage) -> float | None:
                return 0.0 if not rows or not stage.deployments else None if each is None else each * rows

            sends = self.requests(stage) if stage.deployments else 0
            found.append(
                StageEstimate(
                    stage, sends, total(stage.prompt_tokens), total(stage.completion_tokens), total(stage.cost_usd)
                )
            )
        return found

    def resources(self) -> list[Resource]:
        """Every resource that takes time, longest first."""
        found = [
            *self._windows(),
            *self._slots(),
            *self._rates(),
            *self._simulator(),
            *self._client(),
        ]
        found += self._daily_quotas(_longest(found))
        found = [resource for resource in found if resource.seconds > 0]
        return sorted(found, key=lambda resource: -resource.seconds)

    def _resource(
        self, name: str, detail: str, seconds: float, stages: Iterable[StageFacts], *, drains: bool = False
    ) -> Resource:
        """Make a resource: add the time before its first stage gets a row, and after its last stage's last row.

        With ``drains``, ``seconds`` ends when the last request is let through, so that its latency comes on top.
        """
        named = list(stages)
        names = {stage.name for stage in named}
        lead = min((self._seconds_before(stage) for stage in named), default=0.0)
        last = [stage for stage in named if not self._followers(stage) & names] or named
        trail = max((self._seconds_after(stage) for stage in last), default=0.0)
        own = max((_p95(stage) for stage in last), default=0.0) if drains else 0.0
        return Resource(name, detail, seconds, seconds + lead + trail + own + COMMIT_S, tuple(sorted(names)))

    def _seconds_before(self, stage: StageFacts) -> float:
        """Seconds until the first row reaches a stage."""
        above = [self._stages[name] for name in stage.requires if name in self._stages]
        return max((self._seconds_before(other) + self._pass_through(other) for other in above), default=0.0)

    def _seconds_after(self, stage: StageFacts) -> float:
        """Seconds that the last row takes after it has left a stage. The last micro-batch does not linger."""
        below = [other for other in self._busy if stage.name in other.requires]
        return max((self._pass_through(other, 0.0) + self._seconds_after(other) for other in below), default=0.0)

    def _pass_through(self, stage: StageFacts, linger_s: float = BATCH_LINGER_S) -> float:
        """Seconds that a single row takes in a stage."""
        if not stage.rows or stage.latency is None:
            return 0.0
        return stage.latency.mean_s + (linger_s if stage.batch > 1 else 0.0)

    def _followers(self, stage: StageFacts) -> set[str]:
        """The stages that read a stage, directly or through others."""
        found: set[str] = set()
        for other in self._stages.values():  # each after those that it requires
            if stage.name in other.requires or found & set(other.requires):
                found.add(other.name)
        return found

    def _windows(self) -> Iterable[Resource]:
        for stage in self._busy:
            if stage.latency is not None:
                requests = self.requests(stage)
                seconds = _rounds(requests * stage.latency.mean_s, requests, stage.window, [stage])
                detail = (
                    f"{counted(requests, 'request')} of {stage.latency.mean_s:.3g} s (mean), {stage.window} at once "
                    f"(stages.{stage.name}.max_parallel_requests)"
                )
                yield self._resource(f"concurrency of stage {stage.name}", detail, seconds, [stage])

    def _slots(self) -> Iterable[Resource]:
        def slots(label: str) -> int | None:
            return self._deployments[label].slots

        timed = [stage for stage in self._busy if stage.latency is not None]
        for labels, stages in _deployment_sets(timed, lambda label: slots(label) is not None):
            total = sum(slots(label) or 0 for label in labels)
            requests = sum(map(self.requests, stages))
            work = sum(self.requests(stage) * stage.latency.mean_s for stage in stages if stage.latency)
            detail = (
                f"{counted(requests, 'request')}, {total} at once (deployments.{_key(labels)}.max_parallel_requests)"
            )
            yield self._resource(
                f"max_parallel_requests of {_deployment_names(labels)}",
                detail,
                _rounds(work, requests, total, stages),
                stages,
            )

    def _simulator(self) -> Iterable[Resource]:
        service = self._service
        if service is None:
            return
        stages = [stage for stage in self._busy if all(self._deployments[name].embedded for name in stage.deployments)]
        requests = sum(map(self.requests, stages))
        if not requests:
            return
        if service.capacity is not None:
            held = [(stage, stage.latency.hold_s) for stage in stages if stage.latency and stage.latency.hold_s]
            work = sum(self.requests(stage) * seconds for stage, seconds in held)
            if held:
                at_work = [stage for stage, _ in held]
                seconds = _rounds(work, requests, service.capacity, at_work)
                detail = f"{counted(requests, 'request')}, {service.capacity} served at once (simulator.capacity)"
                yield self._resource("capacity of the simulator", detail, seconds, at_work)
        for unit, quota, amount in (
            ("rpm", service.rpm, float(requests)),
            ("tpm", service.tpm, sum(_tokens(stage) or 0.0 for stage in stages)),
        ):
            if quota is not None:
                seconds = math.floor(max(amount - 1, 0) / quota) * 60.0  # a minute's quota at once, then wait a minute
                detail = f"{counted(round(amount), _unit_name(unit))}, {quota:,.0f} in any minute (simulator.{unit})"
                yield self._resource(f"{unit} of the simulator", detail, seconds, stages, drains=True)
        seconds = requests / SIMULATOR_REQUESTS_PER_S
        yield self._resource("the simulator's own speed", f"{counted(requests, 'request')}", seconds, stages)

    def _client(self) -> Iterable[Resource]:
        requests = sum(map(self.requests, self._busy))
        if requests:
            speed = min(CLIENT_REQUESTS_PER_S * max(self._workers, 1), HUB_REQUESTS_PER_S)
            by = f" by {counted(self._workers, 'worker')}" if self._workers else ""
            if self._workers * CLIENT_REQUESTS_PER_S > HUB_REQUESTS_PER_S:
                by += "; the process that stores them takes no more, however many workers there are"
            detail = f"{counted(requests, 'request')}, some {speed:,.0f} a second{by}"
            yield self._resource(CLIENT, detail, requests / speed, self._busy)

    def _quota_sets(self, unit: str) -> Iterable[tuple[list[QuotaFacts], list[StageFacts]]]:
        """Sets of quotas that limit some stages together, for a unit ``rpm``, ``tpm``, ``rpd`` or ``tpd``."""

        def quota(label: str) -> QuotaFacts | None:
            name = self._deployments[label].quota
            found = None if name is None else self._quotas[name]
            return found if found is not None and getattr(found, unit) is not None else None

        seen = set()
        for labels, stages in _deployment_sets(self._busy, lambda label: quota(label) is not None):
            names = {found.name: found for label in labels if (found := quota(label)) is not None}
            key = (frozenset(names), frozenset(stage.name for stage in stages))
            if key not in seen:
                seen.add(key)
                yield list(names.values()), stages

    def _amount(self, unit: str, stages: Sequence[StageFacts]) -> float | None:
        """The stages' requests or tokens, whichever the unit counts; ``None`` if their tokens are unknown."""
        if unit.startswith("r"):
            return float(sum(map(self.requests, stages)))
        tokens = [_tokens(stage) for stage in stages]
        return None if None in tokens else sum(token or 0.0 for token in tokens)

    def _rates(self) -> Iterable[Resource]:
        for unit, burst in (("rpm", "max_request_burst"), ("tpm", "max_token_burst")):
            for quotas, stages in self._quota_sets(unit):
                amount = self._amount(unit, stages)
                if amount is None:
                    continue
                rate = sum(steady_rate(getattr(quota, unit), getattr(quota, burst)) for quota in quotas)
                first = sum(max(getattr(quota, burst) or 0.0, 1.0) for quota in quotas)
                limit = sum(getattr(quota, unit) for quota in quotas)
                detail = f"{counted(round(amount), _unit_name(unit))}, {limit:,.0f} a minute"
                seconds = max(amount - first, 0.0) / rate
                yield self._resource(f"{unit} of {_quota_names(quotas)}", detail, seconds, stages, drains=True)

    def _daily_quotas(self, job_s: float) -> Iterable[Resource]:
        """Daily quotas that the rest of today does not satisfy: wait until midnight, whole days, and part of the last.

        The part of the last day is that share of ``job_s``, the job's duration without daily quotas.
        """
        for unit in ("rpd", "tpd"):
            for quotas, stages in self._quota_sets(unit):
                amount = self._amount(unit, stages)
                if amount is None:
                    continue
                limit = sum(getattr(quota, unit) for quota in quotas)
                used = sum(quota.used_requests if unit == "rpd" else quota.used_tokens for quota in quotas)
                left = max(limit - used, 0.0)
                if amount <= left:
                    continue
                later = math.ceil((amount - left) / limit - 1e-9)
                last_day = (amount - left - (later - 1) * limit) / amount
                days = later + (left > 0)
                seconds = self._until_midnight_s + (later - 1) * DAY_S + last_day * job_s
                detail = f"{counted(round(amount), _unit_name(unit))}, {limit:,.0f} a day, {used:,.0f} used today"
                found = self._resource(f"{unit} of {_quota_names(quotas)}", detail, seconds, stages)
                yield replace(found, days=days)


def helpful_workers(found: Estimate) -> int:
    """How many workers would make a job shorter that one process sends; 0: none would, or not by much.

    They take seconds to start, and the process that stores what they send is a bound as well.
    """
    client = next((resource for resource in found.resources if resource.name == CLIENT), None)
    if client is None or found.resources[0] is not client or client.seconds < WORTH_WORKERS_S:
        return 0
    others = max((resource.seconds for resource in found.resources if resource is not client), default=0.0)
    most = round(HUB_REQUESTS_PER_S / CLIENT_REQUESTS_PER_S)
    return most if not others else min(math.ceil(client.seconds / others), most)


def _longest(resources: Iterable[Resource]) -> float:
    return max((resource.wall_s for resource in resources), default=0.0)


def _rounds(work_s: float, requests: int, at_once: int, stages: Sequence[StageFacts]) -> float:
    """Seconds for ``work_s`` seconds of requests, ``at_once`` at a time; the last slow ones leave some slots idle."""
    slowest = max(map(_p95, stages))
    if requests <= at_once:
        return slowest
    mean = work_s / requests
    return max(work_s / at_once + max(slowest - mean / 2, 0.0) * (1 - 1 / at_once), slowest)


def _p95(stage: StageFacts) -> float:
    return 0.0 if stage.latency is None else stage.latency.p95_s


def _tokens(stage: StageFacts) -> float | None:
    """Prompt and completion tokens of all of a stage's rows; ``None`` if unknown."""
    if stage.prompt_tokens is None or stage.completion_tokens is None:
        return None
    return (stage.prompt_tokens + stage.completion_tokens) * (stage.rows or 0)


def _deployment_sets(
    stages: Sequence[StageFacts], limited: Callable[[str], bool]
) -> Iterable[tuple[tuple[str, ...], list[StageFacts]]]:
    """Sets of limited deployments, each with the stages that use no deployment outside it.

    The stages' load has to fit into the sum of the set's limits. Checking the unions of the stages' own sets is enough:
    by max-flow min-cut, no other set is tighter. A set with an unlimited deployment is no bound, and is left out.
    """
    kinds = {frozenset(stage.deployments) for stage in stages}
    kinds = {kind for kind in kinds if all(map(limited, kind))}
    unions = set(kinds)
    if len(kinds) <= _MOST_SETS:
        for size in range(2, len(kinds) + 1):
            unions |= {frozenset().union(*chosen) for chosen in itertools.combinations(kinds, size)}
    elif kinds:
        unions.add(frozenset().union(*kinds))
    for union in sorted(unions, key=lambda labels: (len(labels), sorted(labels))):
        yield tuple(sorted(union)), [stage for stage in stages if set(stage.deployments) <= union]


def _unit_name(unit: str) -> str:
    return "request" if unit.startswith("r") else "token"


def _key(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else "{" + ",".join(labels) + "}"


def _deployment_names(labels: Sequence[str]) -> str:
    return f"deployment {labels[0]}" if len(labels) == 1 else f"deployments {', '.join(labels)} together"


def _quota_names(quotas: Sequence[QuotaFacts]) -> str:
    names = sorted(quota.name for quota in quotas)
    return names[0] if len(names) == 1 else f"{', '.join(names)} together"
