"""The gate before a stage, by itself: what it keeps in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from infermesh.runs.gate import _BATCH, _MOST_HELD, Gate
from infermesh.stages import Prepared, Stage
from infermesh.store import Row
from infermesh.store.known import KnownAnswers
from infermesh.types import Request
from infermesh.wire.requests import payload_bytes


class _Asking:
    """A stage whose requests are as large as its rows say."""

    name = "answers"
    mapper = None

    def prepare(self, context: Mapping[str, Any]) -> Prepared[Request]:
        request = Request("chat_completion", {"messages": "x" * context["size"]})
        payload_bytes(request)
        return Prepared(request, "key")


class _Unknown:
    def knows(self, stage: str) -> bool:
        return True

    def look_up(self, stage: str, keys: list[str]) -> list[None]:
        return [None] * len(keys)


def _gate() -> Gate:
    return Gate(cast(Stage, _Asking()), None, cast(KnownAnswers, _Unknown()))


async def _through(gate: Gate, count: int, size: int) -> list[Row]:
    rows = [Row(number, {"size": size}, None, {}) for number in range(count)]
    left, _ = await gate.split(rows, lambda: False)
    return left


def _send(gate: Gate, rows: list[Row]) -> None:
    for row in rows:
        assert row.prepared is not None
        gate.taken(row.prepared.pop("answers"))


async def _waits(gate: Gate) -> asyncio.Future[int]:
    waiting = asyncio.ensure_future(gate.ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def test_large_requests_wait_for_those_before_them() -> None:
    """A request of ``size`` characters is held twice: its payload, and that as JSON."""
    gate, size = _gate(), _MOST_HELD // 40
    first = await _through(gate, await gate.ready(), size)
    assert len(first) == 32
    waiting = await _waits(gate)
    _send(gate, first[:17])
    assert await asyncio.wait_for(waiting, 5) in (4, 5)  # 15 of them are held, which leaves room for 5 of 20
    second = await _through(gate, 5, size)
    waiting = await _waits(gate)
    _send(gate, [*first[17:], *second])
    assert await asyncio.wait_for(waiting, 5) in (19, 20)


async def test_small_requests_come_in_large_batches() -> None:
    gate = _gate()
    await _through(gate, await gate.ready(), 100)
    assert await gate.ready() == _BATCH


async def test_nothing_waits_after_a_stop() -> None:
    gate = _gate()
    await _through(gate, 1, _MOST_HELD)
    waiting = await _waits(gate)
    gate.stop()
    await asyncio.wait_for(waiting, 5)
