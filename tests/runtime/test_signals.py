"""Which signals are one wish."""

from __future__ import annotations

from infermesh.runtime.signals import Wishes


def test_what_comes_within_half_a_second_is_one_wish() -> None:
    times = [1000.0, 1000.001, 1000.4, 1000.5, 1000.7, 1001.0, 1001.2, 3000.0]
    clock = iter(times)
    wishes = Wishes(lambda: next(clock))
    assert [at for at in times if wishes.another()] == [1000.0, 1000.5, 1001.0, 3000.0]
