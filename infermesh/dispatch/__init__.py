"""One request, from the caller to an answer: retry → route → limit → send; logical models, deployments, health, prices.

Slots and health belong to the deployment, which several models may share. A router is one model's view of some of them.

A slot is leased before the limiter is asked for permission. A lease that waits for the limiter keeps nobody from
sending: any other request for that slot would have to wait for the same limiter, behind it. The other order would
gather permissions while all slots are taken, and spend them in a burst.
"""

from infermesh.dispatch.deployment import Deployment, Lease
from infermesh.dispatch.router import Router

__all__ = ["Deployment", "Lease", "Router"]
