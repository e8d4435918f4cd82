"""A run's database over sessions that are killed, resumed, edited, made stale and retried, against a model of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infermesh.config.declaration import declare
from infermesh.config.schema import SourceConfig, StoreConfig
from infermesh.inputs.sources import resolve_source
from infermesh.results import Attempt
from infermesh.runs.row import StageOutputs, take_stored, to_be_redone
from infermesh.store import Column, Row, RunStore, StageTable
from infermesh.store.database import Redo
from infermesh.store.schema import attempt_row, state_row
from tests.support import RECORD, assert_holds, experiment, generate, write_jsonl

STAGES = ("first", "second")  # the second reads the first
TABLES = [StageTable(name, (Column("text", "VARCHAR"),)) for name in STAGES]
OUTPUTS = {table.name: StageOutputs(table, ["text"]) for table in TABLES}
STORE = StoreConfig(commit_interval=0.005)
CHUNK = 3  # rows that are read together, so that a few rows are several chunks


_rows = st.lists(st.integers(0, 5), min_size=1, max_size=9)
_stages = st.sampled_from(STAGES)
_outcomes = st.sampled_from(["done", "done", "done", "error", "skipped"])
_redo = st.builds(
    Redo, _stages, st.sampled_from(["true", "s.status = 'done'", "s.row_id % 2 = 0", "s.error_type is not null"])
)


@dataclass(frozen=True)
class State:
    """What a stage's table says of a row."""

    status: str
    error_type: str | None
    finished_at: datetime


States = dict[tuple[str, int], State]  # stage, row_id → its state
Put = tuple[str, int, State | None]  # as it was given to the writer; no state: a request


class Runs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="infermesh-fuzz-"))
        self.chunk = mock.patch("infermesh.store.pending.CHUNK", CHUNK)
        self.chunk.start()
        self.session = 0
        self.folder = self.root / "0"
        self.folder.mkdir()
        self.clock = 0
        self.rows: list[int] = []
        self.ids: dict[str, int] = {}  # row_key → row_id, over all sessions
        self.live: set[int] = set()
        self.states: States = {}
        self.sent: dict[tuple[str, int], int] = {}
        self.queued: list[Put] = []
        self.marked: set[tuple[str, int, datetime]] = set()
        self.stale: set[str] = set()  # until a session has been through all rows
        self.store: RunStore | None = None
        job = declare(
            experiment("http://127.0.0.1:1/v1", {"first": generate(), "second": generate("{{ first.text }}")}), []
        )
        text = job.mapping
        import orjson

        self.record = RECORD | {"config": orjson.dumps(text).decode(), "config_hash": job.hash}

    @initialize(rows=_rows)
    def begin(self, rows: list[int]) -> None:
        self.rows = rows
        self.open()

    # What happens within a session

    @rule(each=st.lists(st.tuples(st.integers(0, 99), _outcomes), min_size=1, max_size=12))
    def settle(self, each: list[tuple[int, str]]) -> None:
        for at, outcome in each:
            self.settle_one(at, outcome)

    def settle_one(self, at: int, outcome: str) -> None:
        """Settle the next stage of a pending row, as the runner does."""
        if not self.work:
            return
        row, stages = self.work[at % len(self.work)]
        name = stages.pop(0)
        if not stages:
            self.work.remove((row, stages))
        state = row.states.get(name)
        if state is not None and state.status == "done" and not state.redo and name in self.stale and at % 2:
            row.context[name] = state.outputs | {"status": "done"}  # its request is the same
            return
        if name == "second" and row.failed:
            self.put(row, name, "skipped", "upstream")
            return
        if outcome == "error" and state is not None and to_be_redone(row, name) and state.status == "done":
            return  # it keeps the answer that it has
        if outcome == "error":
            row.failed[name] = "it failed"
        if outcome != "skipped":
            self.writer.put("attempts", attempt_row(name, row.row_id, self.attempt()))
            self.queued.append((name, row.row_id, None))
        self.put(row, name, outcome, "server" if outcome == "error" else None)

    def attempt(self) -> Attempt:
        self.clock += 1
        return Attempt(attempt=1, deployment="d", started_at=float(self.clock), queue_s=0.0, service_s=0.1)

    def put(self, row: Row, name: str, status: str, error_type: str | None) -> None:
        self.clock += 1
        state = State(status, error_type, datetime(1970, 1, 1) + timedelta(seconds=self.clock))
        sent = int(status != "skipped")
        key = f"key-{row.context['n']}" if status == "done" else None
        error = None if error_type is None else "why"
        values = state_row(
            row.row_id,
            status,
            ("yes",),
            error_type,
            error,
            sent,
            None,
            None,
            None,
            key,
            *(None,) * 5,
            state.finished_at,
            None,
        )
        self.writer.put(name, values, replaces=name in row.states)
        self.queued.append((name, row.row_id, state))

    @rule()
    def commit(self) -> None:
        self.writer.flush()
        self.look()
        assert not self.queued

    # Between sessions

    @rule(killed=st.booleans(), rows=st.none() | _rows, changed=st.none() | _stages, redo=st.none() | _redo)
    def go_on(self, killed: bool, rows: list[int] | None, changed: str | None, redo: Redo | None) -> None:
        """Another session, with an edited source, a changed stage, rows to do again, or none of these."""
        if killed:
            self.die()
        else:
            self.end()
        if rows is not None:
            self.rows = rows
        if changed is not None:
            self.stale |= {changed, "second"}
        self.open(redo)

    def end(self) -> None:
        """The session comes to its end, or is stopped before."""
        assert self.store is not None
        self.writer.close()
        self.look()
        assert not self.queued
        counts = self.store.counts()
        left = bool(self.work) or any(found.get("pending") for found in counts.values())
        failed = any(found.get("error") for found in counts.values())
        self.store.finish("interrupted" if left else "failed_rows" if failed else "done", 1.0)
        self.store.close()
        if not self.work:
            self.stale = set()
        assert_holds(self.folder)

    def die(self) -> None:
        """A kill leaves the files as they are now."""
        assert self.store is not None
        self.session += 1
        folder = self.root / str(self.session)
        folder.mkdir()
        for file in self.folder.iterdir():
            if file.name.startswith("run.duckdb"):
                shutil.copy(file, folder / file.name)
        self.writer.close()
        self.store.close()
        self.folder = folder
        assert_holds(folder)

    def open(self, redo: Redo | None = None) -> None:
        write_jsonl(self.root / "rows.jsonl", [{"n": n} for n in self.rows])
        self.store = store = RunStore(self.folder / "run.duckdb", STORE)
        source = resolve_source(SourceConfig(path="rows.jsonl"), [self.root])
        store.load(source, TABLES, self.record, check=lambda *_: None)
        self.look()  # what was not committed is gone
        self.queued.clear()
        self.look_at_rows()
        if redo is not None:
            marked = {(redo.stage, row_id) for row_id in self.such(redo)}
            assert len(store.redo(redo, {})) == len(marked)
            self.marked |= {(*each, self.states[each].finished_at) for each in marked}
            if redo.stage == "first":
                self.stale.add("second")
        self.look_at_pending()
        self.writer = store.writer()

    def such(self, redo: Redo) -> list[int]:
        assert self.store is not None
        with self.store.cursor() as connection:
            return [
                row for (row,) in connection.execute(f"SELECT row_id FROM {redo.stage} s WHERE {redo.where}").fetchall()
            ]

    # What holds

    def look_at_rows(self) -> None:
        """A row is known by its content, and keeps its number; what has gone from the source is retired."""
        assert self.store is not None
        with self.store.cursor() as connection:
            found = connection.execute("SELECT row_key, row_id, n FROM source").fetchall()
            retired = {row for (row,) in connection.execute("SELECT row_id FROM retired").fetchall()}
        ids = {key: row_id for key, row_id, _ in found}
        assert len(ids) == len(found) == len(set(ids.values()))
        assert self.ids.items() <= ids.items()
        self.ids = ids
        self.live = set(ids.values()) - retired
        assert sorted(n for _, row_id, n in found if row_id in self.live) == sorted(self.rows)

    def look_at_pending(self) -> None:
        """The reader gives the chunks with a pending row and no others, each row with the stages that it lacks."""
        assert self.store is not None
        reader = self.store.reader({"first": ["text"], "second": []}, stale=self.stale)
        pending = {
            row_id: stages
            for row_id in self.live
            if (stages := [name for name in STAGES if name in self.stale or not self.is_settled(name, row_id)])
        }
        read = {row.row_id: row for chunk in reader.chunks for row in reader.read(chunk)}
        everywhere = bool(self.stale)
        assert reader.chunks == sorted({row_id // CHUNK for row_id in (self.live if everywhere else pending)})
        self.work: list[tuple[Row, list[str]]] = []
        for row_id, row in sorted(read.items()):
            lacks = [name for name in STAGES if not self.taken(row, name)]
            assert lacks == pending.get(row_id, [])
            if lacks:
                self.work.append((row, lacks))

    def taken(self, row: Row, name: str) -> bool:
        return take_stored(row, name, OUTPUTS[name], stale=name in self.stale, keep_errors=False)

    def is_settled(self, name: str, row_id: int) -> bool:
        state = self.states.get((name, row_id))
        if state is None or (name, row_id, state.finished_at) in self.marked:
            return False
        return state.status == "done" or (state.status == "skipped" and state.error_type is None)

    @invariant()
    def look(self) -> None:
        """What is committed is what was given to the writer up to some moment, in its order."""
        assert self.store is not None
        with self.store.cursor() as connection:
            connection.begin()
            found = connection.execute(
                " UNION ALL ".join(
                    f"SELECT '{name}', row_id, status, error_type, finished_at, NULL FROM {name}" for name in STAGES
                )
                + " UNION ALL SELECT stage, row_id, NULL, NULL, NULL, count(*) FROM attempts GROUP BY ALL"
            ).fetchall()
            progress = connection.execute("SELECT stage, status, rows FROM progress").fetchall()
            retired = {row for (row,) in connection.execute("SELECT row_id FROM retired").fetchall()}
            source = {row for (row,) in connection.execute("SELECT row_id FROM source").fetchall()}
            connection.commit()
        rows = [(stage, row_id) for stage, row_id, status, *_ in found if status is not None]
        assert len(rows) == len(set(rows)), "a row stands there twice"
        states = {(name, row_id): State(*state) for name, row_id, *state, sent in found if sent is None}
        sent = {(name, row_id): sent for name, row_id, *_, sent in found if sent is not None}
        for queued in range(len(self.queued) + 1):
            if (self.states, self.sent) == (states, sent):
                break
            assert queued < len(self.queued), "no moment at which the writer stood here"
            self.apply(self.queued[queued])
        del self.queued[:queued]
        self.check_progress(progress, source - retired)

    def apply(self, put: Put) -> None:
        name, row_id, state = put
        if state is None:
            self.sent[name, row_id] = self.sent.get((name, row_id), 0) + 1
        else:
            self.states[name, row_id] = state

    def check_progress(self, progress: Sequence[tuple[str, str, int]], live: Collection[int]) -> None:
        expected: dict[tuple[str, str], int] = {}
        for name in STAGES:
            for row_id in live:
                state = self.states.get((name, row_id))
                again = state is None or (name, row_id, state.finished_at) in self.marked
                status = "pending" if state is None or again else state.status
                expected[name, status] = expected.get((name, status), 0) + 1
        assert {(name, status): rows for name, status, rows in progress} == expected

    def teardown(self) -> None:
        try:
            if self.store is not None:
                self.end()
        finally:
            self.chunk.stop()
            shutil.rmtree(self.root, ignore_errors=True)


TestRuns: Any = Runs.TestCase
TestRuns.settings = settings(max_examples=max(settings().max_examples // 25, 1), stateful_step_count=8)
