"""Known answers: of this run's retired rows, and of earlier runs. A row whose request has one is not sent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from infermesh.config.schema import Experiment
from infermesh.store.database import RunStore
from infermesh.store.memory import fetch
from infermesh.store.reuse import CARRIED, EarlierAnswers, KnownAnswer
from infermesh.store.schema import StageTable, literal, not_retired, quoted, retired


class RetiredAnswers:
    """The answers of this run's retired rows. Each is handed out to at most one live row, over all sessions.

    They are needed because a row is identified by its content: editing a column that the prompt does not name retires
    the row and adds a new one with the same request. Each answer is handed out once, because rows may be identical on
    purpose, to sample a prompt several times.

    A row that gets an answer stores this run's id in ``reused_from`` and the answer's ``finished_at``. (reused_from,
    finished_at) identifies an answer already handed out, so no extra table is needed: the free answers are computed
    from what is committed. A kill before the row is committed leaves its answer free.

    The temporary table of free answers holds a hash of the key and two numbers for each. The answers are read from the
    stage's table when they are handed out.
    """

    def __init__(self, store: RunStore, tables: Sequence[StageTable]) -> None:
        self._connection = store.cursor()
        self._run_id = store.run_value("run_id")
        # Stages look up in several threads; only this connection sees its temporary tables.
        self._lock = threading.Lock()
        self._tables = {table.name: table for table in tables}
        self.left: dict[str, int] = {}  # stage → free answers

    def collect(self, stage: str) -> int:
        """Find a stage's free answers and return how many there are.

        Call it when the rows of the stage's origin have been merged, and before the stage runs.
        """
        table = self._tables.get(stage)
        if table is None:
            return 0
        with self._lock:
            any_retired = self._connection.execute("SELECT 1 FROM retired WHERE origin = ? LIMIT 1", [table.origin])
            if any_retired.fetchone() is None:
                return 0
            rows, own = quoted(stage), literal(self._run_id)
            # An answer is free if this run sent its request, for a row that is retired now, and no live row has it. (An
            # answer that was handed to the retired row is found at its first owner.) `number` numbers the answers to
            # the same request, newest first.
            self._connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {_temp_table(stage)} AS SELECT hash(request_key) AS key, row_id, "
                "row_number() OVER (PARTITION BY request_key ORDER BY finished_at DESC, row_id) AS number "
                f"FROM {rows} s WHERE {retired(table.origin)} AND s.status = 'done' AND s.request_key IS NOT NULL "
                f"AND s.reused_from IS DISTINCT FROM {own} AND NOT EXISTS (SELECT 1 FROM (FROM {rows} s WHERE "
                f"s.status = 'done' AND s.reused_from = {own} AND {not_retired(table.origin)}) given "
                "WHERE given.request_key = s.request_key AND given.finished_at = s.finished_at)"
            )
            row = self._connection.execute(f"SELECT count(*) FROM {_temp_table(stage)}").fetchone()
        self.left[stage] = row[0] if row else 0
        return self.left[stage]

    def hand_out(self, stage: str, keys: Sequence[str]) -> list[KnownAnswer | None]:
        """For each request a free answer, or ``None``. An answer returned is no longer free. From any thread; blocks.

        The caller must settle the row with it: only that marks it as handed out for later sessions.
        """
        # Two keys with the same hash do no harm: the full key is compared below, and one of them would be sent.
        wanted, mine = Counter(keys), _temp_table(stage)
        table = self._tables[stage]
        count = len(table.outputs)
        outputs = [quoted(column.name) for column in table.outputs]
        select = ", ".join([*outputs, *CARRIED, literal(self._run_id), "finished_at", "request_key"])
        with self._lock:
            # For each key take as many answers as there are requests, those with the lowest numbers left.
            taken = self._connection.execute(
                f"DELETE FROM {mine} AS a USING (SELECT w.key, w.most, min(b.number) AS next FROM (SELECT "
                f"hash(unnest($keys::VARCHAR[])) AS key, unnest($most::BIGINT[]) AS most) w JOIN {mine} b ON b.key = "
                "w.key GROUP BY ALL) f WHERE a.key = f.key AND a.number < f.next + f.most RETURNING a.row_id",
                {"keys": list(wanted), "most": list(wanted.values())},
            ).fetchall()
            if not taken:
                return [None] * len(keys)
            ids = [row_id for (row_id,) in taken]
            # The range lets DuckDB skip row groups. It is narrow: new rows come in nearly the order of the old.
            rows = fetch(
                self._connection,
                f"SELECT {select} FROM {quoted(stage)} WHERE row_id IN (SELECT unnest($ids::BIGINT[])) "
                "AND row_id BETWEEN $low AND $high",
                {"ids": ids, "low": min(ids), "high": max(ids)},
            )
            self.left[stage] -= len(ids)
        found: dict[str, list[KnownAnswer]] = {}
        for row in rows:
            found.setdefault(row[-1], []).append(KnownAnswer(row[:count], *row[count:-1]))
        return [found[key].pop() if found.get(key) else None for key in keys]

    def close(self) -> None:
        """Close the connection, after a lookup in another thread has ended."""
        with self._lock:
            self._connection.close()


class KnownAnswers:
    """All known answers: first those of the run's own retired rows, then those of earlier runs."""

    def __init__(self, own: RetiredAnswers, earlier: EarlierAnswers | None, note: Callable[[str], None]) -> None:
        self._own = own
        self._earlier = earlier
        self._note = note

    @classmethod
    def for_run(
        cls,
        experiment: Experiment,
        folder: Path,
        store: RunStore,
        tables: Sequence[StageTable],
        note: Callable[[str], None],
    ) -> KnownAnswers:
        """The known answers for these stages; of earlier runs, those that the experiment's ``reuse`` names.

        Raises
        ------
        ConfigError
            ``reuse`` names a folder that holds no run.
        """
        earlier = EarlierAnswers.for_run(experiment, folder, store, tables, note)
        return cls(RetiredAnswers(store, tables), earlier, note)

    def collect_retired(self, stages: Collection[str]) -> None:
        """Find the free answers of retired rows, once the rows of these stages' origin have been merged."""
        counts = [f"{found} for {name}" for name in stages if (found := self._own.collect(name))]
        if counts:
            self._note(f"answers of rows that are gone: {', '.join(counts)}: a request that is the same is not sent")

    def knows(self, stage: str) -> bool:
        """Whether a stage has any known answers left. Cheap: no query."""
        return self._own.left.get(stage, 0) > 0 or (self._earlier is not None and self._earlier.knows(stage))

    def look_up(self, stage: str, keys: Sequence[str]) -> list[KnownAnswer | None]:
        """For each request its known answer or ``None``, in the same order. From any thread; blocks.

        An answer of a retired row is handed out with this call: see :meth:`RetiredAnswers.hand_out`.
        """
        found: list[KnownAnswer | None] = [None] * len(keys)
        if not keys:
            return found
        if self._own.left.get(stage, 0) > 0:
            found = self._own.hand_out(stage, keys)
        if self._earlier is not None and self._earlier.knows(stage):
            others = self._earlier.look_up(stage, [key for key, own in zip(keys, found, strict=True) if own is None])
            found = [own or others.get(key) for key, own in zip(keys, found, strict=True)]
        return found

    def close(self) -> None:
        self._own.close()


def _temp_table(stage: str) -> str:
    return quoted(f"free_answers_to_{stage}")
