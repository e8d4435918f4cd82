"""A run over its time: against what the attempts say one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from infermesh.query.over_time import MOST_STEPS, read_sessions, read_timeline
from infermesh.query.reader import RunReader
from infermesh.store.schema import COMMON_DDL, DATABASE, attempts_view

START = datetime(2026, 1, 1)
Attempt = tuple[str, float, float, float, str | None, int | None, int, float | None, int]


def folder(path: Path, attempts: Sequence[Attempt], sessions: Sequence[tuple[float, float | None]]) -> Path:
    """A database of attempts: stage, second of sending, queue_s, service_s, error, code, tokens, cost, rows."""
    path.mkdir(exist_ok=True)
    with duckdb.connect(str(path / DATABASE)) as connection:
        for ddl in (*COMMON_DDL, attempts_view(())):
            connection.execute(ddl)
        for number, (second, elapsed) in enumerate(sessions, start=1):
            began = START + timedelta(seconds=second)
            connection.execute("INSERT INTO sessions VALUES (?, ?, NULL, ?, 'done', NULL)", [number, began, elapsed])
        if attempts:
            stages, seconds, *others = (list(column) for column in zip(*attempts, strict=True))
            sent = [START + timedelta(seconds=second) for second in seconds]
            connection.execute(
                "INSERT INTO attempts_log SELECT stage, row, 1, 'd', sent, queue, service, code, error, tokens, "
                "2 * tokens, cost, rows, NULL, NULL FROM (SELECT unnest(?) AS stage, unnest(?) AS row, "
                "unnest(?) AS sent, unnest(?::DOUBLE[]) AS queue, unnest(?::DOUBLE[]) AS service, "
                "unnest(?::VARCHAR[]) AS error, unnest(?) AS code, unnest(?) AS tokens, "
                "unnest(?::DOUBLE[]) AS cost, unnest(?) AS rows)",
                [stages, list(range(len(sent))), sent, *others],
            )
    return path


def some(count: int, until: float, seed: int = 1) -> list[Attempt]:
    draw = random.Random(seed)
    found: list[Attempt] = []
    for _ in range(count):
        service = draw.uniform(0.1, 3)
        sent = draw.uniform(0.5, until - 3)
        error = draw.choice([None, None, None, "server", "rate_limit"])
        code = {None: 200, "server": 500, "rate_limit": 429}[error]
        queue = draw.uniform(0, min(2, sent))
        found.append((draw.choice("ab"), sent, queue, service, error, code, draw.randint(1, 9), 0.01, 1))
    return found


def test_totals_are_those_of_the_table(tmp_path: Path) -> None:
    attempts = some(4000, 60)
    with RunReader(folder(tmp_path, attempts, [(0, 60.0)])) as reader:
        timeline = read_timeline(reader, read_sessions(reader))
        ((ok, failed, refused, prompts, answers, cost),) = reader.rows(
            "SELECT count(*) FILTER (error_type IS NULL), count(error_type), count(*) FILTER (status_code = 429), "
            "sum(prompt_tokens), sum(completion_tokens), sum(cost_usd) FROM attempts"
        )
        by_stage = dict(reader.rows("SELECT stage, count(*) FROM attempts WHERE error_type IS NULL GROUP BY 1"))
    assert len(timeline.middle_s) == 100  # a step for every forty requests
    assert timeline.step_s == 0.6

    def total(values: Sequence[float | None]) -> float:
        return sum(value or 0 for value in values) * timeline.step_s

    assert total(timeline.answered) == pytest.approx(ok)
    assert total(timeline.failed) == pytest.approx(failed)
    assert total(timeline.refused) == pytest.approx(refused)
    assert total(timeline.prompt_tokens) == pytest.approx(int(prompts))
    assert total(timeline.completion_tokens) == pytest.approx(int(answers))
    assert timeline.cost_usd[-1] == pytest.approx(cost)
    assert {stage: total(line) for stage, line in timeline.rows.items()} == pytest.approx(by_stage)


def open_for(begin: float, end: float, low: float, high: float) -> float:
    """The share of a step in which an interval is open."""
    return max(0.0, min(end, high) - max(begin, low)) / (high - low)


def test_in_flight_and_waiting_are_exact(tmp_path: Path) -> None:
    attempts = some(2000, 50, seed=2)
    with RunReader(folder(tmp_path, attempts, [(0, 50.0)])) as reader:
        timeline = read_timeline(reader, read_sessions(reader))
    width = timeline.step_s
    for place, middle in enumerate(timeline.middle_s):
        low, high = middle - width / 2, middle + width / 2
        sent = sum(open_for(second, second + service, low, high) for _, second, _, service, *_ in attempts)
        held = sum(open_for(second - queue, second, low, high) for _, second, queue, *_ in attempts)
        assert timeline.in_flight[place] == pytest.approx(sent, abs=1e-5)
        assert timeline.waiting[place] == pytest.approx(held, abs=1e-5)


def test_pauses_between_sessions_are_left_out_and_a_killed_one_ends_with_its_last_answer(tmp_path: Path) -> None:
    first: Attempt = ("a", 1.0, 0.0, 3.0, None, 200, 1, None, 1)
    second: Attempt = ("a", 86401.0, 0.0, 1.0, None, 200, 1, None, 5)  # five rows, a day later
    with RunReader(folder(tmp_path, [first, second], [(0, None), (86400, 6.0)])) as reader:
        sessions = read_sessions(reader)
        timeline = read_timeline(reader, sessions)
    assert [(session.began_s, session.length_s) for session in sessions] == [(0.0, 4.0), (4.0, 6.0)]
    assert timeline.step_s * len(timeline.middle_s) == pytest.approx(10.0)
    answered = [middle for middle, rate in zip(timeline.middle_s, timeline.answered, strict=True) if rate]
    assert answered == pytest.approx([4.25, 6.25])  # the answers at 4 and at 4 + 2, in steps of half a second
    assert sum(value or 0 for value in timeline.rows["a"]) * timeline.step_s == pytest.approx(6)
    assert timeline.cost_usd == [None] * 20


def test_there_are_at_most_so_many_steps(tmp_path: Path) -> None:
    attempts = [("a", second / 100, 0.0, 0.1, None, 200, 1, None, 1) for second in range(30000)]
    with RunReader(folder(tmp_path, attempts, [(0, 300.0)])) as reader:
        assert len(read_timeline(reader, read_sessions(reader)).middle_s) == MOST_STEPS == 500


def test_nothing_was_sent(tmp_path: Path) -> None:
    with RunReader(folder(tmp_path, [], [(0, 1.0)])) as reader:
        assert read_timeline(reader, read_sessions(reader)).middle_s == []


def test_requests_without_figures_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path, [("a", 1.0, 0.0, 1.0, None, 200, 1, None, 1)], [(0, 10.0)])
    with duckdb.connect(str(path / DATABASE)) as connection:
        connection.execute("UPDATE attempts_log SET queue_s = NULL, service_s = NULL, request_rows = NULL")
    with RunReader(path) as reader:
        timeline = read_timeline(reader, read_sessions(reader))
    assert sum(value or 0 for value in timeline.answered) * timeline.step_s == pytest.approx(1)
    assert set(timeline.service_p50) == {None}
