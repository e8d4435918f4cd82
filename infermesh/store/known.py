"""Answers that need not be asked for again: of this run's rows that have gone, and of earlier runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from infermesh.config.schema import Experiment
from infermesh.store.database import RunStore
from infermesh.store.memory import fetch
from infermesh.store.reuse import CARRIED, Answer, EarlierAnswers
from infermesh.store.schema import StageTable, literal, live, quoted, retired


class RetiredAnswers:
    """The answers that this run has had for rows that are retired now, each to be given to one row.

    A row that is edited in a column which its prompt does not name is another row with the same request. Rows may be
    identical on purpose, to sample a prompt several times: so each answer is handed on once.

    A row that was given one has this run's own id as ``reused_from``, and the answer's ``finished_at``. By these two an
    answer that is in use is told in later sessions, so that nothing else has to be written down.

    In memory is a key and a number for each answer; the answers stay where they are.
    """

    def __init__(self, store: RunStore, tables: Sequence[StageTable]) -> None:
        self._connection = store.cursor()
        self._run_id = store.run_value("run_id")
        self._lock = threading.Lock()  # several stages ask at once; a temporary table is its connection's alone
        self._tables = {table.name: table for table in tables}
        self.left: dict[str, int] = {}

    def take(self, stage: str) -> int:
        """Find a stage's answers that are free; how many they are. Called once the rows of its origin are known."""
        table = self._tables.get(stage)
        if table is None:
            return 0
        with self._lock:
            asked = self._connection.execute("SELECT 1 FROM retired WHERE origin = ? LIMIT 1", [table.origin])
            if asked.fetchone() is None:
                return 0
            rows, own = quoted(stage), literal(self._run_id)
            self._connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {_name(stage)} AS SELECT hash(request_key) AS key, row_id, row_number() "
                "OVER (PARTITION BY request_key ORDER BY finished_at DESC, row_id) AS number "
                f"FROM {rows} s WHERE {retired(table.origin)} AND s.status = 'done' AND s.request_key IS NOT NULL "
                f"AND s.reused_from IS DISTINCT FROM {own} AND NOT EXISTS (SELECT 1 FROM (FROM {rows} s WHERE "
                f"s.status = 'done' AND s.reused_from = {own} AND {live(table.origin)}) given "
                "WHERE given.request_key = s.request_key AND given.finished_at = s.finished_at)"
            )
            row = self._connection.execute(f"SELECT count(*) FROM {_name(stage)}").fetchone()
        self.left[stage] = row[0] if row else 0
        return self.left[stage]

    def hand_out(self, stage: str, keys: Sequence[str]) -> list[Answer | None]:
        """An answer for each request, where one is left; nobody else gets it. From any thread."""
        wanted, mine = Counter(keys), _name(stage)  # of two keys with the same hash, one would be sent after all
        table = self._tables[stage]
        count = len(table.outputs)
        outputs = [quoted(column.name) for column in table.outputs]
        select = ", ".join([*outputs, *CARRIED, literal(self._run_id), "finished_at", "request_key"])
        with self._lock:
            taken = self._connection.execute(
                f"DELETE FROM {mine} AS a USING (SELECT w.key, w.most, min(b.number) AS next FROM (SELECT "
                f"hash(unnest($keys::VARCHAR[])) AS key, unnest($most::BIGINT[]) AS most) w JOIN {mine} b ON b.key = "
                "w.key GROUP BY ALL) f WHERE a.key = f.key AND a.number < f.next + f.most RETURNING a.row_id",
                {"keys": list(wanted), "most": list(wanted.values())},
            ).fetchall()
            if not taken:
                return [None] * len(keys)
            ids = [row_id for (row_id,) in taken]
            # The range lets DuckDB skip what is far away: new rows come in much the order of the old ones.
            rows = fetch(
                self._connection,
                f"SELECT {select} FROM {quoted(stage)} WHERE row_id IN (SELECT unnest($ids::BIGINT[])) "
                "AND row_id BETWEEN $low AND $high",
                {"ids": ids, "low": min(ids), "high": max(ids)},
            )
            self.left[stage] -= len(ids)
        found: dict[str, list[Answer]] = {}
        for row in rows:
            found.setdefault(row[-1], []).append(Answer(row[:count], *row[count:-1]))
        return [found[key].pop() if found.get(key) else None for key in keys]

    def close(self) -> None:
        """Let go of the database; waits for a lookup that is going on."""
        with self._lock:
            self._connection.close()


class KnownAnswers:
    """The answers to requests that a run need not send: first those of its own retired rows, then of earlier runs."""

    def __init__(self, own: RetiredAnswers, earlier: EarlierAnswers | None, note: Callable[[str], None]) -> None:
        self._own = own
        self._earlier = earlier
        self._note = note

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        folder: Path,
        store: RunStore,
        tables: Sequence[StageTable],
        note: Callable[[str], None],
    ) -> KnownAnswers:
        """The answers for these stages; of earlier runs, what ``reuse`` asks for.

        Raises
        ------
        ConfigError
            ``reuse`` names a folder that holds no run.
        """
        return cls(RetiredAnswers(store, tables), EarlierAnswers.of(experiment, folder, store, tables, note), note)

    def take_retired(self, stages: Collection[str]) -> None:
        """Find the answers of retired rows for stages whose rows are known by now, and say so."""
        told = [f"{found} for {name}" for name in stages if (found := self._own.take(name))]
        if told:
            self._note(f"answers of rows that are gone: {', '.join(told)}: a request that is the same is not sent")

    def knows(self, stage: str) -> bool:
        """Whether there is any answer for a stage."""
        return self._own.left.get(stage, 0) > 0 or (self._earlier is not None and self._earlier.knows(stage))

    def look_up(self, stage: str, keys: Sequence[str]) -> list[Answer | None]:
        """What is known for each request, in their order; from any thread."""
        found: list[Answer | None] = [None] * len(keys)
        if not keys:
            return found
        if self._own.left.get(stage, 0) > 0:
            found = self._own.hand_out(stage, keys)
        if self._earlier is not None and self._earlier.knows(stage):
            others = self._earlier.look_up(stage, [key for key, own in zip(keys, found, strict=True) if own is None])
            found = [own or others.get(key) for key, own in zip(keys, found, strict=True)]
        return found

    def close(self) -> None:
        """Let go of the database."""
        self._own.close()


def _name(stage: str) -> str:
    return quoted(f"free_answers_to_{stage}")
