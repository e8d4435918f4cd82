"""What a simulator has seen and done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, get_args

import orjson

from infermesh.simulator.settings import Endpoint

__all__ = ["BatchStats", "Stats", "Ticket", "fingerprint"]


def fingerprint(data: dict[str, Any]) -> int:
    """Return 64 bits of the SHA-256 of a request's content. The model and the order of keys do not count."""
    content = {
        key: sha256(value).hexdigest() if isinstance(value, bytes) else value
        for key, value in data.items()
        if key != "model"
    }
    digest = sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
    return int.from_bytes(digest[:8], "big")


class Load:
    """How many requests are in flight."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def enter(self) -> None:
        """Count a request that has arrived."""
        self.now += 1
        self.most = max(self.most, self.now)

    def leave(self) -> None:
        """Count a request that was answered, or whose client has left."""
        self.now -= 1

    def as_dict(self) -> dict[str, int]:
        """Return the counts by their public names."""
        return {"in_flight": self.now, "max_in_flight": self.most}


class EndpointStats:
    """The counts of one endpoint."""

    def __init__(self) -> None:
        self.load = Load()
        self.reset()

    def reset(self) -> None:
        """Start to count anew. Requests in flight stay."""
        self.load.most = self.load.now
        self.received = 0
        self.answered = 0
        self.abandoned = 0
        self.status: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.repeated = 0
        self.seen: set[int] = set()

    def as_dict(self) -> dict[str, Any]:
        """Return the counts by their public names."""
        return {
            "received": self.received,
            "answered": self.answered,
            "abandoned": self.abandoned,
            **self.load.as_dict(),
            "status": {str(code): count for code, count in sorted(self.status.items())},
            "faults": dict(sorted(self.faults.items())),
            "unique_requests": len(self.seen),
            "repeated_requests": self.repeated,
        }


class BatchStats:
    """The counts of batches and of their lines, over both providers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start to count anew. Batches stay."""
        self.created = 0
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._failed = 0
        self._seen: Counter[int] = Counter()

    def sent(self, custom_ids: Iterable[str]) -> None:
        """Count the lines of a batch that is valid."""
        self._sent.update(custom_ids)

    def answered(self, custom_id: str, status: int, content: int) -> None:
        """Count a line that was worked on, whether or not it comes back; `content` is its fingerprint."""
        if status != 200:
            self._failed += 1
            return
        self._answered[custom_id] += 1
        self._seen[content] += 1

    def as_dict(self, lines: bool = False) -> dict[str, Any]:
        """Return the counts by their public names; with `lines`, those of each custom_id too."""
        report: dict[str, Any] = {
            "created": self.created,
            "calls": dict(sorted(self.calls.items())),
            "faults": {name: count for name, count in sorted(self.faults.items()) if count},
            "lines": self._sent.total(),
            "repeated_lines": self._sent.total() - len(self._sent),
            "answered_lines": self._answered.total(),
            "failed_lines": self._failed,
            "repeated_answers": self._answered.total() - len(self._answered),
            "unique_requests": len(self._seen),
            "repeated_requests": self._seen.total() - len(self._seen),
        }
        if lines:
            report["by_custom_id"] = {
                name: {"sent": count, "answered": self._answered[name]} for name, count in sorted(self._sent.items())
            }
        return report


class Stats:
    """The counts of a simulator."""

    def __init__(self) -> None:
        self.batches = BatchStats()
        self._endpoints: dict[Endpoint, EndpointStats] = {endpoint: EndpointStats() for endpoint in get_args(Endpoint)}
        self._load = Load()

    def ticket(self, endpoint: Endpoint) -> Ticket:
        """Count a request that has arrived."""
        return Ticket(self._endpoints[endpoint], self._load)

    def reset(self) -> None:
        """Start to count anew. Requests in flight stay."""
        self._load.most = self._load.now
        self.batches.reset()
        for stats in self._endpoints.values():
            stats.reset()

    def report(self, hashes: bool = False, lines: bool = False) -> dict[str, Any]:
        """Return the counts of each endpoint, of all together and of batches.

        With `hashes`, those of the answered requests too; with `lines`, how often each custom_id of a batch was sent
        and answered.
        """
        listed = {name: stats.as_dict() for name, stats in self._endpoints.items()}
        totals: dict[str, Any] = EndpointStats().as_dict()
        for counts in listed.values():
            for key, value in totals.items():
                if isinstance(value, dict):
                    totals[key] = dict(sorted((Counter(value) + Counter(counts[key])).items()))
                else:
                    totals[key] = value + counts[key]
        totals |= self._load.as_dict()
        if hashes:
            for name, stats in self._endpoints.items():
                listed[name]["answered_hashes"] = [f"{value:016x}" for value in sorted(stats.seen)]
        return {"endpoints": listed, "totals": totals, "batches": self.batches.as_dict(lines)}


class Ticket:
    """One request in flight. It counts as abandoned if it is closed before it is settled."""

    __slots__ = ("_loads", "_open", "_stats", "fingerprint")

    def __init__(self, stats: EndpointStats, total: Load) -> None:
        self._stats = stats
        self._loads = (stats.load, total)
        self._open = True
        self.fingerprint: int | None = None
        stats.received += 1
        for load in self._loads:
            load.enter()

    def fault(self, name: str) -> None:
        """Count a fault that happens to the request."""
        self._stats.faults[name] += 1
        # The answer is broken, so a client that asks again does not repeat itself.
        self.fingerprint = None

    def settle(self, status: int | None) -> None:
        """Count the answer, just before it is sent; None if the socket is closed instead."""
        if not self._open:
            return
        self._open = False
        for load in self._loads:
            load.leave()
        stats = self._stats
        if status is None:
            return
        stats.answered += 1
        stats.status[status] += 1
        if status == 200 and self.fingerprint is not None:
            if self.fingerprint in stats.seen:
                stats.repeated += 1
            stats.seen.add(self.fingerprint)

    def close(self) -> None:
        """Count the request as abandoned, unless it is settled."""
        if self._open:
            self._stats.abandoned += 1
            self.settle(None)
