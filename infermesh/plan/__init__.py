"""Plan a job before it is run: requests, cost, duration, and the bottleneck.

:func:`make_plan` gathers the facts without sending anything, and :func:`estimate` computes the rest from them.
"""

from infermesh.plan.estimate import Estimate, Resource, StageEstimate, estimate
from infermesh.plan.facts import DeploymentFacts, Latency, QuotaFacts, ServiceFacts, StageFacts
from infermesh.plan.gather import Options, Plan, make_plan

__all__ = [
    "DeploymentFacts",
    "Estimate",
    "Latency",
    "Options",
    "Plan",
    "QuotaFacts",
    "Resource",
    "ServiceFacts",
    "StageEstimate",
    "StageFacts",
    "estimate",
    "make_plan",
]
