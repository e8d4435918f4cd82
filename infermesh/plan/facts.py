"""The facts that a plan is computed from: stages, deployments, quotas, the embedded simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infermesh.limits import Limits

__all__ = ["Certainty", "DeploymentFacts", "Latency", "QuotaFacts", "ServiceFacts", "StageFacts"]

Certainty = Literal["exact", "estimated", "at most", "unknown"]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a request takes once it is sent, in seconds.

    ``source`` says where the figures come from. ``hold_s`` is how long a request occupies the embedded simulator's
    ``capacity``; ``None`` for other servers.
    """

    mean_s: float
    p95_s: float
    source: str
    hold_s: float | None = None


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage: how many rows it will send, and their size, cost and latency. ``None`` is unknown.

    Attributes
    ----------
    rows, certainty
        Rows to send, and how sure that number is.
    window, batch
        Requests in flight at once, and rows per request.
    deployments
        Labels; empty for a stage that sends no request.
    requires
        The stages it reads.
    prompt_tokens, completion_tokens, cost_usd
        Means per row.
    tokens_source
        Where the token counts come from, in words.
    problem
        Why sample rows would not be sent, or could not be rendered; ``None`` if there is no such row.
    note
        What was assumed besides; ``None``: nothing.
    batched
        Whether its requests go through a batch API: ``cost_usd`` is at its price, and neither limits nor latencies say
        how long it takes.
    live_cost_usd
        The mean per row of live requests, where it is batched.
    """

    name: str
    kind: str
    rows: int | None
    certainty: Certainty
    window: int = 1
    batch: int = 1
    deployments: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    tokens_source: str = ""
    cost_usd: float | None = None
    latency: Latency | None = None
    problem: str | None = None
    note: str | None = None
    batched: bool = False
    live_cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """One deployment: its ``max_parallel_requests``, the name of its quota, and whether it is the embedded simulator.

    ``None`` is no limit.
    """

    label: str
    slots: int | None = None
    quota: str | None = None
    embedded: bool = False


@dataclass(frozen=True, slots=True)
class QuotaFacts(Limits):
    """The limits of a deployment or an account, and their use in the present UTC day. ``None`` is no limit."""

    name: str
    used_requests: float = 0.0
    used_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """The embedded simulator's own limits. ``None`` is no limit."""

    capacity: int | None = None
    rpm: float | None = None
    tpm: float | None = None
