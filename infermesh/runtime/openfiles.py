"""File descriptors: the soft limit on open files is raised to what is wanted of it, as far as the hard one goes.

Every request in flight holds a socket. Systems begin with 256 or 1,024, and let a process have many more if it asks.
"""

from __future__ import annotations

import contextlib
import sys

__all__ = ["SPARE", "allow_files", "allow_requests"]

SPARE = 256  # what a process needs besides: databases, logs, its own pipes, who asks a live run


def allow_files(wanted: int) -> int | None:
    """Let the process open ``wanted`` files, or as many as the system allows; never fewer than before.

    Returns
    -------
    int or None
        How many it may open now, where that is fewer than wanted; ``None`` where all is well, and on Windows, which has
        no such limit.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(ValueError, OSError):  # a Mac has a bound of its own below "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = limit
    return None if soft == resource.RLIM_INFINITY or soft >= wanted else soft


def allow_requests(at_once: int) -> str | None:
    """Let so many requests be in flight; where the system does not allow it, that in words, with what to do."""
    wanted = at_once + SPARE
    allowed = allow_files(wanted)
    if allowed is None:
        return None
    return (
        f"{at_once:,} requests at once need {wanted:,} file descriptors, and the system allows this process "
        f"{allowed:,}: requests beyond that will fail. Raise its hard limit (ulimit -n {wanted}, as root or in "
        f"limits.conf), or lower max_parallel_requests to {max(allowed - SPARE, 1):,}"
    )
