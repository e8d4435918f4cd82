"""The embed stage, against a simulated service."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infermesh.simulator import Simulator
from tests.support import Lab, embed, experiment, texts, totals

Start = Callable[..., Simulator]


class TestMicroBatches:
    @pytest.mark.parametrize(("rows", "size", "requests"), [(10, 1, 10), (10, 4, 3), (10, 10, 1), (10, 64, 1)])
    def test_so_many_texts_travel_together(
        self, lab: Lab, simulator: Simulator, rows: int, size: int, requests: int
    ) -> None:
        lab.rows(texts(rows))
        lab.run(experiment(simulator.url, {"v": embed(micro_batch_size=size)}))
        assert totals(simulator)["received"] == requests
        assert lab.one("SELECT count(*) FROM v WHERE status = 'done'") == rows

    def test_a_text_has_the_same_vector_in_any_company(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(9))
        lab.run(experiment(simulator.url, {"v": embed(micro_batch_size=4), "w": embed(micro_batch_size=1)}))
        assert lab.one("SELECT count(*) FROM v JOIN w USING (row_id) WHERE v.embedding = w.embedding") == 9
        assert lab.one("SELECT count(DISTINCT embedding) FROM v") == 9

    def test_tokens_are_each_texts_own(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([{"n": 0, "text": "short"}, {"n": 1, "text": "a much longer text " * 20}])
        lab.run(experiment(simulator.url, {"v": embed()}))
        assert totals(simulator)["received"] == 1
        few, many = (tokens for (tokens,) in lab.sql("SELECT prompt_tokens FROM v ORDER BY row_id"))
        assert 1 <= few < many
        assert lab.one("SELECT sum(prompt_tokens) FROM v") == lab.one("SELECT sum(prompt_tokens) FROM attempts")

    def test_a_bad_text_costs_its_own_row(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(bad_texts="number 5 ")
        lab.rows(texts(16))
        outcome = lab.run(experiment(simulator.url, {"v": embed(micro_batch_size=16)}))
        assert outcome.counts == {"v": {"done": 15, "error": 1}}
        assert lab.statuses("v")[5] == "error"
        assert lab.sql("SELECT error_type, embedding FROM v WHERE status = 'error'") == [("bad_request", None)]

    def test_several_bad_texts(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(bad_texts="number 1")
        lab.rows(texts(12))  # 1, 10 and 11
        lab.run(experiment(simulator.url, {"v": embed(micro_batch_size=5)}))
        assert {n for n, status in lab.statuses("v").items() if status == "error"} == {1, 10, 11}

    def test_an_empty_text_costs_its_own_row(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([*texts(3), {"n": 3, "text": ""}])
        lab.run(experiment(simulator.url, {"v": embed()}))
        assert lab.statuses("v") == {0: "done", 1: "done", 2: "done", 3: "error"}

    def test_a_row_that_cannot_be_rendered_leaves_the_batch(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([{"n": n, "text": "x", "by": by} for n, by in enumerate([1, 0, 2])])
        lab.run(experiment(simulator.url, {"v": embed("{{ text }} {{ 4 // by }}")}))
        assert lab.statuses("v") == {0: "done", 1: "error", 2: "done"}
        assert totals(simulator)["received"] == 1

    def test_a_server_that_always_fails_fails_all_rows_without_splitting_to_the_end(
        self, lab: Lab, start_simulator: Start
    ) -> None:
        simulator = start_simulator(faults={"server_error": 1.0})
        lab.rows(texts(6))
        mapping = experiment(simulator.url, {"v": embed(micro_batch_size=3)})
        mapping["models"]["m"]["max_retries"] = 0
        assert lab.run(mapping).counts == {"v": {"error": 6}}
        assert totals(simulator)["received"] <= 8  # each request, its first half, and a text that is certainly good
        assert lab.sql("SELECT DISTINCT error_type FROM v") == [("server",)]


def test_the_vector_is_what_the_service_sent(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(embedding_dimensions=8)
    lab.rows(texts(1))
    lab.run(experiment(simulator.url, {"v": embed(), "w": embed(params={"dimensions": 3})}))
    assert lab.sql("SELECT len(v_embedding), len(w_embedding) FROM results") == [(8, 3)]
    assert lab.one("SELECT round(list_sum(list_transform(v_embedding, lambda x: x * x)), 3) FROM results") == 1.0
    # SQL over vectors works as it is.
    assert lab.one("SELECT round(list_cosine_similarity(v_embedding, v_embedding), 3) FROM results") == 1.0
