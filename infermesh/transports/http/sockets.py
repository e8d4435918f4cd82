"""Closing the connections of requests that were cancelled.

pyreqwest (0.15) detaches a request whose task is cancelled: the connection stays open, and the server works on, until
the answer comes or the request's timeout strikes, also after its client is closed. So each HTTP client gets keep-alive
settings of its own, harmless as such, by which its sockets can be told among the process's, and shut down.

Where the operating system cannot list a process's descriptors (Windows), such requests run to their timeout.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from typing import NamedTuple

__all__ = ["Mark", "close_marked", "next_mark"]

_numbers = count()
# macOS calls the idle time TCP_KEEPALIVE; Python names it so from 3.10 on.
_IDLE_OPTION: int | None = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)


class Mark(NamedTuple):
    """The keep-alive settings of one client's sockets, in seconds."""

    idle_s: int
    interval_s: int


def next_mark() -> Mark:
    """A mark that no recent client of this process has: 8,192 before the first comes again."""
    number = next(_numbers)
    return Mark(30 + number % 128, 10 + number // 128 % 64)


def close_marked(mark: Mark) -> int:
    """Shut down this process's TCP connections that bear ``mark``; returns how many."""
    try:
        descriptors = [int(name) for name in os.listdir("/dev/fd")]
    except (OSError, ValueError):
        return 0
    return sum(_shut_down(descriptor, mark) for descriptor in descriptors)


def _shut_down(descriptor: int, mark: Mark) -> bool:
    try:
        # The duplicate pins the connection: the descriptor itself may be closed, and reused, by its owner at any time.
        duplicate = os.dup(descriptor)
    except OSError:
        return False
    try:
        connection = socket.socket(fileno=duplicate)
    except OSError:  # not a socket
        os.close(duplicate)
        return False
    with connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return False
        try:
            if _mark_of(connection) != mark:
                return False
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True


def _mark_of(connection: socket.socket) -> Mark | None:
    if _IDLE_OPTION is None or not connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return None
    return Mark(
        connection.getsockopt(socket.IPPROTO_TCP, _IDLE_OPTION),
        connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    )
