"""Which deployment is asked next: slots, health, and the routing strategies.

Slots and health belong to the deployment, which several models may share; a router is one model's view of some of them.
A slot is leased before the limiter is asked: whoever else wanted the slot would stand behind in the line of the same
limiter, so that a lease which waits there keeps nobody from sending. The other order would hoard permissions while
slots are taken, and spend them in a burst.
"""

from infermesh.dispatch.deployment import Deployment, Lease
from infermesh.dispatch.health import Health
from infermesh.dispatch.router import Router

__all__ = ["Deployment", "Health", "Lease", "Router"]
