"""The way of a batch: stored, uploaded, made, looked at, fetched, and given back.

What keeps the books right after a kill, wherever it comes (the states are those of :mod:`infermesh.store.batches`):

- ``intent`` is committed with all its lines before anything is sent. A batch that an earlier session left there, or
  ``uploaded``, was never made: it is dropped, and its rows are pending.
- ``creating`` is committed before the one request that makes it. No provider's create is idempotent, and whether one
  whose answer was lost has made a batch nobody says. So it is looked for in the provider's listing, by the token that
  it carries, and adopted; only where it is not there is one made anew.
- ``submitted`` has the provider's id: it is asked how it is, until it has ended.
- ``collected`` has its results in a file. Lines are matched by custom_id, never by their order or count. Which of them
  are used up the rows tell, that were settled since.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from infermesh.config.schema import BatchConfig
from infermesh.errors import NotFoundError, RequestError
from infermesh.hints import counted, one_line
from infermesh.results import TokenUsage
from infermesh.runs.batches.batch import ANSWERED, FAILED, UNSERVED, USED, WORDS, Batch, Results
from infermesh.store.batches import BatchBook
from infermesh.transports.batches import BatchStatus, BatchWire

__all__ = ["Counter", "Courier"]

T = TypeVar("T")
logger = logging.getLogger("infermesh")

_LOOKS_S = (0.0, 0.5, 2.0, 5.0)  # a listing may lag behind: so long before each look for a batch that may be there
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 60.0  # between two tries of a call that fails for the moment
_FULL_S = 60.0  # after a batch was refused since too much waits at the provider
_LOST_S = 3600.0  # a batch that is not found for so long is lost; for less, a provider may be confused
_AGAIN_S = (0.1, 0.3, 1.0, 3.0, 10.0)  # a file that ends within a line is fetched again, so long after
_AGAIN = 2  # times, where it ends well, and has fewer lines than its provider counts
_MOST_FAILED = 20  # batches in a row that fail as a whole
MOST_LINES = 1 << 24  # in a batch


@dataclass(slots=True)
class Counter:
    """One deployment's batch API.

    Attributes
    ----------
    open
        Whether new requests go there. A deployment whose batches were switched off is asked for those it has.
    price
        US dollars of an answer's usage.
    failed
        Batches in a row that failed as a whole.
    """

    label: str
    wire: BatchWire
    config: BatchConfig
    price: Callable[[TokenUsage], float | None] | None = None
    open: bool = True
    failed: int = 0
    told: set[str] = field(default_factory=set)

    @property
    def most_requests(self) -> int:
        """Lines in a batch."""
        return min(self.config.max_requests or MOST_LINES, self.wire.limits.requests)

    @property
    def most_bytes(self) -> int:
        """Bytes in a batch."""
        return min(self.config.max_bytes or self.wire.limits.bytes, self.wire.limits.bytes)


class Courier:
    """Takes batches to their providers and back.

    Parameters
    ----------
    on_back
        Called with a batch whose results are stored.
    note, stop_run
        Tell the user a line; stop the run, for a reason.

    Attributes
    ----------
    on_change
        Called when something was submitted or is back.
    """

    def __init__(
        self,
        book: BatchBook,
        counters: Mapping[str, Counter],
        *,
        on_back: Callable[[Batch], None],
        note: Callable[[str], None],
        stop_run: Callable[[str], None],
    ) -> None:
        self._book = book
        self._counters = counters
        self._on_back = on_back
        self._note = note
        self._stop_run = stop_run
        self.on_change: Callable[[], None] = lambda: None
        self._thread = ThreadPoolExecutor(1, "infermesh-batches")
        self._following: dict[asyncio.Task[None], Batch] = {}
        self._seen: dict[str, BatchStatus] = {}  # token → how it was when it was last looked at
        self._creating: set[str] = set()
        self._held_back: set[str] = set()
        self._room = asyncio.Event()
        self._going = asyncio.Event()
        self._going.set()
        self._stopping = False

    @property
    def batches(self) -> Iterable[Batch]:
        """Those under way."""
        return self._following.values()

    def enqueued(self, label: str) -> int:
        """Prompt tokens in a deployment's batches that are not back."""
        return sum(batch.tokens for batch in self.batches if batch.label == label and batch.admitted)

    def finished(self, batch: Batch) -> int:
        """How many of its lines have a result, as its provider said last."""
        seen = self._seen.get(batch.token)
        return 0 if seen is None else seen.finished or 0

    def is_left(self, batch: Batch) -> bool:
        """Whether a session that does not wait leaves a batch as it is: at work, or held back as there is no room."""
        seen = self._seen.get(batch.token)
        works = batch.fresh if seen is None else seen.phase == "working"
        return (batch.batch_id is not None and works) or batch.token in self._held_back

    def follow(self, batch: Batch, state: str) -> None:
        """Look after a batch from now on; ``state``: as it is stored, or ``new``."""
        task = asyncio.create_task(self._way(batch, state), name=f"batch-{batch.token[:8]}")
        self._following[task] = batch
        task.add_done_callback(self._followed)

    def stop(self) -> None:
        """Make no batch any more, and leave those that are made where they are."""
        self._stopping = True
        for task, batch in self._following.items():
            if batch.token not in self._creating:
                task.cancel()

    def pause(self, on: bool) -> None:
        """Make no batch while ``on``; those that are made are looked after."""
        if on:
            self._going.clear()
        else:
            self._going.set()

    def drop(self) -> None:
        """Wait for nothing: what is being created is looked for by the next session."""
        self._creating.clear()
        self.stop()

    async def aclose(self) -> None:
        """Wait for what is being created, so that its id is known, and close all."""
        self.stop()
        await asyncio.gather(*self._following, return_exceptions=True)
        for counter in self._counters.values():
            await counter.wire.aclose()
        await self._stored(self._book.close)
        self._thread.shutdown()

    def _followed(self, task: asyncio.Task[None]) -> None:
        self._following.pop(task)
        self._room.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
            self._stop_run(f"a batch could not be looked after: {one_line(error)}")
        self.on_change()

    async def _way(self, batch: Batch, state: str) -> None:
        """From a batch's last line to its results."""
        counter = self._counters[batch.label]
        try:
            if state == "new":
                await self._make(counter, batch)
            elif state == "creating":
                status = await self._look_for(counter, batch)
                if status is None:
                    self._note(f"{batch.label}: a batch of the last session is not at its provider: it is made anew")
                    await self._gone(batch, "it was never made")
                    return
                await self._submitted(batch, status)
            await self._collect(counter, batch, await self._end_of(counter, batch))
        except RequestError as error:
            if not self._stopping:
                self._stop_run(f"{batch.label}: its batches cannot be used: {error.message}")

    async def _make(self, counter: Counter, batch: Batch) -> None:
        """Commit what is about to be sent, and send it."""
        await self._wait_for_room(counter, batch)
        wire, now = counter.wire, _now()
        batch.made_at = now.replace(tzinfo=UTC).timestamp()
        await self._stored(
            lambda: self._book.add(
                batch.stored(now),
                batch.size,
                batch.stages,
                batch.row_ids,
                batch.requests,
                batch.hashes,
                batch.tries,
            )
        )
        if wire.uploads:
            name = f"infermesh-{batch.token}.jsonl"
            batch.file_id = await self._patiently(counter, "upload", lambda: wire.upload(batch.source, name))
            await self._noted(batch, state="uploaded", file_id=batch.file_id)
        delay = _FIRST_WAIT_S
        while not await self._create(counter, batch):
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_WAIT_S)

    async def _create(self, counter: Counter, batch: Batch) -> bool:
        """Make the batch. False: there is none, and it may be tried again."""
        wire = counter.wire
        self._creating.add(batch.token)  # till its id is stored, it is not left alone
        try:
            await self._noted(batch, state="creating")
            status = await wire.create(batch.token, batch.operation, batch.file_id, batch.source)
            await self._submitted(batch, status)
            return True
        except RequestError as error:
            self._creating.discard(batch.token)
            if error.status_code is not None and 400 <= error.status_code < 500:  # it says that there is none
                await self._noted(batch, state="uploaded" if wire.uploads else "intent")
                if not error.retryable:
                    raise
                self._tell(counter, "create", error)
                await asyncio.sleep(min(error.retry_after or 0.0, _LONGEST_WAIT_S))
                return False
            self._tell(counter, "create", error)
        finally:
            self._creating.discard(batch.token)
        if (found := await self._look_for(counter, batch)) is None:
            return False
        await self._submitted(batch, found)
        return True

    async def _look_for(self, counter: Counter, batch: Batch) -> BatchStatus | None:
        """Find a batch that may have been made. A listing may lag: it is looked at several times."""
        wire = counter.wire
        for wait in _LOOKS_S:
            await asyncio.sleep(wait)
            found = await self._patiently(
                counter, "list", lambda: wire.find(batch.token, batch.file_id, len(batch), batch.made_at)
            )
            if found is not None:
                logger.info("%s: batch %s was made, though nobody said so", counter.label, found.id)
                return found
        return None

    async def _submitted(self, batch: Batch, status: BatchStatus) -> None:
        batch.batch_id, batch.submitted_at = status.id, time.time()
        await self._noted(batch, state="submitted", batch_id=status.id, submitted_at=_now(), provider_state=status.said)
        logger.info("%s: batch %s of %d requests is submitted", batch.label, status.id, len(batch))
        self.on_change()
        if self._stopping:
            raise asyncio.CancelledError

    async def _wait_for_room(self, counter: Counter, batch: Batch) -> None:
        """Wait until so many tokens may be enqueued. A batch is let go alone, however large it is."""
        await self._going.wait()
        most = counter.config.max_enqueued_tokens
        while most is not None and (out := self.enqueued(batch.label)) and out + batch.tokens > most:
            self._held_back.add(batch.token)
            self.on_change()
            self._room.clear()
            await self._room.wait()
        self._held_back.discard(batch.token)
        batch.admitted = True

    async def _end_of(self, counter: Counter, batch: Batch) -> BatchStatus:
        """Ask how a batch is until it has ended; cancel it where that takes too long."""
        wire, config = counter.wire, counter.config
        assert batch.batch_id is not None
        batch_id, asked_to_end, missing_since = batch.batch_id, False, 0.0
        if batch.fresh:
            await asyncio.sleep(config.poll)
        while True:
            try:
                status = await self._patiently(counter, "look at", lambda: wire.status(batch_id))
            except NotFoundError as error:  # it may be there all the same, a moment later
                missing_since = missing_since or time.monotonic()
                if time.monotonic() - missing_since > max(_LOST_S, 10 * config.poll):
                    raise
                self._tell(counter, "find", error)
                await asyncio.sleep(config.poll)
                continue
            missing_since = 0.0
            before = self._seen.get(batch.token)
            self._seen[batch.token] = status
            if before is None or before.said != status.said:
                await self._noted(batch, provider_state=status.said)
                self.on_change()
            if status.phase != "working":
                return status
            late = config.max_wait is not None and time.time() - batch.submitted_at > config.max_wait
            if late and not asked_to_end:
                asked_to_end = batch.gave_up = True
                then = "sent live" if config.then == "live" else "an error"
                self._note(
                    f"{batch.label}: batch {batch_id} is not back within batch.max_wait ({config.max_wait:g} s) and is "
                    f"cancelled: what it has answered is used, and the rest is {then}"
                )
                await self._noted(batch, gave_up=True)
                await self._patiently(counter, "cancel", lambda: wire.cancel(batch_id))
            await asyncio.sleep(max(config.poll, min(status.retry_after or 0.0, _LONGEST_WAIT_S)))

    async def _collect(self, counter: Counter, batch: Batch, status: BatchStatus) -> None:
        """Fetch what a batch has brought, and give its rows back."""
        batch.said = status.said
        if status.phase == "failed":
            await self._failed(counter, batch, status)
            return
        counter.failed = 0
        best, partial = None, batch.results.with_suffix(".part")
        for number, wait in enumerate((*_AGAIN_S, None)):
            partial.unlink(missing_ok=True)
            await self._patiently(counter, "fetch", lambda: self._download(counter, status, partial))
            found = await asyncio.to_thread(batch.read_results, partial, counter.wire.glance)
            if best is None or found.found > best.found:
                best = found
                partial.replace(batch.results)
            most = status.finished
            short = most is not None and best.found < most
            if wait is None or not (found.cut or (short and number < _AGAIN)):
                break
            logger.warning("%s: batch %s: only %d of %s results came", batch.label, status.id, found.found, most)
            await asyncio.sleep(wait)
        partial.unlink(missing_ok=True)
        assert best is not None
        await self._back(batch, "collected", best)

    async def _download(self, counter: Counter, status: BatchStatus, target: Path) -> None:
        await asyncio.to_thread(target.write_bytes, b"")
        await counter.wire.download(status, target)

    async def _failed(self, counter: Counter, batch: Batch, status: BatchStatus) -> None:
        """None of its lines was worked on. Those that are named are errors, and the others go into another batch."""
        counter.failed += 1
        named = {each.line: each for each in status.problems if each.line is not None}
        words = "; ".join(f"{each.code}: {each.message}" for each in status.problems[:3]) or "it does not say why"
        full = any(each.full for each in status.problems)
        if not full and (not named or counter.failed > _MOST_FAILED):
            await self._gone(batch, words, hand_back=False)
            self._stop_run(f"{batch.label}: batch {status.id} failed as a whole: {words}")
            return
        if full:
            self._tell_once(counter, "full", f"{batch.label}: {words}: its batches are submitted again as others end")
            batch.admitted = False
            self._held_back.add(batch.token)
            self.on_change()
            self._room.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), max(_FULL_S, counter.config.poll))
            self._held_back.discard(batch.token)
        else:
            self._note(
                f"{batch.label}: batch {status.id} was refused for {counted(len(named), 'line')}: {words}. Their rows "
                "are errors, and the others go into another batch"
            )
        batch.problems = named
        await self._gone(batch, words)

    async def _gone(self, batch: Batch, why: str, *, hand_back: bool = True) -> None:
        """Nothing of a batch was worked on."""
        batch.blameless = True
        outcomes = bytearray(
            USED if outcome == USED else FAILED if line in batch.problems else UNSERVED
            for line, outcome in enumerate(batch.outcomes)
        )
        await self._back(batch, "gone", Results(0, False, outcomes, array("q", [-1]) * len(batch)), why, hand_back)

    async def _back(
        self, batch: Batch, state: str, results: Results, error: str | None = None, hand_back: bool = True
    ) -> None:
        batch.ended_at = time.time()
        outcomes = [WORDS[each] for each in results.outcomes]
        counts = {WORDS[each]: results.outcomes.count(each) for each in (ANSWERED, FAILED)}
        unserved = results.outcomes.count(UNSERVED)
        await self._stored(
            lambda: self._book.collected(
                batch.token, outcomes, state=state, ended_at=_now(), error=error, unserved=unserved, **counts
            )
        )
        # Only now: a row that were settled before could not tell that it has used its line up.
        batch.take_results(results)
        batch.source.unlink(missing_ok=True)
        if state == "collected":
            rest = f", {unserved} without an answer" if unserved else ""
            self._note(
                f"{batch.label}: batch {batch.batch_id} is back ({batch.said}): {counts['answered']} answered, "
                f"{counts['failed']} failed{rest}"
            )
        if hand_back:
            self._on_back(batch)

    # Calls

    async def _patiently(self, counter: Counter, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call again while it fails for the moment. Raises what no other call mends."""
        delay = _FIRST_WAIT_S
        while True:
            try:
                return await call()
            except RequestError as error:
                if not error.retryable:
                    raise
                self._tell(counter, what, error)
                await asyncio.sleep(max(delay, min(error.retry_after or 0.0, _LONGEST_WAIT_S)))
                delay = min(2 * delay, _LONGEST_WAIT_S)

    def _tell(self, counter: Counter, what: str, error: RequestError) -> None:
        logger.warning("%s: %s a batch: %s", counter.label, what, error.message)
        self._tell_once(
            counter,
            f"{what} {error.kind}",
            f"{counter.label}: to {what} a batch failed, and is tried again: {error.kind}: {error.message}",
        )

    def _tell_once(self, counter: Counter, key: str, text: str) -> None:
        if key not in counter.told:
            counter.told.add(key)
            self._note(text)

    async def _noted(self, batch: Batch, **values: Any) -> None:
        await self._stored(lambda: self._book.note(batch.token, **values))

    async def _stored(self, call: Callable[[], None]) -> None:
        """Write to the database, in the desk's thread. A cancellation waits until it is done."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, call))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
