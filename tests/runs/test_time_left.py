"""How long a run will take yet, in words that hold."""

from __future__ import annotations

import random

import pytest

from infermesh.runs.progress import Rates, summary
from infermesh.runs.stats import RunStats, StageStats
from infermesh.runs.time_left import about, at_least, interval


def steady(rate: float, seconds: int = 10) -> list[tuple[float, int]]:
    return [(second / 4, int(rate * second / 4)) for second in range(4 * seconds + 1)]


def test_a_steady_rate_is_known_well_and_an_uneven_one_is_not() -> None:
    sure = interval(steady(100), 1000)
    assert sure is not None
    assert 8 < sure[0] < 10 < sure[1] < 12
    uneven = interval([(0.0, 0), (1.0, 400), (5.0, 420), (9.0, 900), (10.0, 1000)], 1000)
    assert uneven is not None
    assert uneven[0] < sure[0]
    assert sure[1] < uneven[1]


def test_a_few_settled_ones_tell_little() -> None:
    few = interval([(0.0, 0), (4.0, 1), (10.0, 2)], 100)
    assert few is not None
    assert few[1] > 2 * few[0]


def test_nothing_settled_tells_nothing() -> None:
    assert interval([(0.0, 5), (10.0, 5)], 100) is None
    assert interval([(0.0, 5)], 100) is None


@pytest.mark.parametrize("seed", range(3))
def test_it_holds_nineteen_times_of_twenty(seed: int) -> None:
    """Of arrivals at random, whose rate does not change."""
    rng, held, trials = random.Random(seed), 0, 200
    for _ in range(trials):
        times, now = [0.0], 0.0
        while now < 40:
            now += rng.expovariate(20)
            times.append(now)
        seen = [(tick / 4, sum(time <= tick / 4 for time in times) - 1) for tick in range(41)]
        done = seen[-1][1]
        found = interval(seen, 300)
        assert found is not None
        real = times[done + 300] - 10.0
        held += found[0] <= real <= found[1]
    assert held >= 0.9 * trials


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.5, 3, "a few seconds"),
        (3, 12, "up to 20 s"),
        (22, 38, "about 20 to 40 s"),
        (65, 95, "about 60 to 100 s"),
        (200, 290, "about 3 to 5 min"),
        (240, 240, "about 4 min"),
        (31 * 60, 44 * 60, "about 30 to 45 min"),
        (3.2 * 3600, 3.9 * 3600, "about 3 to 4 h"),
        (3.2 * 86400, 3.9 * 86400, "about 3 to 4 days"),
    ],
)
def test_in_words(low: float, high: float, words: str) -> None:
    assert about(low, high) == words


def test_what_is_not_known_is_not_told() -> None:
    stats = RunStats({"a": StageStats(total=100)})
    rates = Rates()
    rates.update(stats)
    assert "time left not known yet" in summary(stats, rates)
    stats.stages["a"].done = stats.settled = 100
    assert "left" not in summary(stats, rates)
    stats.stages["a"].done, stats.paused = 50, True
    assert "left" not in summary(stats, rates)
    stats.paused, stats.stages["a"].done = False, 100
    stats.stages["b"] = StageStats()  # over the rows of a query that has not run
    assert "time left not known yet" in summary(stats, rates)
    assert at_least(200) == "more than 3 min"
