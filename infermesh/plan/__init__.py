"""Plan a job before it is run: requests, cost, duration, and the bottleneck.

:func:`make_plan` gathers the facts without sending anything, and :func:`estimate` computes the rest from them.
"""

from infermesh.plan.estimate import Resource, StageEstimate, estimate
from infermesh.plan.facts import QuotaFacts
from infermesh.plan.gather import Options, Plan, make_plan

__all__ = [
    "Options",
    "Plan",
    "QuotaFacts",
    "Resource",
    "StageEstimate",
    "estimate",
    "make_plan",
]
