"""Ask a running simulator for its counts, over HTTP."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

__all__ = ["fetch_stats", "reset_stats"]

_TIMEOUT_S = 10.0


def fetch_stats(url: str, hashes: bool = False, lines: bool = False) -> dict[str, Any]:
    """Return the counts of the simulator at a base URL."""
    return _ask(url, "GET", f"/stats?hashes={hashes:d}&lines={lines:d}")


def reset_stats(url: str) -> None:
    """Set the counts of the simulator at a base URL to zero."""
    _ask(url, "POST", "/stats/reset")


def _ask(url: str, method: str, path: str) -> dict[str, Any]:
    # Not urllib: it would send a loopback address through the machine's proxy.
    address = urlsplit(url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()
