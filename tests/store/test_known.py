"""Answers of retired rows, from tables that are written here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pytest

from infermesh.store.known import RetiredAnswers
from infermesh.store.schema import COMMON_DDL, Column, StageTable

TABLE = StageTable("answers", (Column("text", "VARCHAR"), Column("parsed", "JSON")))


class Store:
    """As much of a run's store as is read."""

    def __init__(self) -> None:
        self.connection = duckdb.connect()
        for ddl in (*COMMON_DDL, TABLE.ddl):
            self.connection.execute(ddl)
        self.connection.execute("INSERT INTO run (run_id) VALUES ('mine')")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        return self.connection.cursor()

    def run_value(self, column: str) -> Any:
        row = self.connection.execute(f"SELECT {column} FROM run").fetchone()
        return row and row[0]

    def rows(self, ids: range, key: str = "'same'", *, gone: bool, **values: str) -> None:
        """Answered rows; each has its own number as text and as microseconds."""
        columns = {
            "status": "'done'",
            "text": "i::VARCHAR",
            "request_key": key,
            "prompt_tokens": "7",
            "finished_at": "make_timestamp(i)",
        }
        select = ", ".join(f"{value} AS {name}" for name, value in {**columns, **values}.items())
        rows = f"range({ids.start}, {ids.stop}) t(i)"
        self.connection.execute(f"INSERT INTO answers BY NAME SELECT i AS row_id, {select} FROM {rows}")
        if gone:
            self.connection.execute(f"INSERT INTO retired SELECT i, 'source' FROM {rows}")

    def answers(self) -> RetiredAnswers:
        return RetiredAnswers(self, [TABLE])  # type: ignore[arg-type]


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.connection.close()


def taken(answers: RetiredAnswers, keys: list[str]) -> list[str | None]:
    return [None if answer is None else answer.outputs[0] for answer in answers.hand_out("answers", keys)]


def test_each_once_and_the_newest_first(store: Store) -> None:
    store.rows(range(4), gone=True)
    store.rows(range(10, 12), "'key ' || i", gone=True)
    answers = store.answers()
    assert answers.collect("answers") == 6
    assert taken(answers, ["key 11", "same", "none", "key 11"]) == ["11", "3", None, None]
    assert set(taken(answers, ["same", "same"])) == {"1", "2"}
    assert taken(answers, ["same", "same"]).count(None) == 1
    assert answers.left == {"answers": 1}


def test_what_an_answer_tells(store: Store) -> None:
    store.rows(range(1), gone=True, parsed="""'{"a": 1}'""", model_id="'m'", request_id="'r'", completion_tokens="3")
    answers = store.answers()
    answers.collect("answers")
    (answer,) = answers.hand_out("answers", ["same"])
    assert answer is not None
    assert answer[:-1] == (("0", '{"a": 1}'), "m", "r", 7, 3, "mine")
    assert answer.finished_at is not None


@pytest.mark.parametrize(
    "values",
    [{"status": "'error'"}, {"request_key": "NULL"}, {"reused_from": "'mine'"}],
    ids=lambda value: next(iter(value)),
)
def test_rows_that_give_nothing(store: Store, values: dict[str, str]) -> None:
    store.rows(range(3), gone=True, **values)
    assert store.answers().collect("answers") == 0


def test_live_rows_give_nothing_and_use_up_what_they_were_given(store: Store) -> None:
    store.rows(range(5), gone=False)
    assert store.answers().collect("answers") == 0
    store.rows(range(10, 13), gone=True)
    store.rows(range(20, 21), gone=False, reused_from="'mine'", finished_at="make_timestamp(11)")
    store.rows(range(21, 22), gone=True, reused_from="'mine'", finished_at="make_timestamp(12)")
    store.rows(range(22, 23), gone=False, reused_from="'another'", finished_at="make_timestamp(10)")
    answers = store.answers()
    assert answers.collect("answers") == 2
    assert sorted(filter(None, taken(answers, ["same"] * 3))) == ["10", "12"]


def test_rows_of_another_origin_are_not_meant(store: Store) -> None:
    store.rows(range(3), gone=False)
    store.connection.execute("INSERT INTO retired SELECT i, 'chunks' FROM range(3) t(i)")
    assert store.answers().collect("answers") == 0


def test_threads_do_not_get_the_same(store: Store) -> None:
    store.rows(range(3000), gone=True)
    answers = store.answers()
    answers.collect("answers")
    with ThreadPoolExecutor(4) as pool:
        found = [text for texts in pool.map(lambda _: taken(answers, ["same"] * 100), range(40)) for text in texts]
    assert found.count(None) == 1000
    assert len(set(found)) == 3001
