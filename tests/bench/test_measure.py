"""The sweep's arithmetic and the rule of its recommendation."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from typing import Any

import pytest

from infermesh.bench import measure
from infermesh.bench.measure import Level, Recommendation, as_json, percentile, recommend


def level(concurrency: int, rps: float, p95: float, **fields: Any) -> Level:
    made = Level(concurrency, 100, 0, 100 / rps, rps, p95 * 0.9, p95, p95 * 1.1, p95, 0.0, 0.1)
    return replace(made, **fields)


def test_the_examples_in_the_docstrings() -> None:
    found = doctest.testmod(measure)
    assert found.attempted > 0
    assert found.failed == 0


def test_a_line_is_the_contracts() -> None:
    measured = Level(1, 50, 0, 15.9, 3.14, 0.401, 0.412, 0.42, 0.41, 0.001, 0.01)
    expected = (
        "c=1    rps=3.14  p50=0.401s  p95=0.412s  p99=0.420s  svc_p95=0.410s  q_p95=0.001s  err=0/50  elapsed=15.9s"
    )
    assert measured.line() == expected


def test_columns_stay_in_line() -> None:
    assert [level(c, 1.0, 0.1).line().index("rps=") for c in (1, 16, 256, 1024)] == [7, 7, 7, 7]


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_nearest_rank_percentiles(share: float, value: int) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == value
    assert math.isnan(percentile([], share))


def test_the_smallest_level_within_five_percent_of_the_best() -> None:
    found = recommend(
        [level(1, 10, 0.1), level(4, 40, 0.1), level(8, 77, 0.11), level(16, 80, 0.2), level(32, 79, 0.4)]
    )
    assert found.concurrency == 8
    assert found.notes == ()


def test_order_does_not_matter() -> None:
    assert recommend([level(8, 80, 0.1), level(16, 80, 0.2), level(1, 10, 0.1)]).concurrency == 8


def test_a_level_whose_p95_has_grown_fourfold_is_not_acceptable() -> None:
    found = recommend([level(1, 10, 0.1), level(8, 40, 0.3), level(64, 100, 0.5)])
    assert found.concurrency == 8
    assert "c=64 was faster" in found.notes[0]


def test_the_users_own_bound() -> None:
    levels = [level(1, 10, 0.1), level(8, 40, 0.3), level(64, 100, 0.5)]
    assert recommend(levels, max_p95_s=0.6).concurrency == 64
    assert recommend(levels, max_p95_s=0.2).concurrency == 1
    assert recommend(levels, max_p95_s=0.05).concurrency is None


def test_a_level_with_failures_is_not_recommended() -> None:
    levels = [level(1, 10, 0.1), level(8, 40, 0.1), level(16, 80, 0.1, errors=2)]
    assert recommend(levels).concurrency == 8
    assert recommend([level(1, 10, 0.1, errors=100)]).concurrency is None


def test_levels_too_short_to_measure_give_no_recommendation() -> None:
    """Of a tenth of a second a good part is the beginning and the end, where fewer requests are in flight."""
    found = recommend([level(1, 100, 0.01), level(2, 200, 0.01, elapsed_s=0.2), level(32, 210, 0.1, elapsed_s=0.1)])
    assert found == Recommendation(
        None,
        ("no recommendation: c=32 took 0.10 s, and a level has to take 0.5 s to be measured: --requests 1000",),
        short=True,
    )
    quick = level(32, 2000, 0.1, elapsed_s=0.1, errors=50)  # it is out in any case
    assert recommend([level(1, 10, 0.1), quick]).concurrency == 1


def test_throughput_that_still_grows_is_said() -> None:
    assert "still growing" in recommend([level(1, 10, 0.1), level(2, 20, 0.1)]).notes[0]


@pytest.mark.parametrize("fields", [{"cpu": 0.95}, {"queue_p95_s": 0.06}])
def test_the_client_as_the_bottleneck_is_said(fields: dict[str, float]) -> None:
    found = recommend([level(1, 10, 0.1), level(8, 40, 0.1, **fields), level(16, 40, 0.1)])
    assert found.concurrency == 8
    assert "the client, not the server" in found.notes[0]


def test_figures_without_a_value_are_null() -> None:
    failed = level(1, 1.0, math.nan, errors=100)
    figures = as_json([failed], recommend([failed]), operation="embed")
    assert figures["levels"][0]["p95_s"] is None
    assert figures["recommended_max_parallel_requests"] is None
