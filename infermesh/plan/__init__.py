"""A job before it is run: what it would send, cost and take, and what it would wait for.

:func:`make_plan` gathers the facts and sends nothing; :func:`estimate` makes of them what the job will take.
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
