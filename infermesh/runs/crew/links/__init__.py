"""Ways to reach workers. A link starts one and carries one call at a time; a new kind of engine is a new file here."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Link", "Links", "LostError"]


class LostError(Exception):
    """The worker is gone, or does not answer; the message says how that was noticed."""


class Link(Protocol):
    """The hub's end of a worker.

    Attributes
    ----------
    name
        What the user calls the worker: its process and where it runs.
    """

    name: str

    async def call(self, message: Any, timeout_s: float) -> Any:
        """Send a message and return the answer.

        Raises
        ------
        LostError
            The worker has ended, or has not answered in time.
        """
        ...

    async def end(self) -> None:
        """End the worker, by force if it lives, and release what it took. It may be called twice."""
        ...


class Links(Protocol):
    """What starts the workers of a session."""

    async def open(self, workers: int) -> tuple[int, int]:
        """Reach the place where workers run; of so many that are wanted, how many to start, and how many can be now.

        Raises
        ------
        ConfigError
            It cannot be reached, or does not suit the run.
        """
        ...

    async def start(self, number: int) -> Link:
        """Start worker ``number``; its imports go on while the first call waits."""
        ...

    async def aclose(self) -> None:
        """Leave that place; all workers have been ended."""
        ...
