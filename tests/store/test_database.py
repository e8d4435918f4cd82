"""run.duckdb as people and the next session find it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.config.schema import SourceConfig, StoreConfig
from infermesh.errors import ConfigError, StoreError, StoreInUseError
from infermesh.inputs.sources import resolve_source
from infermesh.results import Attempt
from infermesh.store import Column, RunStore, StageTable
from infermesh.store import connection as opening
from infermesh.store.connection import connect
from infermesh.store.database import Redo
from infermesh.store.schema import AFTER_OUTPUTS, ATTEMPTS, BEFORE_OUTPUTS, attempt_row, state_row
from tests.support import DEADLINE_S, RECORD, texts, write_jsonl

ANSWERS = StageTable("answers", (Column("text", "VARCHAR"), Column("parsed", "JSON")))
VECTORS = StageTable("vectors", (Column("embedding", "FLOAT[]"),))


def state(table: StageTable, row_id: int, status: str, *outputs: Any, **after: Any) -> tuple[Any, ...]:
    """A row of a stage's table; outputs that are not given are null."""
    padded = [*outputs, *[None] * (len(table.outputs) - len(outputs))]
    names = [column.name for column in table.columns[2 + len(table.outputs) :]]
    return (row_id, status, *padded, *(after.get(name) for name in names))


def prepare(store: RunStore, root: Path, tables: Sequence[StageTable] = (ANSWERS, VECTORS)) -> None:
    store.load(resolve_source(SourceConfig(path="rows.jsonl"), [root]), tables, RECORD, check=lambda *_: None)


def put(store: RunStore, *rows: tuple[str, tuple[Any, ...]], replaces: bool = False) -> None:
    writer = store.writer()
    for table, row in rows:
        writer.put(table, row, replaces=replaces)
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """A store with four rows and two stages."""
    write_jsonl(tmp_path / "rows.jsonl", texts(4))
    found = RunStore(tmp_path / "run.duckdb", StoreConfig())
    prepare(found, tmp_path)
    yield found
    found.close()


def pending(store: RunStore, *, stale: Sequence[str] = (), keep_errors: bool = False) -> list[int]:
    """The rows that a session would look at: those of chunks with anything pending, settled neighbours left out."""
    reader = store.reader({}, stale=stale, keep_errors=keep_errors)
    return [row.row_id for chunk in reader.chunks for row in reader.read(chunk)]


class TestTables:
    def test_public_columns(self, store: RunStore, tmp_path: Path) -> None:
        store.close()
        with connect(tmp_path / "run.duckdb", read_only=True) as connection:

            def columns(table: str) -> list[str]:
                return [
                    name for (name,) in connection.execute(f"SELECT column_name FROM (DESCRIBE {table})").fetchall()
                ]

            after = [
                *("error_type", "error", "attempts", "deployment", "model_id", "request_id", "request_key"),
                *(
                    "prompt_tokens",
                    "completion_tokens",
                    "cost_usd",
                    "queue_s",
                    "service_s",
                    "finished_at",
                    "reused_from",
                    "sole_request",
                ),
            ]
            assert columns("source") == ["row_id", "row_key", "n", "text"]
            assert columns("answers") == ["row_id", "status", "text", "parsed", *after]
            assert columns("attempts")[:12] == [
                *("stage", "row_id", "attempt", "deployment", "started_at", "queue_s", "service_s"),
                *("status_code", "error_type", "prompt_tokens", "completion_tokens", "cost_usd"),
            ]
            assert set(columns("run")) >= {
                *("run_id", "experiment", "status", "config", "config_hash", "git_revision", "versions"),
                *("started_at", "finished_at"),
            }
            assert columns("results")[:6] == ["row_id", "row_key", "n", "text", "answers_status", "answers_text"]
            assert columns("progress") == ["stage", "status", "rows"]

    def test_results_has_a_row_for_each_source_row(self, store: RunStore, tmp_path: Path) -> None:
        put(
            store,
            ("answers", state(ANSWERS, 1, "done", "yes", '{"a": 1}', request_key="k")),
            ("vectors", state(VECTORS, 1, "done", [1.0, 2.5])),
            ("answers", state(ANSWERS, 3, "error", error_type="server", error="it failed")),
        )
        store.close()
        with connect(tmp_path / "run.duckdb", read_only=True) as connection:
            rows = connection.execute(
                "SELECT n, answers_status, answers_text, answers_parsed->>'a', vectors_embedding, answers_error "
                "FROM results ORDER BY n"
            ).fetchall()
        assert rows == [
            (0, None, None, None, None, None),
            (1, "done", "yes", "1", [1.0, 2.5], None),
            (2, None, None, None, None, None),
            (3, "error", None, None, None, "it failed"),
        ]

    def test_progress_counts_by_stage_and_status(self, store: RunStore) -> None:
        put(
            store,
            ("answers", state(ANSWERS, 0, "done")),
            ("answers", state(ANSWERS, 1, "error")),
            ("vectors", state(VECTORS, 0, "skipped")),
        )
        assert store.counts() == {
            "answers": {"done": 1, "error": 1, "pending": 2},
            "vectors": {"skipped": 1, "pending": 3},
        }

    def test_progress_is_what_a_join_with_the_source_would_count(self, store: RunStore, tmp_path: Path) -> None:
        put(store, *(("answers", state(ANSWERS, row, ("done", "error", "skipped")[row])) for row in range(3)))
        put(store, ("vectors", state(VECTORS, 3, "done")))
        store.close()
        write_jsonl(tmp_path / "rows.jsonl", [*texts(6)[2:], {"n": 7, "text": "new"}])  # 0 and 1 are retired
        store = RunStore(tmp_path / "run.duckdb", StoreConfig())
        prepare(store, tmp_path)
        assert store.source_change == (3, 2)
        joined = " UNION ALL ".join(
            f"SELECT {number} AS position, '{name}' AS stage, coalesce(t.status, 'pending') AS status, "
            f"count(*) AS rows FROM source s LEFT JOIN {name} t USING (row_id) "
            "WHERE s.row_id NOT IN (SELECT row_id FROM retired WHERE origin = 'source') GROUP BY ALL"
            for number, name in enumerate(("answers", "vectors"))
        )
        with store.cursor() as cursor:
            expected = cursor.execute(
                f"SELECT stage, status, rows FROM ({joined}) ORDER BY position, status"
            ).fetchall()
            found = cursor.execute("FROM progress")
            assert [column[1] for column in found.description or ()] == ["VARCHAR", "VARCHAR", "BIGINT"]
            assert found.fetchall() == expected
        assert expected == [
            ("answers", "pending", 4),
            ("answers", "skipped", 1),
            ("vectors", "done", 1),
            ("vectors", "pending", 4),
        ]
        store.close()

    @pytest.mark.parametrize("column", ["answers_text", "answers_status", "vectors_embedding"])
    def test_a_source_column_named_as_a_results_column(self, tmp_path: Path, column: str) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{column: "mine"}])
        store = RunStore(tmp_path / "run.duckdb", StoreConfig())
        prepare(store, tmp_path)
        put(store, ("answers", state(ANSWERS, 0, "done", "answer")), ("vectors", state(VECTORS, 0, "done", [1.0])))
        store.close()
        with connect(tmp_path / "run.duckdb", read_only=True) as connection:
            found = connection.execute("SELECT * FROM results")
            names = [name for name, *_ in found.description or ()]
            assert len(names) == len(set(names))
            row = dict(zip(names, found.fetchone() or (), strict=True))
            assert row[f"source_{column}"] == "mine"
            assert row[column] in ("answer", "done", [1.0])


class TestWhatIsPending:
    def test_everything_at_first(self, store: RunStore) -> None:
        assert pending(store) == [0, 1, 2, 3]

    def test_nothing_once_all_is_settled(self, store: RunStore) -> None:
        for table in (ANSWERS, VECTORS):
            put(store, *((table.name, state(table, row, "done" if row else "skipped")) for row in range(4)))
        assert pending(store) == []
        assert pending(store, stale=["vectors"]) == [0, 1, 2, 3]

    @pytest.mark.parametrize("table", [ANSWERS, VECTORS])
    def test_a_failed_row_is_tried_again_unless_errors_are_kept(self, store: RunStore, table: StageTable) -> None:
        for each in (ANSWERS, VECTORS):
            put(store, *((each.name, state(each, row, "done")) for row in range(4) if each is not table or row != 2))
        put(store, (table.name, state(table, 2, "error", error_type="server")))
        assert 2 in pending(store)
        assert pending(store, keep_errors=True) == []

    def test_a_row_whose_upstream_failed_is_tried_again(self, store: RunStore) -> None:
        for table in (ANSWERS, VECTORS):
            put(store, *((table.name, state(table, row, "done")) for row in range(3)))
        put(store, ("answers", state(ANSWERS, 3, "done")))
        put(store, ("vectors", state(VECTORS, 3, "skipped", error_type="upstream")))
        assert 3 in pending(store)

    def test_stored_outputs_come_with_the_row(self, store: RunStore) -> None:
        put(store, ("answers", state(ANSWERS, 1, "done", "yes", '{"a": [1]}', request_key="k")))
        reader = store.reader({"answers": ["text", "parsed"]}, stale=(), keep_errors=False)
        rows = {row.row_id: row for chunk in reader.chunks for row in reader.read(chunk)}
        found = rows[1].states["answers"]
        assert (found.status, found.request_key) == ("done", "k")
        assert found.outputs == {"text": "yes", "parsed": {"a": [1]}}
        assert rows[0].states == {}


class TestOpening:
    def test_another_process_holds_it(self, store: RunStore, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from infermesh.config.schema import StoreConfig; "
            "from infermesh.errors import StoreError; from infermesh.store import RunStore\n"
            "try: RunStore(Path(sys.argv[1]), StoreConfig())\n"
            "except StoreError as error: print(error)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run.duckdb")],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
        assert "run.duckdb is in use by" in found.stdout
        assert "Wait for it, or stop it" in found.stdout

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "run.duckdb").write_bytes(b"something else entirely" * 1000)
        with pytest.raises(StoreError, match=r"run\.duckdb cannot be opened"):
            RunStore(tmp_path / "run.duckdb", StoreConfig())

    def test_a_newer_version_wrote_it(self, store: RunStore, tmp_path: Path) -> None:
        store.close()
        with duckdb.connect(str(tmp_path / "run.duckdb")) as connection:
            connection.execute("UPDATE run SET schema_version = 999")
        with pytest.raises(StoreError, match=r"newer infermesh.*999"):
            RunStore(tmp_path / "run.duckdb", StoreConfig())

    def test_a_stage_that_was_another_kind_is_made_anew(self, store: RunStore, tmp_path: Path) -> None:
        """The same name with other columns: nothing is written into columns that mean something else, nothing lost."""
        put(store, ("answers", state(ANSWERS, 0, "done", "yes")))
        store.close()
        again = RunStore(tmp_path / "run.duckdb", StoreConfig())
        changed = StageTable("answers", VECTORS.outputs)
        prepare(again, tmp_path, (changed, VECTORS))
        put(again, ("answers", state(changed, 1, "done", [1.0])))
        assert again.counts()["answers"] == {"done": 1, "pending": 3}
        again.close()
        with connect(tmp_path / "run.duckdb", read_only=True) as connection:
            tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            (old,) = [name for name in tables if name.startswith("answers_")]
            assert connection.execute(f"SELECT text FROM {old}").fetchall() == [("yes",)]

    def test_a_check_that_fails_leaves_the_run_as_it_was(self, store: RunStore, tmp_path: Path) -> None:
        put(store, ("answers", state(ANSWERS, 0, "done", "yes")))
        store.close()
        write_jsonl(tmp_path / "rows.jsonl", texts(2))
        again = RunStore(tmp_path / "run.duckdb", StoreConfig())

        def refuse(_: object, origins: Mapping[str, Sequence[Column]]) -> None:
            raise ConfigError("no")

        source = resolve_source(SourceConfig(path="rows.jsonl"), [tmp_path])
        with pytest.raises(ConfigError):
            again.load(source, (ANSWERS,), RECORD | {"config_hash": "new"}, check=refuse)
        assert again.run_value("config_hash") == "abc"
        assert again.total() == 4
        again.close()

    def test_a_stage_named_as_a_source_column(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", [{"Answers": 1}])
        store = RunStore(tmp_path / "run.duckdb", StoreConfig())
        with pytest.raises(ConfigError, match=r"stages\.answers.*'Answers'.*Rename the stage"):
            prepare(store, tmp_path)
        store.close()


@contextmanager
def open_elsewhere(path: Path, *, read_only: bool) -> Iterator[subprocess.Popen[str]]:
    """A process that has the database open until its stdin is closed."""
    code = (
        f"import duckdb, sys; c = duckdb.connect({str(path)!r}, read_only={read_only}); print('open', flush=True); "
        "sys.stdin.read(); c.close()"
    )
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()


class Tries:
    """Counts how often a database is opened, for writing and for reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writing = self.reading = 0
        self.before: Any = lambda: None
        self._connect = opening.connect
        monkeypatch.setattr(opening, "connect", self)

    def __call__(self, path: Path, config: Any = None, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        self.reading += read_only
        self.writing += not read_only
        self.before()
        return self._connect(path, config, read_only=read_only)


def test_a_reader_that_ends_soon_is_waited_for(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    monkeypatch.setattr(opening, "_READERS_S", DEADLINE_S)
    tries = Tries(monkeypatch)
    with open_elsewhere(store.path, read_only=True) as process:

        def end_at_the_third() -> None:
            if tries.writing == 3 and process.stdin is not None and not process.stdin.closed:
                process.stdin.close()
                process.wait(DEADLINE_S)

        tries.before = end_at_the_third
        again = RunStore(store.path, StoreConfig())
    assert (tries.writing, tries.reading) == (3, 1)
    assert again.total() == 4
    again.close()


def test_a_reader_that_stays_is_not_waited_for_for_ever(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    monkeypatch.setattr(opening, "_READERS_S", 0.1)
    with (
        open_elsewhere(store.path, read_only=True) as process,
        pytest.raises(StoreInUseError, match=f"process {process.pid}"),
    ):
        RunStore(store.path, StoreConfig())


def test_a_writer_is_not_waited_for(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    tries = Tries(monkeypatch)
    with (
        open_elsewhere(store.path, read_only=False) as process,
        pytest.raises(StoreInUseError, match=f"process {process.pid}"),
    ):
        RunStore(store.path, StoreConfig())
    assert (tries.writing, tries.reading) == (1, 1)


def test_a_tables_columns_and_the_rows_put_into_it_have_the_same_order() -> None:
    from_state = list(inspect.signature(state_row).parameters)
    assert from_state == [column.name for column in (*BEFORE_OUTPUTS, Column("outputs", ""), *AFTER_OUTPUTS)]
    attempt = Attempt(2, "gpu", 86400.5, 0.1, 0.2, 429, "rate_limit", 5, 6, 0.7, 8, "flex")
    by_column = dict(zip([column.name for column in ATTEMPTS], attempt_row("a", 3, attempt, "slow down"), strict=True))
    assert by_column == {
        "stage": "a",
        "row_id": 3,
        "attempt": 2,
        "deployment": "gpu",
        "started_at": 86_400_500_000,
        "queue_s": 0.1,
        "service_s": 0.2,
        "status_code": 429,
        "error_type": "rate_limit",
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "cost_usd": 0.7,
        "request_rows": 8,
        "error": "slow down",
        "service_tier": "flex",
    }


def test_an_answer_stays_where_the_one_that_replaces_it_cannot_be_stored(store: RunStore, tmp_path: Path) -> None:
    put(
        store,
        *(
            ("answers", state(ANSWERS, row, "done", f"first {row}", finished_at=datetime(2026, 1, 1)))
            for row in range(4)
        ),
    )
    assert list(store.redo(Redo("answers", "row_id < 3"), {})) == [0, 1, 2]
    later = datetime(2026, 1, 2)
    put(
        store,
        ("answers", state(ANSWERS, 0, "done", "second", finished_at=later)),
        ("answers", state(ANSWERS, 1, "done", "\ud800", finished_at=later)),
        ("answers", state(ANSWERS, 3, "done", "\ud800", finished_at=later)),  # not one to be done again
        replaces=True,
    )
    store.close()
    with connect(tmp_path / "run.duckdb", read_only=True) as connection:
        found = connection.execute("SELECT row_id, status, text FROM answers ORDER BY ALL").fetchall()
        assert found == [(0, "done", "second"), (1, "done", "first 1"), (2, "done", "first 2"), (3, "error", None)]
        assert Redo("answers", "status = 'done'").count(connection) == 3
        left = connection.execute("SELECT rows FROM progress WHERE stage = 'answers' AND status = 'pending'")
        assert left.fetchall() == [(2,)]
