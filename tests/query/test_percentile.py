"""A percentile is nearest-rank, in SQL as in the benchmark."""

from __future__ import annotations

import duckdb
import pytest

from infermesh.bench.measure import percentile as benchmarks
from infermesh.query.percentile import percentile


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_it_is_that_of_the_benchmark(share: float) -> None:
    with duckdb.connect() as connection:
        for count in range(1, 201):
            query = f"SELECT {percentile('range / 7', share)} FROM range({count})"
            assert connection.execute(query).fetchall() == [(benchmarks([n / 7 for n in range(count)], share),)]
