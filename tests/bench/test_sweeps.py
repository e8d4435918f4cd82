"""What a sweep makes of its jobs' figures, and what its keys mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.bench.sweep_page import picture_of
from infermesh.bench.sweeps import (
    JobRecord,
    MeasuredJob,
    advise,
    decides_speed_only,
    measured_stage,
    write_table,
)
from infermesh.query.figures import Figures

KEY = "stages.a.max_parallel_requests"


def job(number: int, rate: float, p95: float = 0.1, *, errors: int = 0, code: int | None = 0, **values: Any) -> Any:
    figures = Figures(
        *("r", "done", 100, 0, 0, 100 / rate, 100, errors, 500, 500),
        *(p95 * 0.9, p95, p95 * 1.1, 0.0, p95, None),
    )
    return MeasuredJob(JobRecord(number, Path(f"s/{number}"), values, [], code), figures, "done")


def jobs(*rates: float, **fields: Any) -> list[MeasuredJob]:
    return [job(number, rate, **{KEY: 2**number}, **fields) for number, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("keys", "stage"),
    [
        ([KEY], "a"),
        ([KEY, "stages.a.params.seed"], "a"),
        ([KEY, "stages.b.prompt"], None),
        ([KEY, "models.m.timeout"], None),
        (["stages.a"], None),
        ([], None),
    ],
)
def test_the_stage_that_is_measured(keys: list[str], stage: str | None) -> None:
    assert measured_stage(keys) == stage


@pytest.mark.parametrize(
    ("key", "speed"),
    [
        (KEY, True),
        ("stages.v.micro_batch_size", True),
        ("models.m.timeout", True),
        ("models.m.routing_strategy", True),
        ("limits.account.rpm", True),
        ("deployments.d.limits.rpm", True),
        ("deployments.d.api_base", True),
        ("store.threads", True),
        ("simulator.latency_s", True),
        ("deployments.d.model", False),
        ("models.m.params.temperature", False),
        ("stages.a.params.timeout", False),
        ("deployments.d.params.max_retries", False),
        ("stages.a.prompt", False),
        ("experiment", False),
        ("source.limit", False),
    ],
)
def test_keys_that_decide_speed_only(key: str, speed: bool) -> None:
    assert decides_speed_only(key) is speed


def test_the_smallest_setting_near_the_best() -> None:
    advice = advise(list(reversed(jobs(10, 20, 39, 40))), [KEY])
    assert advice.job is not None
    assert advice.job.record.values == {KEY: 4}
    assert advice.notes == ()


def test_what_still_grows_is_said() -> None:
    advice = advise(jobs(10, 20), [KEY])
    assert advice.notes == (f"throughput was still growing at {KEY}=2: sweep larger values",)


def test_jobs_that_did_not_end_do_not_count() -> None:
    advice = advise([*jobs(10, 20, 20), job(3, 80, code=130, **{KEY: 8})], [KEY])
    assert advice.job is not None
    assert advice.job.record.values == {KEY: 2}
    assert "left out: 1 of 4 jobs" in advice.notes[0]


def test_jobs_whose_requests_failed_are_not_recommended() -> None:
    advice = advise([*jobs(10, 20), job(2, 80, errors=5, **{KEY: 4})], [KEY])
    assert advice.job is not None
    assert advice.job.record.values == {KEY: 2}
    assert f"{KEY}=4 was faster (80.00 rows/s)" in advice.notes[0]


def test_names_are_taken_in_their_order() -> None:
    key = "models.m.routing_strategy"
    names: list[dict[str, Any]] = [{key: "simple-shuffle"}, {key: "least-busy"}]
    found = advise([job(0, 39, **names[0]), job(1, 40, **names[1])], [key])
    assert found.job is not None
    assert found.job.record.number == 0
    assert found.notes == ()


def test_one_job_is_no_choice() -> None:
    assert advise(jobs(10), [KEY]).job is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "BIGINT"),
        ([1, 2.5], "DOUBLE"),
        ([True, False], "BOOLEAN"),
        (["x", 1], "VARCHAR"),
        ([[1], [2]], "VARCHAR"),
        ([None, 1], "BIGINT"),
        ([None, None], "VARCHAR"),
    ],
)
def test_the_table_is_typed(tmp_path: Path, values: list[Any], kind: str) -> None:
    made = [job(number, 10, k=value) for number, value in enumerate(values)]
    made.append(MeasuredJob(JobRecord(2, Path("s/2"), {}, [], 1), None, "error"))
    write_table(tmp_path / "t.parquet", made, ["k"])
    found = duckdb.connect().execute(f"SELECT job, typeof(k), p95_s FROM '{tmp_path}/t.parquet'").fetchall()
    assert found == [(0, kind, 0.1), (1, kind, 0.1), (2, kind, None)]


def test_the_picture_is_in_the_order_of_the_settings() -> None:
    made = list(reversed(jobs(10, 20, 39, 40)))
    picture = picture_of("t", made, [KEY], advise(made, [KEY]))
    assert [(point.setting, point.rate) for point in picture.points] == [(1, 10), (2, 20), (4, 39), (8, 40)]
    assert picture.chosen == 4
    assert picture.summary == f"Recommended: {KEY}=4."


@pytest.mark.parametrize("made", [jobs(10), [job(0, 1, k="x"), job(1, 1, k="y")]])
def test_no_curve_without_numbers(made: list[MeasuredJob]) -> None:
    keys = list(made[0].record.values)
    picture = picture_of("t", made, keys, advise(made, keys))
    assert picture.points == []
    assert picture.chosen is None
    assert [row.cells[1] for row in picture.rows] == [str(job.record.values[keys[0]]) for job in made]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["stages.a.prompt"], "stages.a.prompt decides what is answered"),
        (["models.m.params.temperature"], "models.m.params.temperature decides what is answered"),
        ([KEY, "stages.a.prompt"], "stages.a.prompt decides"),
        (["stages.a.prompt", "models.m.deployments"], "stages.a.prompt and models.m.deployments decide what"),
    ],
)
def test_what_is_asked_is_not_recommended_for_its_speed(keys: list[str], words: str) -> None:
    made = [job(number, rate, **dict.fromkeys(keys, number)) for number, rate in enumerate((10, 20, 40))]
    advice = advise(made, keys)
    assert advice.job is None
    assert words in advice.notes[0]
    picture = picture_of("t", made, keys, advice)
    assert "Recommended" not in str(picture)
    assert not any(row.chosen for row in picture.rows)
