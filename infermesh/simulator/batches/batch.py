"""One batch from its creation to its end, and all of them together."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from aiohttp import web

from infermesh.simulator.batches.files import FileStore, StoredFile
from infermesh.simulator.batches.lines import Lines
from infermesh.simulator.batches.requests import Scan
from infermesh.simulator.content import pick
from infermesh.simulator.errors import ApiError
from infermesh.simulator.settings import SimulatorSettings
from infermesh.simulator.stats import BatchStats, fingerprint

__all__ = ["Batch", "Batches"]

_ENDED = ("completed", "failed", "expired", "cancelled")
_TURN_S = 0.05  # how long lines are answered before the counts are brought up to date


class Batch:
    """A batch, in OpenAI's states: `validating`, `in_progress`, `finalizing`, `cancelling` and four ends.

    Attributes
    ----------
    at
        When it entered each state, in seconds since the epoch; `created` too.
    total, completed, failed, unserved
        Counts of lines. Unserved ones were expired or cancelled.
    tokens
        Prompt and completion tokens of what was answered.
    files
        Results, and failures where they are apart; None where there are none.
    facts
        What its creator said of it and it only repeats.
    doubled
        File, beginning and length of each line that is to be written once more.
    """

    def __init__(self, number: int, lines: Lines, source: Path, scan: Scan | None, facts: Mapping[str, Any]) -> None:
        self.number, self.lines, self.source, self.scan, self.facts = number, lines, source, scan, facts
        self.id = f"{lines.prefix}{os.urandom(6).hex()}{number:06d}"
        self.status = "validating"
        self.at: dict[str, float] = {"created": time.time()}
        self.total = self.completed = self.failed = self.unserved = 0
        self.tokens = [0, 0]
        self.errors: list[dict[str, Any]] = []
        self.files: list[StoredFile | None] = [None, None]
        self.listed = True
        self.cancelled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.doubled: list[tuple[int, int, int]] = []

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in _ENDED

    def move(self, status: str) -> None:
        """Enter a state."""
        self.status = status
        self.at.setdefault(status, time.time())

    def cancel(self) -> None:
        """Ask it to end; what has ended stays as it is."""
        if not self.ended:
            self.move("cancelling")
            self.cancelled.set()

    async def pause(self, seconds: float) -> bool:
        """Wait, and return whether it was cancelled before the time was over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.cancelled.wait(), max(seconds, 0))
        return self.cancelled.is_set()

    def order(self, settings: SimulatorSettings) -> Sequence[int]:
        """In which order its lines are answered."""
        order = array("Q", range(self.total))
        if settings.batches.shuffle:
            Random(f"{settings.seed}:shuffle:{self.number}").shuffle(order)
        return order


class Batches:
    """All batches of a simulator.

    Parameters
    ----------
    settings
        What they take and how they fail.
    stats
        Where lines are counted.
    store
        Where their files go.
    """

    def __init__(self, settings: SimulatorSettings, stats: BatchStats, store: FileStore) -> None:
        self.settings = settings
        self.stats = stats
        self.store = store
        self._all: dict[str, Batch] = {}
        self._serial = itertools.count(1)
        self._streams: dict[str, Random] = {}

    def chance(self, name: str) -> bool:
        """Draw whether a fault happens to a call, and count it. Each fault has its own random stream."""
        stream = self._streams.setdefault(name, Random(f"{self.settings.seed}:batches:{name}"))
        share: float = getattr(self.settings.batches, name)
        happens = stream.random() < share
        self.stats.faults[name] += happens
        return happens

    async def create(self, lines: Lines, source: Path, scan: Scan | Callable[[], Scan], **facts: Any) -> Batch:
        """Start a batch.

        Parameters
        ----------
        scan
            What is known of its lines, or what finds it out; the latter is called only in state `validating`, unless
            the tokens have to be known before.

        Raises
        ------
        ApiError
            429, if more tokens would wait than may.
        """
        limits = self.settings.batches
        check = scan if callable(scan) else None
        known = None if callable(scan) else scan
        if limits.max_enqueued_tokens is not None and limits.over_limit == "refuse":
            if check is not None:
                known = await asyncio.to_thread(check)
            if known is not None:
                self._admit(known)
        batch = Batch(next(self._serial), lines, source, known, facts)
        batch.listed = not self.chance("unlisted")
        self._all[batch.id] = batch
        self.stats.created += 1
        batch.task = asyncio.create_task(self._run(batch, check))
        return batch

    def get(self, name: str, prefix: str) -> Batch:
        """Return a batch of a provider.

        Raises
        ------
        ApiError
            404, if there is none, or the fault `not_found` happens.
        """
        batch = self._all.get(name)
        if batch is None or batch.lines.prefix != prefix or self.chance("not_found"):
            raise ApiError(404, f"No batch found with id '{name}'")
        return batch

    def shown(self, prefix: str) -> list[Batch]:
        """Return a provider's batches that listings show, the newest first."""
        return [each for each in reversed(self._all.values()) if each.lines.prefix == prefix and each.listed]

    def forget(self, batch: Batch) -> None:
        """Delete a batch that has ended."""
        self._all.pop(batch.id, None)

    def response(self, body: bytes, batch: Batch) -> web.Response:
        """Answer a question about a batch, with a Retry-After as long as it has not ended."""
        wait = self.settings.batches.poll_after_s
        headers = {} if wait is None or batch.ended else {"Retry-After": f"{wait:g}"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def close(self) -> None:
        """Stop all work."""
        tasks = [batch.task for batch in self._all.values() if batch.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self, scan: Scan) -> None:
        most = self.settings.batches.max_enqueued_tokens
        scans = [each.scan for each in self._all.values() if not each.ended]
        waiting = sum(each.tokens for each in scans if each is not None and each is not scan)
        if most is not None and waiting + scan.tokens > most:
            message = (
                f"Enqueued token limit reached for {scan.model or 'this model'}. Limit: {most} enqueued tokens, "
                f"enqueued: {waiting}, requested: {scan.tokens}. Please try again once some batches have completed."
            )
            raise ApiError(429, message, kind="tokens", code="token_limit_exceeded")

    async def _run(self, batch: Batch, check: Callable[[], Scan] | None) -> None:
        try:
            await self._work(batch, check)
        except Exception as error:  # else it would be in progress for ever
            batch.errors = [{"code": "simulator_error", "message": repr(error), "param": None, "line": None}]
            batch.move("failed")
            raise

    async def _work(self, batch: Batch, check: Callable[[], Scan] | None) -> None:
        limits = self.settings.batches
        position = 0
        how = "cancelled"
        cancelled = await batch.pause(limits.validating_s)
        if not cancelled and not await self._validate(batch, check):
            batch.move("failed")
            return
        order = batch.order(self.settings)
        if not batch.cancelled.is_set():
            batch.move("in_progress")
            position = await self._answer(batch, order)
            if position < len(order) and not batch.cancelled.is_set():
                how = "expired"
            elif not batch.cancelled.is_set():
                batch.move("finalizing")
                if not await batch.pause(limits.finalizing_s):
                    how = "completed"
        if how == "cancelled":
            await asyncio.sleep(limits.cancelling_s)
        if limits.cancel_loses if how == "cancelled" else how == "expired" and not batch.lines.expired_kept:
            position, batch.completed, batch.failed, batch.files = 0, 0, 0, [None, None]
            batch.doubled.clear()
        await asyncio.to_thread(self._finish, batch, order[position:], how)
        batch.unserved = len(order) - position
        batch.move(how)

    async def _validate(self, batch: Batch, check: Callable[[], Scan] | None) -> bool:
        """Find out whether its lines are valid, and count them if they are."""
        scan = batch.scan
        if scan is None:
            assert check is not None
            scan = await asyncio.to_thread(check)
        batch.errors = scan.errors
        if not scan.errors and self.settings.batches.over_limit == "fail":
            try:
                self._admit(scan)
            except ApiError as error:
                batch.errors = [{"code": error.code, "message": error.message, "param": None, "line": None}]
        batch.scan = scan
        if batch.errors:
            return False
        batch.total = len(scan.starts)
        self.stats.sent(scan.custom_ids)
        return True

    async def _answer(self, batch: Batch, order: Sequence[int]) -> int:
        """Answer lines when they are due, until all are or the batch has to end; return how many were."""
        started, total = time.time(), len(order)
        expires = batch.at["created"] + self.settings.batches.expires_s
        pace = self.settings.batches.processing_s / max(total, 1)  # seconds of one line
        position = 0
        while position < total and not batch.cancelled.is_set() and (now := time.time()) < expires:
            due = total if pace == 0 else min(total, int((now - started) / pace + 1e-6))
            if due > position:
                found = await asyncio.to_thread(self._answer_some, batch, order[position:due])
                for custom_id, status, content in found:
                    self.stats.answered(custom_id, status, content)
                position += len(found)
            else:
                await batch.pause(min(started + pace * (position + 1), expires) - now)
        return position

    def _answer_some(self, batch: Batch, indices: Sequence[int]) -> list[tuple[str, int, int]]:
        """Answer lines for a short time, in a thread. Return custom_id, status and content of each that was."""
        assert batch.scan is not None
        found = []
        until = time.monotonic() + _TURN_S
        with batch.source.open("rb") as source, ExitStack() as stack:
            outputs = [self._open(batch, which, stack) for which in range(1 + batch.lines.failures_apart)]
            for index in indices:
                source.seek(batch.scan.starts[index])
                custom_id, body = batch.lines.read(source.readline().rstrip(b"\r\n"))
                line, status = self._result(batch, custom_id, body)
                which = int(batch.lines.failures_apart and status != 200)
                if not self._meets("missing_lines", batch, custom_id):
                    start = self._write(outputs[which], line)
                    if self._meets("doubled_lines", batch, custom_id):
                        batch.doubled.append((which, start, len(line)))
                found.append((custom_id, status, fingerprint(body)))
                if time.monotonic() > until:
                    break
        return found

    def _result(self, batch: Batch, custom_id: str, body: Any) -> tuple[bytes, int]:
        try:
            if self._meets("refused_lines", batch, custom_id):
                raise ApiError(400, "This line is refused.", code="invalid_value")
            if self._meets("failed_lines", batch, custom_id):
                message = "The server had an error while processing your request."
                raise ApiError(500, message, kind="server_error")
            answer = batch.lines.answer(body)
        except ApiError as error:
            batch.failed += 1
            return batch.lines.failed(custom_id, error), error.status
        batch.completed += 1
        batch.tokens[0] += answer.prompt_tokens
        batch.tokens[1] += answer.total_tokens - answer.prompt_tokens
        return batch.lines.done(custom_id, answer), 200

    def _meets(self, fault: str, batch: Batch, custom_id: str) -> bool:
        share: float = getattr(self.settings.batches, fault)
        return share > 0 and pick(self.settings.seed, fault, batch.number, custom_id) < share * 2**64

    def _open(self, batch: Batch, which: int, stack: ExitStack) -> BinaryIO:
        stored = batch.files[which]
        if stored is None:
            name = f"{batch.id}_{'error' if which else 'output'}.jsonl"
            stored = batch.files[which] = self.store.add(self.store.new_path(), name, "batch_output")
        return stack.enter_context(stored.path.open("ab"))

    def _write(self, file: BinaryIO, line: bytes) -> int:
        """Write a line and return where it begins."""
        if not self.settings.batches.loose_lines:
            start = file.tell()
            file.write(line + b"\n")
            return start
        if file.tell():
            file.write(b"\r\n")
        start = file.tell()
        file.write(line)
        return start

    def _finish(self, batch: Batch, rest: Sequence[int], how: str) -> None:
        """Write what is doubled once more, and the lines that were not worked on, in a thread."""
        assert batch.scan is not None or not rest
        with batch.source.open("rb") as source, ExitStack() as stack:
            outputs = [self._open(batch, which, stack) for which in range(1 + batch.lines.failures_apart)]
            for which, start, length in batch.doubled:
                stored = batch.files[which]
                assert stored is not None
                with stored.path.open("rb") as written:
                    outputs[which].flush()
                    written.seek(start)
                    self._write(outputs[which], written.read(length))
            for index in rest:
                assert batch.scan is not None
                source.seek(batch.scan.starts[index])
                custom_id, _ = batch.lines.read(source.readline().rstrip(b"\r\n"))
                line = batch.lines.unserved(custom_id, how)
                if line is not None and not self._meets("missing_lines", batch, custom_id):
                    self._write(outputs[-1], line)
        for which, stored in enumerate(batch.files):
            if stored is not None and not stored.path.stat().st_size and not (which and self.settings.batches.azure):
                self.store.delete(stored.id)
                batch.files[which] = None
