"""Leases: a row is in one place until it is finished, whatever happens to whom; a row that kills is found alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infermesh.runs.crew.leases import LeaseBook

WORKERS = st.integers(1, 4)


class Book(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.offered = 0
        self.ended: list[int] = []
        self.mine: dict[int, set[int]] = {worker: set() for worker in range(1, 5)}

    @rule(rows=st.integers(0, 30))
    def offer(self, rows: int) -> None:
        self.book.offer(range(self.offered, self.offered + rows))
        self.offered += rows

    @rule(worker=WORKERS, most=st.integers(0, 12))
    def take(self, worker: int, most: int) -> None:
        lease = self.book.take(worker, most)
        if lease is not None:
            assert lease.rows
            assert list(lease.rows) == sorted(lease.rows)
            assert lease.is_suspect or len(lease.rows) <= most
            assert not lease.is_suspect or not self.mine[worker], "a suspect is held beside other rows"
            assert all(not lease.rows or row not in rows for rows in self.mine.values() for row in lease.rows)
            self.mine[worker] |= set(lease.rows)

    @precondition(lambda self: any(self.mine.values()))
    @rule(worker=WORKERS, share=st.floats(0, 1), seed=st.integers(0, 99))
    def finish(self, worker: int, share: float, seed: int) -> None:
        some = random.Random(seed).sample(sorted(self.mine[worker]), int(share * len(self.mine[worker])))
        self.book.finish(worker, some)
        self.mine[worker] -= set(some)
        self.ended += some

    @rule(worker=WORKERS)
    def lose(self, worker: int) -> None:
        lost = self.book.lost(worker)
        assert lost.again + len(lost.given_up) == len(self.mine[worker])
        self.ended += lost.given_up
        self.mine[worker].clear()

    @rule(worker=WORKERS)
    def finish_what_is_not_held(self, worker: int) -> None:
        with pytest.raises(ValueError, match="does not hold"):
            self.book.finish(worker, [self.offered])

    @invariant()
    def each_row_is_in_one_place(self) -> None:
        held = sum(map(len, self.mine.values()))
        assert all(self.book.rows_of(worker) == sorted(rows) for worker, rows in self.mine.items())
        assert self.book.waiting + held + len(self.ended) == self.offered
        assert len(set(self.ended)) == len(self.ended)
        assert self.book.is_empty == (len(self.ended) == self.offered)

    def teardown(self) -> None:
        """What is left can be finished, and is all that was offered."""
        for worker in self.mine:
            self.lose(worker)
        while (lease := self.book.take(1, 7)) is not None:
            self.book.finish(1, lease.rows)
            self.ended += lease.rows
        assert sorted(self.ended) == list(range(self.offered))


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    workers=st.integers(1, 4),
    poison=st.sets(st.integers(0, 399), max_size=3),
    seed=st.integers(0, 99),
)
def test_a_row_that_kills_is_given_up_alone(rows: int, workers: int, poison: set[int], seed: int) -> None:
    book, rng = LeaseBook(), random.Random(seed)
    book.offer(range(rows))
    mine: dict[int, set[int]] = {worker: set() for worker in range(workers)}
    given_up: list[int] = []
    done: list[int] = []
    deaths = 0
    while not book.is_empty:
        worker = rng.randrange(workers)
        while len(mine[worker]) < 60 and (lease := book.take(worker, 60 - len(mine[worker]))) is not None:
            mine[worker] |= set(lease.rows)
        if mine[worker] & poison:
            deaths += 1
            innocent = [row for row in mine[worker] - poison if rng.random() < 0.2]  # some were quicker
            book.finish(worker, innocent)
            done += innocent
            given_up += book.lost(worker).given_up
        else:
            book.finish(worker, mine[worker])
            done += mine[worker]
        mine[worker].clear()
    assert sorted(given_up) == sorted(poison & set(range(rows)))
    assert sorted(done + given_up) == list(range(rows))
    assert deaths <= 13 * max(len(given_up), 1)


def test_one_death_blames_nobody() -> None:
    book = LeaseBook()
    book.offer([5])
    for _ in range(2):
        assert book.take(1, 10) is not None
        assert book.lost(1).again == 1
    assert book.take(1, 10) is not None
    assert book.lost(1).given_up == [5]
    assert book.is_empty
