"""The event loop: uvloop's where it is installed."""

from __future__ import annotations

import asyncio
from typing import Any

from infermesh.runtime.garbage import rare_collections


def run_loop(main: Any) -> Any:
    """Run a coroutine on a loop of its own, uvloop's where there is one, without hurry in collecting garbage."""
    with rare_collections():
        try:
            import uvloop
        except ImportError:
            return asyncio.run(main)
        else:
            return uvloop.run(main)


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
