"""The table ``attempts``: a request that a row tells of itself is in it as if it had been written twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import pytest

from infermesh.results import Attempt, GenerationResult, RequestMetrics, TokenUsage
from infermesh.runs.row import settled_row, tells_its_request
from infermesh.simulator import Simulator
from infermesh.store.database import Redo
from infermesh.store.schema import Column, StageTable, attempt_row, attempts_view, row_instead
from tests.runs.test_pipelines import again
from tests.support import Lab, assert_holds, embed, experiment, generate, texts, totals

Start = Callable[..., Simulator]
TABLE = StageTable("answers", (Column("text", "VARCHAR"),))
SENT = "SELECT count(*), count(DISTINCT (stage, row_id, started_at)) FROM attempts"


def answer(**changes: Any) -> GenerationResult:
    """An answer after one request, with other values of that request."""
    values: dict[str, Any] = {
        "attempt": 1,
        "deployment": "d",
        "started_at": 1_790_000_000.25,
        "queue_s": 0.125,
        "service_s": 1.0625,
        "status_code": 200,
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "cost_usd": 0.5,
    }
    only = Attempt(**(values | changes))
    metrics = RequestMetrics("d", only.queue_s, only.service_s, 2.0, 0, [only])
    usage = TokenUsage(7, 5, 12)
    return GenerationResult(model_id="m", output_text="Yes.", token_usage=usage, cost=0.5, metrics=metrics)


def stored(rows: Mapping[str, tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The view over one row of the stage, or of the log."""
    with duckdb.connect() as connection:
        from infermesh.store.schema import ATTEMPTS, ATTEMPTS_DDL, ATTEMPTS_LOG
        from infermesh.store.segments import appendable

        columns = {"answers": TABLE.columns, ATTEMPTS_LOG: ATTEMPTS}
        connection.execute(TABLE.ddl)
        connection.execute(ATTEMPTS_DDL)
        for table, row in rows.items():
            (fit,) = appendable(columns[table], [row])
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(fit))})", list(fit))
        connection.execute(attempts_view(["answers"]))
        return connection.execute("SELECT * FROM attempts").fetchall()


def test_a_row_tells_what_the_log_would() -> None:
    result = answer()
    assert tells_its_request(result)
    assert result.metrics is not None
    row = settled_row(3, "done", ("Yes.",), (None, None), "k", result, None, sole=True)
    logged = stored({"attempts_log": attempt_row("answers", 3, result.metrics.attempts[0])})
    assert len(logged) == 1
    assert stored({"answers": row}) == logged


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": 2},
        {"rows": 2},
        {"status_code": 201},
        {"status_code": None},
        {"deployment": "other"},
        {"cost_usd": 0.25},
        {"cost_usd": None},
        {"prompt_tokens": None},
        {"completion_tokens": 6},
        {"service_tier": "flex"},
    ],
    ids=str,
)
def test_what_the_row_does_not_say_is_logged(changes: dict[str, Any]) -> None:
    assert not tells_its_request(answer(**changes))


def test_two_requests_are_logged() -> None:
    result = answer()
    assert result.metrics is not None
    result.metrics.attempts.append(result.metrics.attempts[0])
    assert not tells_its_request(result)


def test_a_row_that_cannot_be_stored_keeps_its_request() -> None:
    row = settled_row(3, "done", ("Yes.",), (None, None), "k", answer(), None, sole=True)
    instead = row_instead({"answers": TABLE.columns}, "answers", row, "too large")
    ((stage, row_id, attempt, deployment, *_),) = stored({"answers": instead})
    assert (stage, row_id, attempt, deployment) == ("answers", 3, 1, "d")


def test_rows_that_are_done_again_keep_their_former_requests(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(6))
    mapping = experiment(simulator.url, {"answers": generate()})
    lab.run(mapping)
    assert lab.one("SELECT count(*) FROM attempts_log") == 0
    before = lab.sql("SELECT * FROM attempts ORDER BY ALL")
    again(lab, mapping, Redo("answers", "row_id < 4"))
    assert lab.sql(SENT) == [(10, 10)]
    assert set(before) <= set(lab.sql("SELECT * FROM attempts"))
    again(lab, mapping, Redo("answers", "row_id < 4"))
    assert lab.sql(SENT) == [(14, 14)]
    assert totals(simulator)["received"] == 14
    assert_holds(lab.folder)


def test_requests_of_a_stage_that_changed_its_kind_or_went(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(5))
    lab.run(experiment(simulator.url, {"first": generate(), "second": generate()}))
    before = lab.sql("SELECT * FROM attempts ORDER BY ALL")
    assert len(before) == 10
    lab.run(experiment(simulator.url, {"first": embed("{{ text }}")}))
    requests = totals(simulator)["received"]
    assert lab.one("SELECT count(*) FROM attempts") == requests
    assert set(before) <= set(lab.sql("SELECT * FROM attempts"))
    lab.run(experiment(simulator.url, {"first": generate(), "second": generate()}))
    assert lab.one("SELECT count(*) FROM attempts") == totals(simulator)["received"]
    assert set(before) <= set(lab.sql("SELECT * FROM attempts"))


def test_failed_requests_and_those_after_them(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(faults={"server_error": 0.2}, seed=3)
    lab.rows(texts(20))
    lab.run(experiment(simulator.url, {"answers": generate()}))
    assert lab.one("SELECT count(*) FROM attempts") == totals(simulator)["received"]
    assert lab.one("SELECT count(*) FROM answers WHERE sole_request AND attempts > 1") == 0
    assert lab.one("SELECT count(*) FROM attempts_log") > 0
    assert_holds(lab.folder)


def test_a_sql_stage_over_all_columns_does_not_see_it(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(4))
    mapping = experiment(simulator.url, {"answers": generate()})
    mapping["stages"]["copies"] = {"kind": "sql", "query": "SELECT * EXCLUDE (row_id) FROM answers"}
    lab.run(mapping)
    assert lab.one("SELECT count(*) FROM attempts") == 4
    columns = "SELECT count(*) FROM duckdb_columns() WHERE table_name = 'copies' AND column_name = "
    assert lab.one(f"{columns} 'sole_request'") == 0
    assert lab.one(f"{columns} 'reused_from'") == 1
