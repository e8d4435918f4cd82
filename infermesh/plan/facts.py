"""What a plan is made from, one object for each thing that takes part in a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infermesh.limits import Limits

__all__ = ["Certainty", "DeploymentFacts", "Latency", "QuotaFacts", "ServiceFacts", "StageFacts"]

Certainty = Literal["exact", "estimated", "at most", "unknown"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that a request takes once it is sent. ``hold_s`` is how long it holds a place of the simulator."""

    mean_s: float
    p95_s: float
    source: str
    hold_s: float | None = None


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage: how many rows it will send, and what a row and a request of it are like.

    ``rows`` is ``None`` where nobody can know it; tokens are per row, and ``batch`` rows travel in a request.
    ``deployments`` is empty for a stage that sends nothing.
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


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """One deployment: requests it takes at once, and the name of the quota that it is under."""

    label: str
    slots: int | None = None
    quota: str | None = None
    embedded: bool = False


@dataclass(frozen=True, slots=True)
class QuotaFacts(Limits):
    """The limits of a deployment or an account, and what today has used of them."""

    name: str
    used_requests: float = 0.0
    used_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What the embedded simulator allows."""

    capacity: int | None = None
    rpm: float | None = None
    tpm: float | None = None
