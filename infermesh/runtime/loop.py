"""The event loop: uvloop's where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from infermesh.runtime.garbage import rare_collections

T = TypeVar("T")


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new loop, uvloop's where it is installed, with rare garbage collections meanwhile."""
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
