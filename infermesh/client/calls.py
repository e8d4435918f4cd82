"""What the methods of a client have in common: where they are carried out, and who is told of what settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from infermesh.client.lifetime import ClientLoop
from infermesh.client.operations import Operations

__all__ = ["Calls", "OnProgress", "OnResult"]

R = TypeVar("R")
OnResult = Callable[[int, R | None, BaseException | None], object]
OnProgress = Callable[[int, int | None], object]


class Calls:
    """The base of a client's methods: the three operations, and the loop on which they run."""

    _operations: Operations
    _loop: ClientLoop
