"""The one way in which threads are started here, so that none dies in silence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("infermesh")


def start_thread(
    name: str, target: Callable[[], object], *, died: Callable[[BaseException], object] | None = None
) -> threading.Thread:
    """Start a daemon thread, which does not keep the process.

    Parameters
    ----------
    name
        The thread's name: it stands in the log where it dies.
    died
        Called in the thread with what it died of, whatever that is: an exit and an interrupt too. ``None``: its work is
        missed by nobody, and the log has a line.
    """

    def run() -> None:
        try:
            target()
        except BaseException as error:
            logger.error("the thread %s has died: %s: %s", name, type(error).__name__, error, exc_info=error)
            if died is not None:
                died(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
