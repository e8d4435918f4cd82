"""A wave whose rows are sent by workers: in place of a Runner, for the session."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

from infermesh.runs.crew.counts import take_back
from infermesh.runs.crew.hub import Hub, Member
from infermesh.runs.crew.leases import LeaseBook
from infermesh.runs.crew.messages import SentRow, WaveStart, sent_row
from infermesh.runs.row import StageOutputs, settled_row, take_stored
from infermesh.stages.graph import StageGraph
from infermesh.store import PendingRows, Row

__all__ = ["CrewWave"]

_MOST, _MOST_BYTES = 256, 4_000_000  # of the rows in a lease
_AHEAD = 1024  # rows that wait for a worker, at least, while there are more to read
_AHEAD_BYTES = 64_000_000  # fewer, where they are longer; the same holds for the rows that a worker has in hand
WORKER_DIED = "worker_died"


class CrewWave:
    """The rows of one wave: read ahead, leased, and counted until all are finished.

    Parameters
    ----------
    hub
        Whose workers run it.
    number
        Of the wave in the pipeline.
    reread
        Reads chosen rows again, with the states that are stored now.
    """

    def __init__(
        self,
        hub: Hub,
        number: int,
        graph: StageGraph,
        rows: PendingRows,
        reread: Callable[[Sequence[int]], PendingRows],
        *,
        stale: Collection[str],
        keep_errors: bool,
        scope: Collection[str] | None,
        known: Collection[str],
    ) -> None:
        self.number = number
        self.book = LeaseBook()
        self.closing = False
        self._hub = hub
        self._graph = graph
        self._source = rows
        self._chunks = iter(rows.chunks)
        self._left = len(rows.chunks) * rows.size  # rows that are not read yet, at most
        self._reread = reread
        self._stale, self._keep_errors = stale, keep_errors
        self._rows: dict[int, Row] = {}  # those that wait for a worker
        self._all_read = not rows.chunks
        self._reading: asyncio.Task[None] | None = None
        self._recovering = 0
        self._outputs = {name: StageOutputs(stage.table, graph.needed[name]) for name, stage in graph.stages.items()}
        self._in_bytes = max(_AHEAD_BYTES // rows.row_bytes, 1)
        self._most = min(_MOST, max(_MOST_BYTES // rows.row_bytes, 1))
        self.resized()
        self.start = WaveStart(number, rows.row_bytes, sorted(stale), keep_errors, scope, sorted(known))

    def resized(self) -> None:
        """Lease as many rows as the stages' windows need, after one was changed."""
        self._windows = sum(stage.window * stage.batch_size for stage in self._graph.stages.values())

    @property
    def _hold(self) -> int:
        """Rows that a worker has in hand, of its share of the windows."""
        share = math.ceil(self._windows / self._hub.workers)
        return min(math.ceil(1.5 * share), max(self._in_bytes, share + 1))

    async def run(self, rows: PendingRows) -> None:
        """Take every pending row through its stages; return when all are finished, or a stop has drained.

        Raises
        ------
        BaseException
            What ended a worker's Runner, or reading rows.
        """
        hub = self._hub
        if self._all_read:
            return
        hub.wave = self
        hub.begin()
        try:
            while not self._is_over():
                hub.changed.clear()
                self._read_ahead()
                if hub.failure is not None:
                    raise hub.failure
                self.closing = self.closing or self._is_finished()
                if not self._is_over():
                    await hub.changed.wait()
        finally:
            if self._reading is not None:
                await asyncio.wait([self._reading])  # a thread cannot be cancelled
            hub.wave = None

    def _is_finished(self) -> bool:
        return self._all_read and self.book.is_empty and not self._recovering

    def _is_over(self) -> bool:
        hub = self._hub
        if hub.failure is not None:
            return False
        over = all(member.told is None for member in hub.members.values())
        return over and (self.closing or (hub.stopping and not self._recovering))

    def stop(self) -> None:
        """Lease no more rows; those in hand that are not sent stay pending."""
        self._hub.stop()

    @property
    def in_flight(self) -> int:
        """How many rows have a request sent, or waiting to be."""
        return sum(stage.in_flight for stage in self._hub.stats.stages.values())

    def committed(self, rows: int = 0) -> None:
        """Note that so many rows are committed."""
        self._hub.committed(rows)

    def _read_ahead(self) -> None:
        if self._reading is not None and self._reading.done():
            task, self._reading = self._reading, None
            task.result()
        ahead = min(max(_AHEAD, 2 * self._hold * self._hub.workers), self._in_bytes)
        if self._reading is None and not self._all_read and not self._hub.stopping and self.book.waiting < ahead:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda _: self._hub.changed.set())

    async def _read(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            self._all_read, self._left = True, 0
            return
        rows = await asyncio.to_thread(self._source.read, chunk)
        self._left = max(self._left - self._source.size, 0)
        self._rows.update((row.row_id, row) for row in rows)
        self.book.offer(row.row_id for row in rows)

    def lease(self, member: Member) -> tuple[list[SentRow], int]:
        """The rows for a worker's next call, as many as it needs to be busy until the one after; and when to call back.

        A worker has a window and a half in hand, and what it finishes while it waits to be called: not more, since what
        it has is sent again if the hub is lost. It calls back with a third of that left, while there are more.
        """
        hold = min(self._hold + math.ceil(2 * member.between), max(self._in_bytes, self._hold))
        share = math.ceil((self.book.waiting + self._left) / (2 * self._hub.workers))
        found: list[SentRow] = []
        while (most := min(self._most, share, hold - self.book.held(member.number))) > 0 or not found:
            lease = self.book.take(member.number, most)
            if lease is None:
                break
            found += [sent_row(self._rows.pop(row_id)) for row_id in lease.rows]
        if found:
            self._hub.changed.set()  # there may be room to read on
        return found, hold // 3 if self.book.waiting else 0

    async def recover(self, member: Member) -> None:
        """Give the rows of a lost worker to others, once what it has said of them is stored."""
        hub, number = self._hub, member.number
        self._recovering += 1
        try:
            said = hub.put
            while hub.committed_rows < said and hub.failure is None and hub.writer.failure is None:
                hub.changed.clear()
                await hub.changed.wait()
            ids = self.book.rows_of(number)
            rows = await asyncio.to_thread(self._again, ids)
            take_back(
                hub.stats, member.half_done, rows, self._outputs, stale=self._stale, keep_errors=self._keep_errors
            )
            lost = self.book.lost(number)
            self._rows |= rows
            for row_id in lost.given_up:
                self._give_up(self._rows.pop(row_id))
        finally:
            self._recovering -= 1
            hub.changed.set()

    def _again(self, ids: Sequence[int]) -> dict[int, Row]:
        if not ids:
            return {}
        reader = self._reread(ids)
        return {row.row_id: row for chunk in reader.chunks for row in reader.read(chunk)}

    def _give_up(self, row: Row) -> None:
        """Store a row as an error that no worker has survived, at each stage that it has not settled."""
        hub = self._hub
        words = f"row {row.row_id} has ended every worker that had it, the last ones with no other row in hand"
        hub.note(f"{words}: it is an error, {WORKER_DIED}")
        failed: dict[str, str] = {}
        for name, stage in self._graph.stages.items():
            if take_stored(row, name, self._outputs[name], stale=name in self._stale, keep_errors=self._keep_errors):
                continue
            counts = hub.stats.stages[name]
            upstream = self._graph.requires[name] & failed.keys()
            status, error = "error", (WORKER_DIED, words)
            if upstream:
                status = "skipped"
                error = "upstream", "; ".join(f"{other}: {failed[other]}" for other in sorted(upstream))
            failed[name] = words
            blank = (None,) * len(stage.table.outputs)
            stored = settled_row(row.row_id, status, blank, error, None, None, None)
            hub.writer.put(name, stored, replaces=name in row.states)
            hub.put += 1
            hub.stats.settled += 1
            if upstream:
                counts.skipped += 1
            else:
                counts.fail(WORKER_DIED, words, lasting=False)
                hub.stats.errors += 1
        hub.stats.rows += 1
