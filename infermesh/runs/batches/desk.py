"""The desk that stands between a run's rows and its providers' batch APIs.

A request that is sent comes here first (:meth:`Route.take`). Where a batch has brought its answer, it gets it. Else it
is written into a batch and its row is parked: the runner forgets it, and admits it again once its batch is back. So a
million rows may wait for a day, in some 600 bytes each. How a batch gets there and back is told in
:mod:`infermesh.runs.batches.courier`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from infermesh.dispatch.batched import SENDER, BatchAnswer, failed_line
from infermesh.dispatch.pricing import reported_cost
from infermesh.errors import (
    BadRequestError,
    InputError,
    ParkedError,
    RequestError,
    RequestTimeoutError,
    StoppedError,
)
from infermesh.hints import counted
from infermesh.results import Attempt
from infermesh.runs.batches.batch import (
    ANSWERED,
    FAILED,
    USED,
    WAITING,
    Batch,
    Key,
    request_hash,
)
from infermesh.runs.batches.courier import MOST_LINES, Counter, Courier
from infermesh.store.batches import BatchBook, StoredBatch
from infermesh.types import Operation, Reply, Request
from infermesh.wire.requests import estimate_tokens

__all__ = ["BatchDesk", "Route"]

_BITS = (MOST_LINES - 1).bit_length()  # of a line's number


class Route:
    """The way of one model's requests to the desk: see :class:`~infermesh.dispatch.batched.Batching`."""

    def __init__(self, desk: BatchDesk, labels: Sequence[str], retries: int) -> None:
        self._desk = desk
        self._labels = labels
        self._retries = retries

    def take(self, request: Request) -> BatchAnswer | None:
        """The answer that a batch has brought; ``None``: send it live. Raises ``ParkedError`` where it is in one."""
        return self._desk.take(request, self._labels, self._retries)


class BatchDesk:
    """All batches of a session.

    Parameters
    ----------
    folder
        Where their files are.
    note, stop
        Tell the user a line; stop the run, for a reason.
    detach
        End once everything is submitted.
    """

    def __init__(
        self,
        book: BatchBook,
        folder: Path,
        counters: Mapping[str, Counter],
        *,
        note: Callable[[str], None],
        stop: Callable[[str], None],
        detach: bool = False,
    ) -> None:
        self._book = book
        self._folder = folder
        self._counters = counters
        self._note = note
        self._detach = detach
        self._stop_run = stop
        self._courier = Courier(book, counters, on_back=self._take_back, note=note, stop_run=stop)
        self._batches: list[Batch] = []
        self._stages: dict[str, int] = {}
        self._lines: dict[int, int] = {}  # which request of which row → its batch's place, and its line there
        self._filling: dict[tuple[str, Operation], Batch] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._returned: deque[array[int]] = deque()
        self._unfollowed: list[tuple[Batch, str]] = []
        self._read_last: Batch | None = None

    @property
    def on_change(self) -> Callable[[], None]:
        """Called when rows have come back, and when something was submitted."""
        return self._courier.on_change

    @on_change.setter
    def on_change(self, call: Callable[[], None]) -> None:
        self._courier.on_change = call

    # What an earlier session has left

    def load(self) -> None:
        """Take over what earlier sessions have submitted. Blocks; call it once, before the first :meth:`take`."""
        self._book.forget_untold()
        for stored in self._book.open():
            if stored.state in ("intent", "uploaded"):
                self._book.drop(stored.token)
                for path in self._folder.glob(f"{stored.token}*"):
                    path.unlink(missing_ok=True)
                continue
            if stored.deployment not in self._counters:
                if stored.state != "collected":
                    self._note(
                        f"deployments.{stored.deployment} is declared no more: its batch {stored.batch_id or ''} of "
                        f"{counted(stored.requests, 'request')} is left alone, and its rows are sent again. Declare it "
                        "again to collect what is paid for"
                    )
                continue
            self._take_over(stored)

    def _take_over(self, stored: StoredBatch) -> None:
        batch = Batch(self._folder, stored.deployment, stored.operation, stored.token)  # type: ignore[arg-type]
        batch.take_lines(self._book.lines(stored.token))
        batch.batch_id, batch.file_id, batch.gave_up = stored.batch_id, stored.file_id, stored.gave_up
        batch.tokens = stored.prompt_tokens
        batch.made_at = _seconds(stored.made_at)
        batch.submitted_at = _seconds(stored.submitted_at) if stored.submitted_at else batch.made_at
        batch.ended_at = _seconds(stored.ended_at) if stored.ended_at else 0.0
        if stored.state == "collected":
            if batch.count(USED) == len(batch):
                return
            try:
                batch.take_results(batch.read_results(batch.results, self._counters[batch.label].wire.glance))
            except OSError:  # somebody has removed the file; the provider keeps it for a month
                batch.outcomes = bytearray(USED if each == USED else WAITING for each in batch.outcomes)
                self._unfollowed.append((batch, "submitted"))
        else:
            self._unfollowed.append((batch, stored.state))
        self._index(batch)

    def _index(self, batch: Batch) -> None:
        self._keep(batch)
        for line, outcome in enumerate(batch.outcomes):
            if outcome != USED:
                self._point(batch, line)

    def _point(self, batch: Batch, line: int) -> None:
        """From now on, the line is where its request is looked up."""
        key = self._packed(batch.key(line))
        before = self._lines.get(key)
        if before is not None:
            other, place = self._at(before)
            if other.hashes[place] == batch.hashes[line]:
                batch.before[line] = before
        self._lines[key] = batch.place << _BITS | line

    def _at(self, place: int) -> tuple[Batch, int]:
        """The batch and the line of a place in ``_lines``."""
        return self._batches[place >> _BITS], place & MOST_LINES - 1

    def _keep(self, batch: Batch) -> None:
        batch.place = len(self._batches)
        self._batches.append(batch)

    def _packed(self, key: Key) -> int:
        stage, row_id, request = key
        return self._stages.setdefault(stage, len(self._stages)) << 56 | row_id << 8 | min(request, 255)

    async def start(self) -> None:
        """Get ready to write lines, and look after the batches of earlier sessions."""
        for counter in self._counters.values():
            await counter.wire.load()
        waiting = [batch for batch, _ in self._unfollowed]
        if waiting:
            rows = sum(batch.count(WAITING) for batch in waiting)
            words = f"{counted(len(waiting), 'batch', 'batches')} of an earlier session"
            self._note(f"{words}, of {counted(rows, 'request')}, may be back: looking")
        for batch, state in self._unfollowed:
            batch.admitted = True
            self._courier.follow(batch, state)
        self._unfollowed = []

    # Requests

    def take(self, request: Request, labels: Sequence[str], retries: int) -> BatchAnswer | None:
        """As :meth:`Route.take`. ``labels``: the model's deployments; ``retries``: as of its live requests."""
        sender = SENDER.get()
        if sender is None:
            return None  # no row's: what is sent to find something out
        key = (sender.stage, sender.row_id, sender.requests)
        sender.requests += 1
        hashed, tries = request_hash(request), 0
        if (place := self._lines.get(self._packed(key))) is not None:
            batch, line = self._at(place)
            if batch.hashes[line] != hashed:
                if batch.fresh and sender.again:
                    raise InputError(
                        "its request is another one each time it is made, so that what a batch answers cannot be told "
                        "to be its answer: a mapper, or a template, must make the same of the same row (no time, no "
                        "random choice), or send it live (deployments.*.batch.enabled: false)"
                    )
                batch.stale += 1
            else:
                outcome, tries = batch.outcomes[line], batch.tries[line]
                if outcome == WAITING:
                    batch.parked.append(sender.row_id)
                    raise ParkedError("its batch is not back yet", deployment=batch.label)
                if outcome in (ANSWERED, FAILED):
                    return self._answer(batch, line, key, request, labels, retries)
                if batch.gave_up:
                    self._check_late(batch)
                    return None
                if not batch.blameless:
                    tries += 1
                    if tries > retries:
                        raise RequestTimeoutError(
                            f"{batch.label}: {counted(tries, 'batch', 'batches')} ended without an answer to it, the "
                            f"last one {batch.batch_id}: {batch.said or 'no word'}",
                            deployment=batch.label,
                            retryable=False,
                        )
        label = self._choose(labels)
        if label is None:
            return None
        self._put(label, key, hashed, tries, request)

    def _choose(self, labels: Sequence[str]) -> str | None:
        """The deployment that has a batch to be filled, else the one with the least in its batches."""
        able = [label for label in labels if label in self._counters and self._counters[label].open]
        for label in able:
            if any(label == other for other, _ in self._filling):
                return label
        return min(able, key=self._courier.enqueued, default=None)

    def _put(self, label: str, key: Key, hashed: int, tries: int, request: Request) -> NoReturn:
        """Write a request into a batch; it is parked then."""
        counter, operation = self._counters[label], request.operation
        batch = self._filling.get((label, operation)) or self._new(label, operation)
        row_id, tokens = key[1], estimate_tokens(request)
        line = counter.wire.line(_custom_id(batch, row_id, hashed), request)
        if len(line) > counter.most_bytes:
            raise InputError(
                f"{label}: the request has {len(line):,} bytes, and a batch at most {counter.most_bytes:,}"
            )
        most = counter.config.max_enqueued_tokens
        full = batch.size + len(line) > counter.most_bytes or (most and batch.tokens and batch.tokens + tokens > most)
        if full:
            self._seal(batch)
            batch = self._new(label, operation)
            line = counter.wire.line(_custom_id(batch, row_id, hashed), request)
        try:
            batch.write(line)
        except OSError as error:
            self._give_up(batch, error)
            raise StoppedError("its batch could not be written", deployment=label) from None
        number = batch.add(key, hashed, tries)
        batch.tokens += tokens
        batch.parked.append(row_id)
        self._point(batch, number)
        if len(batch) >= counter.most_requests:
            self._seal(batch)
        raise ParkedError("it is in a batch", deployment=label)

    def _new(self, label: str, operation: Operation) -> Batch:
        batch = Batch(self._folder, label, operation)
        self._keep(batch)
        self._filling[label, operation] = batch
        linger = self._counters[label].config.linger
        self._timers[batch.token] = asyncio.get_running_loop().call_later(linger, self._seal, batch)
        return batch

    def _seal(self, batch: Batch) -> None:
        """Submit a batch that is full, or has waited long enough."""
        self._timers.pop(batch.token).cancel()
        del self._filling[batch.label, batch.operation]
        try:
            batch.written()
        except OSError as error:
            self._give_up(batch, error)
        else:
            self._courier.follow(batch, "new")

    def _give_up(self, batch: Batch, error: OSError) -> None:
        """Stop the run where the disk takes no batch. Nothing was sent: its rows stay pending."""
        said = error.strerror or str(error)
        self._stop_run(
            f"{batch.label}: its batch could not be written to {self._folder}: {said}. Mend that, and resume"
        )

    def flush(self) -> None:
        """No request can come before a batch is back: submit those that wait for more."""
        for batch in list(self._filling.values()):
            self._seal(batch)

    def _answer(
        self, batch: Batch, line: int, key: Key, request: Request, labels: Sequence[str], retries: int
    ) -> BatchAnswer:
        counter, tries, hashed = self._counters[batch.label], batch.tries[line], batch.hashes[line]
        reply, error = self._result(batch, line, request)

        def again() -> NoReturn:
            self._put(self._choose(labels) or batch.label, key, hashed, tries + 1, request)

        return BatchAnswer(
            batch.label,
            batch.submitted_at,
            _served_s(batch),
            self._failures_before(batch, line, request),
            counter.price or reported_cost,
            reply,
            error,
            again if tries < retries else None,
        )

    def _result(self, batch: Batch, line: int, request: Request) -> tuple[Reply | None, RequestError | None]:
        """What a batch has brought for a line: a reply or an error."""
        if (problem := batch.problems.get(line)) is not None:
            what = f"its line of the batch is refused: {problem.code}: {problem.message}"
            return None, BadRequestError(f"{batch.label}: {what}", status_code=400)
        if self._read_last is not batch:  # their rows come one batch after the other: one file is open
            if self._read_last is not None:
                self._read_last.close()
            self._read_last = batch
        wire = self._counters[batch.label].wire
        result = wire.result(batch.result(line), request)
        if result.kind != "answered":
            return None, wire.error(result)
        result.body["service_tier"] = "batch"  # a line says "default", and is billed as a batch's all the same
        return Reply(result.status or 200, result.body, _no_header), None

    def _failures_before(self, batch: Batch, line: int, request: Request) -> list[tuple[Attempt, RequestError]]:
        """The lines by which the same was sent before and that failed, the first one first.

        They are told when the row settles, and not as they fail: a row that is killed in between would tell them twice.
        """
        found: list[tuple[Batch, RequestError]] = []
        while (place := batch.before.get(line)) is not None:
            batch, line = self._at(place)
            if batch.outcomes[line] == FAILED:
                _, error = self._result(batch, line, request)
                if error is not None:
                    found.append((batch, error))
        return [
            (failed_line(number, each.label, each.submitted_at, _served_s(each), error), error)
            for number, (each, error) in enumerate(reversed(found), request.earlier + 1)
        ]

    def _check_late(self, batch: Batch) -> None:
        """Refuse a request whose batch was cancelled since it took too long, unless it is to be sent live."""
        config = self._counters[batch.label].config
        if config.then == "error":
            raise RequestTimeoutError(
                f"{batch.label}: its batch {batch.batch_id} was not back within batch.max_wait "
                f"({config.max_wait or 0:g} s), and was cancelled before this request",
                deployment=batch.label,
                retryable=False,
            )

    # What the runner asks

    def _waited_for(self) -> list[Batch]:
        """The batches that rows wait for: not those whose rows are settled, or ask for something else now."""
        return [batch for batch in self._courier.batches if batch.parked]

    @property
    def is_busy(self) -> bool:
        """Whether rows wait for a batch that is to come back in this session."""
        waiting = self._waited_for()
        if self._detach and all(map(self._courier.is_left, waiting)):
            waiting = []
        return bool(self._filling or waiting or self._returned)

    @property
    def waits(self) -> bool:
        """Whether rows wait for a batch."""
        return bool(self._waited_for())

    def returned(self) -> Sequence[int] | None:
        """Row_ids, ascending, whose batch is back, of one batch at a time; ``None``: of none."""
        return self._returned.popleft() if self._returned else None

    def _take_back(self, batch: Batch) -> None:
        self._returned.append(array("q", sorted(set(batch.parked))))
        batch.parked = array("q")

    def waiting_for(self) -> list[str]:
        """A line for each deployment whose batches are waited for."""
        found = []
        for label in self._counters:
            out = [batch for batch in self._waited_for() if batch.label == label]
            if out:
                done, rows = sum(map(self._courier.finished, out)), sum(map(len, out))
                found.append(f"{counted(len(out), 'batch', 'batches')} at {label} ({done:,} of {rows:,} answered)")
        return found

    def left(self) -> tuple[int, int]:
        """Batches that are at a provider, and the requests in them."""
        out = [batch for batch in self._courier.batches if batch.batch_id is not None]
        return len(out), sum(map(len, out))

    def pause(self, on: bool) -> None:
        """Submit nothing while ``on``."""
        self._courier.pause(on)

    def stop(self) -> None:
        """Make no batch any more. Those that are submitted stay at the provider; what was not sent is dropped."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for batch in self._filling.values():
            batch.close()
            batch.source.unlink(missing_ok=True)
        self._filling.clear()
        self._courier.stop()
        self.on_change()

    def drop(self) -> None:
        """Wait for nothing: what is being created is looked for by the next session."""
        self._courier.drop()

    async def aclose(self) -> None:
        """Wait for what is being created, so that its id is known, and close all."""
        self.stop()
        await self._courier.aclose()
        for batch in self._batches:
            batch.close()

    def clear(self) -> None:
        """Every row is settled: what came back is in the tables, and its files can go."""
        for path in self._folder.glob("*.jsonl"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()

    def stale(self) -> int:
        """Answers that no row has asked for, since its request is another one now."""
        return sum(batch.stale for batch in self._batches)


def _custom_id(batch: Batch, row_id: int, hashed: int) -> str:
    """That of the next line: as :meth:`Batch.custom_id` has it."""
    return f"{batch.token[:8]}-{len(batch)}-{row_id}-{hashed:016x}"


def _served_s(batch: Batch) -> float:
    return max(batch.ended_at - batch.submitted_at, 0.0)


def _no_header(name: str) -> None:
    return None


def _seconds(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp()
