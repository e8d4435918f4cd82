"""One batch in memory: which request of which row each line is, and where its result stands."""

from __future__ import annotations

import hashlib
import os
import uuid
from array import array
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from infermesh.store.batches import StoredBatch, StoredLine
from infermesh.transports.batches import LineProblem, LineResult
from infermesh.types import Operation, Request
from infermesh.wire.requests import payload_bytes

__all__ = ["ANSWERED", "FAILED", "UNSERVED", "USED", "WAITING", "Batch", "Key", "Results", "request_hash"]

WAITING, ANSWERED, FAILED, UNSERVED, USED = range(5)
WORDS = ("waiting", "answered", "failed", "unserved", "used")
Key = tuple[str, int, int]  # stage, row_id, which request of the row there


def request_hash(request: Request) -> int:
    """64 bits that tell a request from another one: of its payload, whatever deployment gets it."""
    hashed = hashlib.blake2b(payload_bytes(request), digest_size=8)
    return int.from_bytes(hashed.digest(), "big")


class Results(NamedTuple):
    """What a file of results has of a batch.

    Attributes
    ----------
    found
        How many lines have a result.
    cut
        Whether the file ends within a line.
    outcomes, starts
        A line each: what became of it, and where in the file its result begins; -1 where it has none.
    """

    found: int
    cut: bool
    outcomes: bytearray
    starts: array[int]


class Batch:
    """A batch, from its first line to the last answer that is taken from it. 40 bytes a line.

    Attributes
    ----------
    token
        Ours: unique, and what its custom_ids begin with.
    fresh
        Whether its lines were made in this session.
    parked
        Row_ids that wait for it in this session.
    gave_up
        Whether it was cancelled since it took too long.
    place
        Its place in the desk's list.
    admitted
        Whether its tokens count as enqueued.
    said
        The provider's word for how it ended.
    blameless
        Whether none of its lines was worked on, so that none has used up a try.
    problems
        What the provider has found wrong with lines.
    before
        Line → where the desk has the line by which the same was sent before.
    size, tokens
        Bytes of its lines, and prompt tokens as estimated.
    stale
        Lines that no row asks for any more: its request has changed.
    """

    def __init__(self, folder: Path, label: str, operation: Operation, token: str | None = None) -> None:
        self.token = token or uuid.uuid4().hex
        self.label = label
        self.operation: Operation = operation
        self.fresh = token is None
        self.batch_id: str | None = None
        self.file_id: str | None = None
        self.made_at = 0.0
        self.submitted_at = 0.0
        self.ended_at = 0.0
        self.gave_up = False
        self.size = self.tokens = self.stale = 0
        self.place = 0
        self.admitted = False
        self.said = ""
        self.blameless = False
        self.problems: dict[int, LineProblem] = {}
        self.before: dict[int, int] = {}
        self.parked = array("q")
        self.source = folder / f"{self.token}.jsonl"
        self.results = folder / f"{self.token}.results.jsonl"
        self._stages: list[str] = []
        self._numbers = bytearray()  # of the stages, a line each, as in all that follow
        self.row_ids = array("q")
        self.hashes = array("Q")
        self.requests = bytearray()
        self.tries = bytearray()
        self.outcomes = bytearray()
        self._starts = array("q")
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def custom_id(self, line: int) -> str:
        """What the line is called at the provider: at most 64 letters, digits and hyphens."""
        return f"{self.token[:8]}-{line}-{self.row_ids[line]}-{self.hashes[line]:016x}"

    def stage(self, line: int) -> str:
        """The stage whose row it is."""
        return self._stages[self._numbers[line]]

    @property
    def stages(self) -> list[str]:
        """Those of all lines."""
        return [self._stages[number] for number in self._numbers]

    def key(self, line: int) -> Key:
        """Which request the line is."""
        return self.stage(line), self.row_ids[line], self.requests[line]

    def add(self, key: Key, hashed: int, tries: int, outcome: int = WAITING) -> int:
        """Add a line; returns its number."""
        stage, row_id, request = key
        if stage not in self._stages:
            self._stages.append(stage)
        self._numbers.append(self._stages.index(stage))
        self.row_ids.append(row_id)
        self.hashes.append(hashed)
        self.requests.append(request)
        self.tries.append(min(tries, 255))
        self.outcomes.append(outcome)
        self._starts.append(-1)
        return len(self.row_ids) - 1

    def write(self, line: bytes) -> None:
        """Write a line to the file that will be sent."""
        if self._file is None:
            self.source.parent.mkdir(exist_ok=True)
            self._file = self.source.open("wb")
        self._file.write(line)
        self.size += len(line)

    def written(self) -> None:
        """No line is added any more."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def stored(self, made_at: datetime) -> StoredBatch:
        """What is stored of a batch that nobody has heard of yet."""
        return StoredBatch(
            self.token,
            self.label,
            self.operation,
            "intent",
            None,
            None,
            len(self),
            self.tokens,
            made_at,
            None,
            None,
            False,
        )

    def take_lines(self, lines: Sequence[StoredLine]) -> None:
        """Take over the lines that an earlier session has made."""
        for each in lines:
            outcome = WORDS.index(each.outcome)
            self.add((each.stage, each.row_id, each.request), each.request_hash, each.tries, outcome)

    def read_results(self, path: Path, read: Callable[[bytes], LineResult]) -> Results:
        """Find each line's result in a file of results; of several, the first counts. Blocks, and changes nothing.

        What is no result of this batch is passed over.
        """
        found, cut = 0, False
        starts, outcomes = array("q", [-1]) * len(self), bytearray(len(self))
        with path.open("rb") as file:
            start = 0
            for data in file:  # ends at b"\n" alone: a text may hold U+2028
                place, start = start, start + len(data)
                if not (text := data.strip()):
                    continue
                try:
                    result = read(text)
                except ValueError:
                    cut = True
                    continue
                cut = False
                line = self._line_of(result.custom_id)
                if line is None or outcomes[line]:
                    continue
                outcomes[line] = {"answered": ANSWERED, "failed": FAILED, "unserved": UNSERVED}[result.kind]
                starts[line] = place
                found += 1
        kept = zip(self.outcomes, outcomes, strict=True)
        return Results(
            found, cut, bytearray(USED if before == USED else now or UNSERVED for before, now in kept), starts
        )

    def take_results(self, results: Results) -> None:
        """The results are stored: hand them out from now on."""
        self.outcomes, self._starts = results.outcomes, results.starts

    def _line_of(self, custom_id: str | None) -> int | None:
        try:
            line = int((custom_id or "").split("-")[1])
            return line if self.custom_id(line) == custom_id else None
        except (ValueError, IndexError):
            return None

    def result(self, line: int) -> bytes:
        """The line's result as it came. ``b""`` where there is none."""
        if self._starts[line] < 0 or self.outcomes[line] == UNSERVED:
            return b""
        if self._file is None:
            self._file = self.results.open("rb")
        self._file.seek(self._starts[line])
        return self._file.readline()

    def count(self, outcome: int) -> int:
        """How many lines came to that."""
        return self.outcomes.count(outcome)

    def close(self) -> None:
        """Close its file."""
        if self._file is not None:
            self._file.close()
            self._file = None
