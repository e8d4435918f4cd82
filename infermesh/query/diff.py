"""Two runs compared: rows are matched by ``row_key``, answers by their values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infermesh.exact_json import loads
from infermesh.query.attached import LiveTables, attach
from infermesh.query.bound import bind
from infermesh.query.percentile import percentile
from infermesh.query.union import in_memory
from infermesh.store.schema import AFTER_OUTPUTS, BEFORE_OUTPUTS, SOURCE, literal, quoted, results_view
from infermesh.store.values import json_value

_STATE = {column.name for column in (*BEFORE_OUTPUTS, *AFTER_OUTPUTS)}  # all other columns are the answer
_NEEDED = {"row_id", "status", "error_type", "error"}
SIDES = ("a", "b")


@dataclass(frozen=True, slots=True)
class StageTotals:
    """What a stage took in one run. Times are in seconds, percentiles nearest-rank over requests that succeeded."""

    failures: int
    requests: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    p50_s: float | None
    p95_s: float | None
    rows_per_s: float | None


@dataclass(frozen=True, slots=True)
class StageDiff:
    """A stage in both runs.

    Attributes
    ----------
    both
        Rows that both runs have.
    same, different
        Rows that are done in both runs, with the same answer or with different ones.
    other_status
        Rows that ended with one status in A and with another in B.
    only_a, only_b
        Rows that one run has and the other has not.
    a, b
        What the stage took in each run.
    """

    stage: str
    both: int
    same: int
    different: int
    other_status: int
    only_a: int
    only_b: int
    a: StageTotals
    b: StageTotals


class RunDiff:
    """Two runs' databases, attached for reading as ``a`` and ``b``; a context manager that closes them.

    From a live run, what is compared is copied table by table, so its counts are only nearly of one moment.

    Parameters
    ----------
    first, second
        The databases of run A and run B.

    Raises
    ------
    StoreError
        One of them cannot be opened.
    """

    def __init__(self, first: Path, second: Path) -> None:
        self._compared: dict[str, StageDiff] = {}
        self._live_tables: list[LiveTables] = []
        self.connection = in_memory()
        try:
            for path, side in zip((first, second), SIDES, strict=True):
                if (live := attach(self.connection, path, side)) is not None:
                    self._live_tables.append(live)
                    live.fill(["run", "sessions", "retired", "attempts"])
            self._tables = {side: self._read_tables(side) for side in SIDES}
            self._declared = {side: self._read_stages(side) for side in SIDES}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the databases."""
        self.connection.close()
        for live in self._live_tables:
            live.close()

    def __enter__(self) -> RunDiff:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_tables(self, side: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for table, column in self.connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ? AND NOT internal "
            "ORDER BY table_name, column_index",
            [side],
        ).fetchall():
            found.setdefault(table, []).append(column)
        return found

    def _read_stages(self, side: str) -> list[str]:
        if "run" not in self._tables[side]:
            return []
        row = self._one(f"SELECT config FROM {side}.run")
        return list(loads(row[0])["stages"]) if row and row[0] else []

    def _one(self, sql: str) -> tuple[Any, ...]:
        return self.connection.execute(sql).fetchone() or ()

    def stages(self, side: str) -> list[str]:
        """The stages of run ``a`` or ``b`` that have answers, in their order. A sql stage has rows, but no answers."""
        tables = self._tables[side]
        return [stage for stage in self._declared[side] if set(tables.get(stage, ())) >= _NEEDED]

    @property
    def common(self) -> list[str]:
        """The stages with answers that both runs have, in the order of run A."""
        others = set(self.stages("b"))
        return [stage for stage in self.stages("a") if stage in others]

    def answer_columns(self, stage: str) -> list[str]:
        """The columns of a stage's answer that both runs have."""
        columns = [set(self._tables[side][stage]) for side in SIDES]
        return [column for column in self._tables["a"][stage] if column in columns[1] and column not in _STATE]

    def compare(self, stage: str) -> StageDiff:
        """Match a stage's rows and count them; the result is kept."""
        if stage in self._compared:
            return self._compared[stage]
        for live in self._live_tables:
            live.fill([stage])
            live.fill([self.origin_of(stage)], ["row_id", "row_key"])
        columns = self.answer_columns(stage)
        matched = quoted(f"matched_{stage}")
        packed = ", ".join(f"{quoted(column)} := t.{quoted(column)}" for column in columns)
        # The join works on a hash of each answer, so that it holds numbers and not texts and vectors.
        answer = f"md5_number(to_json(struct_pack({packed}))::VARCHAR)" if columns else "0"
        a, b = (
            f"(SELECT k.row_key, t.row_id, t.status, {answer} AS answer FROM {side}.{quoted(stage)} t JOIN "
            f"{side}.{quoted(self.origin_of(stage))} k ON k.row_id = t.row_id{self._without_retired(side, stage)})"
            for side in SIDES
        )
        self.connection.execute(
            f"CREATE TEMP TABLE {matched} AS SELECT row_key, a.row_id AS row_id_a, b.row_id AS row_id_b, a.status AS "
            "status_a, b.status AS status_b, a.answer = b.answer AS same "
            f"FROM {a} a FULL JOIN {b} b USING (row_key)"
        )
        counts = self._one(
            "SELECT count(*) FILTER (status_a IS NOT NULL AND status_b IS NOT NULL), "
            "count(*) FILTER (status_a = 'done' AND status_b = 'done' AND same), "
            "count(*) FILTER (status_a = 'done' AND status_b = 'done' AND NOT same), "
            "count(*) FILTER (status_a <> status_b), count(*) FILTER (status_b IS NULL), "
            f"count(*) FILTER (status_a IS NULL) FROM {matched}"
        )
        values: tuple[Any, ...] = (stage, *counts, *(self._totals(side, stage) for side in SIDES))
        found = StageDiff(*values)
        self._compared[stage] = found
        return found

    def origin_of(self, stage: str) -> str:
        """Whose rows a stage takes, and who has their ``row_key``: a sql stage, or ``source``."""
        tables = self._tables["a"]
        for origin in tables:  # the rows of each sql stage have a view, with the columns of the stages over them
            if origin != SOURCE and f"{stage}_request_key" in tables.get(results_view(origin), ()):
                return origin
        return SOURCE

    def _without_retired(self, side: str, stage: str) -> str:
        """A WHERE on ``t``, the stage's table, that leaves out retired rows."""
        origin, columns = self.origin_of(stage), self._tables[side].get("retired", ())
        if "origin" in columns:
            return f" WHERE t.row_id NOT IN (SELECT row_id FROM {side}.retired WHERE origin = {literal(origin)})"
        return f" WHERE t.row_id NOT IN (SELECT row_id FROM {side}.retired)" if columns and origin == SOURCE else ""

    def _totals(self, side: str, stage: str) -> StageTotals:
        row = self._one(
            "SELECT count(*), count(*) FILTER (attempt > 1), coalesce(sum(prompt_tokens), 0)::BIGINT, "
            "coalesce(sum(completion_tokens), 0)::BIGINT, sum(cost_usd), "
            f"{percentile('service_s', 0.5)} FILTER (error_type IS NULL), "
            f"{percentile('service_s', 0.95)} FILTER (error_type IS NULL) FROM {side}.attempts "
            f"WHERE stage = {literal(stage)}"
        )
        states = self._one(
            "SELECT count(*) FILTER (status = 'error'), count(*) FILTER (status IN ('done', 'error') AND "
            f"coalesce(attempts, 1) > 0) FROM {side}.{quoted(stage)} t{self._without_retired(side, stage)}"
        )
        failures, rows = states
        elapsed = self._elapsed(side)
        values: tuple[Any, ...] = (failures, *row, rows / elapsed if elapsed else None)
        return StageTotals(*values)

    def _elapsed(self, side: str) -> float | None:
        """How many seconds the run's sessions took; from its requests, for a session whose end was not stored."""
        span = "epoch(max(started_at + to_microseconds((coalesce(service_s, 0) * 1e6)::BIGINT)) - min(started_at))"
        if "sessions" not in self._tables[side]:
            row = self._one(f"SELECT {span} FROM {side}.attempts")
        else:
            row = self._one(
                f"SELECT sum(coalesce(elapsed_s, (SELECT {span} FROM {side}.attempts r WHERE r.started_at >= "
                "s.started_at AND r.started_at < s.until))) FROM (SELECT started_at, elapsed_s, "
                f"coalesce(lead(started_at) OVER (ORDER BY session), TIMESTAMP 'infinity') AS until "
                f"FROM {side}.sessions) s"
            )
        seconds: float | None = row[0]
        return seconds

    def differing(self, stages: list[str], limit: int) -> str:
        """A query for the rows that are in both runs and differ.

        ``differs`` names the columns that differ, and ``answer_a`` and ``answer_b`` hold their values as JSON.

        Parameters
        ----------
        limit
            The most rows of each stage; 0 for all of them.
        """
        parts = [f"({self._differing(number, stage, limit)})" for number, stage in enumerate(stages)]
        return f"SELECT * EXCLUDE (position) FROM ({' UNION ALL '.join(parts)}) ORDER BY position, row_id_a, row_key"

    def _differing(self, position: int, stage: str, limit: int) -> str:
        self.compare(stage)
        table = quoted(stage)
        rows = (
            f"SELECT * FROM {quoted(f'matched_{stage}')} WHERE status_a <> status_b OR "
            "(status_a = 'done' AND status_b = 'done' AND NOT same) ORDER BY row_id_a, row_key"
        ) + (f" LIMIT {limit}" if limit else "")
        # found: the columns that differ in a row, as a list of {name, a, b}.
        found = (
            f"SELECT m.*, list_filter([{', '.join(self._value_pairs(stage))}], lambda x: x.a IS DISTINCT FROM x.b) AS "
            f"found FROM ({rows}) m JOIN a.{table} a ON a.row_id = m.row_id_a JOIN b.{table} b ON b.row_id = m.row_id_b"
        )
        answers = (
            f"('{{' || array_to_string(list_transform(found, lambda x: to_json(x.name)::VARCHAR || ':' || "
            f"coalesce(x.{side}::VARCHAR, 'null')), ',') || '}}')::JSON AS answer_{side}"
            for side in SIDES
        )
        return (
            f"SELECT {position} AS position, {literal(stage)} AS stage, row_key, row_id_a, row_id_b, status_a, "
            "status_b, array_to_string(list_transform(found, lambda x: x.name), ', ') AS differs, "
            f"{', '.join(answers)} FROM ({found})"
        )

    def _value_pairs(self, stage: str) -> list[str]:
        """A struct of a column's name and its values in both runs, for each column of the answer and for the error."""
        types = {side: dict(bind(self.connection, f"FROM {side}.{quoted(stage)}").columns) for side in SIDES}
        pairs = [
            (column, [f"to_json({json_value(types[side][column], f'{side}.{quoted(column)}')})" for side in SIDES])
            for column in self.answer_columns(stage)
        ]
        pairs.append(("error", [f"CASE WHEN {side}.status = 'error' THEN to_json({side}.error) END" for side in SIDES]))
        return [f"{{'name': {literal(name)}, 'a': {a}, 'b': {b}}}" for name, (a, b) in pairs]
