"""The hub over links that are none: workers in this process that die at any step."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from infermesh.runs.crew import hub as hub_module
from infermesh.runs.crew.hub import Hub
from infermesh.runs.crew.links import Link, LostError
from infermesh.runs.crew.messages import PROTOCOL, Down, Up
from infermesh.runs.crew.wave import CrewWave
from infermesh.runs.stats import RunStats, StageStats
from infermesh.store import Column, Row, StageTable

STAGES = ("a", "b")


class Store:
    """A table for each stage: row_id → how often it was written; all of it is committed a moment later."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.written: dict[str, Counter[int]] = {name: Counter() for name in STAGES}
        self.failure = None
        self.on_commit: Callable[[int], None] = lambda rows: None
        self._queued = 0

    def put(self, table: str, row: tuple[Any, ...], *, replaces: bool = False, size: int = 0) -> None:
        self.written[table][row[0]] += 1
        if not self._queued:
            asyncio.get_running_loop().call_later(0.002, self._commit)
        self._queued += 1

    def _commit(self) -> None:
        queued, self._queued = self._queued, 0
        self.on_commit(queued)

    def is_behind(self, rows: int, size: int) -> bool:
        return False


class Reader:
    """Pending rows in chunks of 50, as ``PendingRows`` gives them."""

    row_bytes, size = 100, 50

    def __init__(self, store: Store, only: Sequence[int] | None = None) -> None:
        self._ids = list(range(store.rows)) if only is None else list(only)
        self._store = store
        self.chunks = list(range(-(-len(self._ids) // self.size)))

    def read(self, chunk: int) -> list[Row]:
        found = []
        for row_id in self._ids[chunk * self.size : (chunk + 1) * self.size]:
            done = {name for name in STAGES if self._store.written[name][row_id]}
            state = SimpleNamespace(status="done", redo=False, outputs={}, error_type=None)
            found.append(Row(row_id, {}, None, cast("Any", dict.fromkeys(done, state))))
        return found


class FakeLink:
    """A worker that settles some stages of some rows at each call, and dies where the dice say so."""

    def __init__(self, number: int, rng: random.Random, store: Store, poison: set[int], deadly: float) -> None:
        self.name = f"worker {number}"
        self._rng, self._store, self._poison, self._deadly = rng, store, poison, deadly
        self._open: dict[int, set[str]] = {}
        self._serial = 0
        self._stats = RunStats({name: StageStats() for name in STAGES})
        self._closed = self._running = False
        self.ended = False

    async def call(self, message: Any, timeout_s: float) -> Any:
        assert not self.ended, "a worker that counts as lost was called"
        if isinstance(message, str):
            return PROTOCOL
        if not isinstance(message, Down):
            return Up(0, PROTOCOL)
        await asyncio.sleep(0.001)
        if self._rng.random() < self._deadly:
            raise LostError("was ended by the dice")
        self._running = self._running or message.wave is not None
        self._closed = self._closed or message.close
        for row_id, _, _, states in message.rows:
            self._open[row_id] = {*STAGES} - states.keys()
        if self._poison & self._open.keys():
            raise LostError("has taken poison")
        return self._settled()

    def _settled(self) -> Up:
        self._serial += 1
        up = Up(self._serial, stats=self._stats)
        rows, finished, half = [], [], {}
        for row_id, left in [*self._open.items()]:
            if self._rng.random() < 0.5:
                continue
            for name in [name for name in STAGES if name in left][: self._rng.randrange(1, 3)]:
                rows.append((name, (row_id,), False, 0))
                left.discard(name)
                self._stats.stages[name].done += 1
                self._stats.settled += 1
            if left:
                half[row_id] = {name: "done" for name in STAGES if name not in left}
            else:
                finished.append(row_id)
                self._stats.rows += 1
                del self._open[row_id]
        up.rows, up.finished, up.half_done = rows, finished, half
        if self._running and self._closed and not self._open:
            up.over, self._running, self._closed = True, False, False
        up.stats = copy.deepcopy(self._stats)  # as it is once it has travelled
        return up

    async def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("seed", range(12))
async def test_rows_are_settled_once_whoever_dies(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_LONGEST_BACKOFF_S", 0.001)
    rng = random.Random(seed)
    store = Store(rng.randrange(1, 300))
    poison = {row for row in range(store.rows) if rng.random() < 0.01}
    stats = RunStats({name: StageStats(total=store.rows) for name in STAGES})
    deadly = rng.choice([0.0, 0.05, 0.2])
    told: list[str] = []
    hub = Hub(
        lambda number, workers: cast("Any", None),
        rng.randrange(1, 5),
        silence_s=1,
        max_lost=10_000,
        links=_Links(rng, store, poison, deadly),
        quotas=cast("Any", _Nothing()),
        shares=cast("Any", _Nothing()),
        writer=cast("Any", store),
        stats=stats,
        known=None,
        note=told.append,
        check=lambda: None,
        stop=told.append,
    )
    store.on_commit = hub.committed
    graph = SimpleNamespace(
        stages={name: _stage(name) for name in STAGES}, needed={"a": [], "b": []}, requires={"a": set(), "b": {"a"}}
    )
    wave = CrewWave(
        hub,
        0,
        cast("Any", graph),
        cast("Any", Reader(store)),
        lambda ids: cast("Any", Reader(store, ids)),
        stale=set(),
        keep_errors=False,
        scope=None,
        known=[],
    )
    await wave.run(cast("Any", None))
    await hub.aclose()
    for name in STAGES:
        assert store.written[name] == Counter(range(store.rows)), "a row is missing, or was settled twice"
        stage = stats.stages[name]
        assert stage.settled == store.rows
        if not deadly:
            assert stage.failed + stage.skipped == len(poison)
    assert stats.rows == store.rows
    given_up = sum("has ended every worker that had it" in line for line in told)
    assert given_up == len(poison) if not deadly else given_up >= len(poison)


def _stage(name: str) -> Any:
    return SimpleNamespace(window=20, batch_size=1, table=StageTable(name, (Column("text", "VARCHAR"),)))


class _Links:
    def __init__(self, *what: Any) -> None:
        self._what = what

    async def open(self, workers: int) -> tuple[int, int]:
        return workers, workers

    async def start(self, number: int) -> Link:
        return FakeLink(number, *self._what)

    async def aclose(self) -> None:
        pass


class _Nothing:
    """No quotas and no windows."""

    def of(self, worker: int) -> Mapping[Any, Any]:
        return {}

    credit = of

    def __getattr__(self, name: str) -> Any:
        return self._anything

    def _anything(self, *_: Any) -> None:
        pass

    async def deal_on(self) -> None:
        pass
