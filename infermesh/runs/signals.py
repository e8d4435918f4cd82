"""The signals that stop a run: while it loads its source, and while it is at work."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from infermesh.runs.control import Control
from infermesh.runtime.signals import Wishes

__all__ = ["interrupting", "stopping"]


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Within the block, SIGTERM and a closed terminal raise ``KeyboardInterrupt``, as Ctrl-C does.

    It is for the time before the first request. A run that goes on drains at each. A second signal that belongs to the
    first is passed over, since it would end the clearing up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: usual for number, usual in ours.items() if signal.getsignal(number) is usual}
    wishes = Wishes()

    def interrupt(number: int, frame: Any) -> None:
        if wishes.another():
            signal.default_int_handler(number, frame)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopping(control: Control, stop: Callable[[], None], drain: Callable[[], None]) -> Iterator[None]:
    """Within the block, in a running event loop, Ctrl-C, SIGTERM, a closed terminal and ``Control.stop`` stop the run.

    Only Ctrl-C and SIGTERM can be the second stop, the one that drops: shell and kernel may both tell of the same
    closed terminal. Under nohup, which ignores that signal, it stays ignored. Signal handlers can be set in the main
    thread alone; a run in another thread is stopped through its :class:`~infermesh.runs.control.Control`.

    Parameters
    ----------
    stop
        Called for each wish: the second one drops what is in flight.
    drain
        Called for what can be the first wish alone.
    """
    loop = asyncio.get_running_loop()
    wishes = Wishes()
    handlers: dict[int, Callable[[], None]] = {}

    def take(act: Callable[[], None]) -> None:
        if wishes.another():
            act()

    with control.on_stop(functools.partial(loop.call_soon_threadsafe, drain)):
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                handlers[signal.SIGHUP] = drain
        for number, handler in handlers.items():
            loop.add_signal_handler(number, take, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
