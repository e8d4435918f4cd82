"""File descriptors: the soft limit on open files is raised as far as the hard limit allows.

Every request in flight holds a socket. Systems begin with a soft limit of 256 or 1,024 open files, and let a process
raise it itself.
"""

from __future__ import annotations

import contextlib
import sys

__all__ = ["SPARE", "allow_files", "allow_requests"]

SPARE = 256  # for everything else: databases, logs, pipes, queries of a live run


def allow_files(wanted: int) -> int | None:
    """Let the process open ``wanted`` files, or as many as the system allows; never fewer than before.

    Returns
    -------
    int or None
        How many it may open now, where that is fewer than wanted. ``None`` where it is not, and on Windows, which has
        no such limit.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses more than its own bound, below "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            soft = limit
    return None if soft == resource.RLIM_INFINITY or soft >= wanted else soft


def allow_requests(at_once: int) -> str | None:
    """Raise the limit for ``at_once`` requests in flight. Returns a warning where the system allows fewer."""
    wanted = at_once + SPARE
    allowed = allow_files(wanted)
    if allowed is None:
        return None
    return (
        f"sending {at_once:,} at once takes {wanted:,} file descriptors, and the system allows this process "
        f"{allowed:,}: requests beyond that will fail. Raise its hard limit (ulimit -n {wanted}, as root or in "
        f"limits.conf), or lower max_parallel_requests to {max(allowed - SPARE, 1):,}"
    )
