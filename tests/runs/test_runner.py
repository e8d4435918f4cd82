"""Whole runs in this process against a simulated service: streaming, settling, resuming, limits, interrupts."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infermesh.errors import ConfigError, StoreError
from infermesh.runs.stats import RunStats
from infermesh.runtime import signals
from infermesh.simulator import Simulator
from infermesh.store import GroupWriter, Row, RunStore
from tests.support import Lab, Watch, embed, experiment, generate, texts, totals, transcribe, wav

Start = Callable[..., Simulator]


class TestCompletion:
    def test_every_row_ends_in_a_stored_state(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(30))
        watch = Watch()
        outcome = lab.run(
            experiment(simulator.url, {"answers": generate(), "vectors": embed("{{ answers.text }}")}), watch=watch
        )
        assert (outcome.status, outcome.exit_code) == ("done", 0)
        assert outcome.counts == {"answers": {"done": 30}, "vectors": {"done": 30}}
        assert watch.ended
        assert lab.one("SELECT status FROM run") == "done"
        assert lab.sql("SELECT n, answers_text FROM results ORDER BY n LIMIT 1") == [(0, "Parcel number 0 came late.")]
        assert lab.one("SELECT count(*) FROM results WHERE len(vectors_embedding) = 64") == 30
        assert lab.one("SELECT started_at <= finished_at FROM run")

    def test_every_column_of_a_settled_row_is_filled(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        lab.run(experiment(simulator.url, {"a": generate()}))
        ((status, error, attempts, deployment, model, request, key, prompt, completion, queue, service, at),) = lab.sql(
            "SELECT status, error, attempts, deployment, model_id, request_id, request_key, prompt_tokens, "
            "completion_tokens, queue_s, service_s, finished_at FROM a"
        )
        assert (status, error, attempts, deployment, model) == ("done", None, 1, "d", "any")
        assert request
        assert key
        assert prompt > 0
        assert completion > 0
        assert queue >= 0
        assert service > 0
        assert abs(at - lab.one("SELECT finished_at FROM run")) < timedelta(seconds=10)

    def test_a_source_without_rows(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([])
        outcome = lab.run(experiment(simulator.url, {"answers": generate(), "vectors": embed("{{ answers.text }}")}))
        assert (outcome.status, outcome.exit_code) == ("done", 0)
        assert totals(simulator)["received"] == 0

    def test_a_limit_of_no_rows(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        mapping = experiment(simulator.url, {"answers": generate()}, source={"path": "rows.jsonl", "limit": 0})
        assert lab.run(mapping).exit_code == 0
        assert lab.run(mapping | {"source": {"path": "rows.jsonl", "limit": 2}}).counts == {"answers": {"done": 2}}

    def test_a_where_that_leaves_out_every_row(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(5))
        outcome = lab.run(experiment(simulator.url, {"a": generate(where="n < 0"), "b": embed(where="n > 100")}))
        assert outcome.counts == {"a": {"skipped": 5}, "b": {"skipped": 5}}
        assert outcome.exit_code == 0
        assert totals(simulator)["received"] == 0

    def test_more_rows_than_a_chunk(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(2500))
        lab.run(experiment(simulator.url, {"vectors": embed(micro_batch_size=100)}))
        assert lab.one("SELECT count(DISTINCT row_id) FROM vectors WHERE status = 'done'") == 2500
        # Each row has its own vector, not its neighbour's: equal texts would have equal ones.
        assert lab.one("SELECT count(DISTINCT embedding) FROM vectors") == 2500

    def test_the_run_row_tells_what_was_run(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        lab.run(experiment(simulator.url, {"a": generate("Say {{ text }}")}))
        ((name, prompt, python, config_hash),) = lab.sql(
            "SELECT experiment, config->>'$.stages.a.prompt', versions->>'python', config_hash FROM run"
        )
        assert (name, prompt) == ("lab", "Say {{ text }}")
        assert python.startswith("3.")
        assert config_hash

    def test_latest_points_to_the_run(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        lab.run(experiment(simulator.url, {"a": generate()}))
        assert (lab.folder.parent / "latest").resolve() == lab.folder.resolve()


class TestStreaming:
    def test_a_row_enters_the_next_stage_while_others_are_in_the_first(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.03)
        lab.rows(texts(12))
        lab.run(
            experiment(
                simulator.url,
                {"a": generate(max_parallel_requests=2), "b": generate("Again: {{ a.text }}")},
            )
        )
        starts = dict(lab.sql("SELECT stage || row_id, started_at FROM attempts"))
        ends = dict(lab.sql("SELECT row_id, finished_at FROM a"))
        last = max(starts[f"a{row}"] for row in range(12))
        assert sum(starts[f"b{row}"] < last for row in range(12)) >= 6
        assert all(ends[row] <= starts[f"b{row}"] for row in range(12))

    def test_independent_stages_run_side_by_side(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.1)
        lab.rows(texts(4))
        lab.run(experiment(simulator.url, {"a": generate(), "b": generate("Other: {{ text }}")}))
        assert totals(simulator)["max_in_flight"] == 8

    def test_a_diamond_waits_for_both_sides(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(20))
        stages = {
            "end": generate("{{ left.text }} {{ right.text }}"),
            "left": generate("{{ start.text }} Left."),
            "right": generate("{{ start.text }} Right.", where="n % 2 = 0"),
            "start": generate(),
        }
        outcome = lab.run(experiment(simulator.url, stages))
        assert outcome.counts["end"] == {"done": 20}
        assert next(iter(outcome.counts)) == "start"
        assert list(outcome.counts)[-1] == "end"
        assert lab.one("SELECT count(*) FROM results WHERE right_status = 'done' AND contains(end_text, 'None')") == 0


class TestBounds:
    @pytest.mark.parametrize("windows", [(3, 2), (5, 7)])
    def test_a_stages_window(self, lab: Lab, start_simulator: Start, windows: tuple[int, int]) -> None:
        simulator = start_simulator(latency_s=0.03)
        lab.rows(texts(30))
        a, b = windows
        lab.run(
            experiment(
                simulator.url,
                {
                    "a": generate(max_parallel_requests=a),
                    "b": embed(max_parallel_requests=b, micro_batch_size=1),
                },
            )
        )
        assert totals(simulator, "chat")["max_in_flight"] == a
        assert totals(simulator, "embeddings")["max_in_flight"] == b

    def test_a_deployments_slots_are_shared_by_its_stages(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.01)
        lab.rows(texts(20))
        mapping = experiment(simulator.url, {"a": generate(), "b": generate("Other: {{ text }}")})
        mapping["deployments"]["d"]["max_parallel_requests"] = 4
        lab.run(mapping)
        assert totals(simulator)["max_in_flight"] == 4

    @pytest.mark.parametrize("account", [False, True], ids=["one deployment", "account of two deployments"])
    def test_a_request_limit_is_shared_by_all_stages(self, lab: Lab, simulator: Simulator, account: bool) -> None:
        lab.rows(texts(8))
        mapping = experiment(simulator.url, {"a": generate(), "b": generate("Other: {{ text }}")})
        limits = {"rpm": 1200}  # one every 50 ms
        if account:
            mapping["limits"] = {"shared": limits}
            mapping["deployments"] = {
                label: {"model": "hosted_vllm/any", "api_base": simulator.url, "limits": "shared"}
                for label in ("d", "e")
            }
            mapping["models"]["m"]["deployments"] = ["d", "e"]
        else:
            mapping["deployments"]["d"]["limits"] = limits
        lab.run(mapping)
        started = [at for (at,) in lab.sql("SELECT started_at FROM attempts ORDER BY started_at")]
        assert len(started) == 16
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(started)]
        assert sum(gaps) >= 0.045 * 15
        assert lab.one("SELECT sum(queue_s) FROM attempts") > 1

    @pytest.mark.long
    def test_the_rows_in_memory_do_not_grow_with_the_source(self, lab: Lab, start_simulator: Start) -> None:
        """20,000 rows, a slow service: 2,048 admitted, the chunk that is being admitted and the next one are there."""
        simulator = start_simulator(latency_s=0.01, capacity=8)
        seen: list[int] = []

        def look(stats: RunStats) -> None:
            seen.append(sum(isinstance(found, Row) for found in gc.get_objects()))
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)

        outcome = lab.run(
            experiment(
                simulator.url,
                {"a": generate("Row {{ n }}.", max_parallel_requests=8), "b": generate("{{ a.text }} Again.")},
                source={"sql": "SELECT range AS n FROM range(20000)"},
            ),
            watch=Watch(look),
        )
        assert outcome.status == "interrupted"
        assert 1000 < max(seen) <= 2048 + 2 * 1024


CONDITIONS = {
    "n > 1": {2, 3},
    "kind = 'x' and not flag": {2},
    "kind is null": {1},
    "kind = 'x'": {0, 2},
    "tags::JSON->>0 = 'red'": {0},
    "json_extract_string(meta, '$.size') = 'L'": {2},
    "n in (1, 3) -- a comment": {1, 3},
    "text like '%number 2%' or N = 0": {0, 2},
    "position = 7": {3},
    '"odd name" = 1': {1},
    "len(list_filter([n], lambda x: x > 2)) = 1": {3},
    "n = (select max(v) from (values (1), (2)) as t(v))": {2},
    "first.text is not null": {0, 1},
    "first.status = 'skipped'": {2, 3},
    "first.status = 'done' and n > 0": {1},
    "contains(first.text, 'number 1')": {1},
}


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A run with a stage for each condition, over source columns and over those of a stage before."""
    lab = Lab(tmp_path_factory.mktemp("where"))
    lab.rows(
        [
            {"n": 0, "text": "number 0", "kind": "x", "flag": True, "tags": ["red"], "odd name": 0, "position": 1},
            {"n": 1, "text": "number 1", "kind": None, "flag": False, "tags": [], "odd name": 1, "position": 2},
            {"n": 2, "text": "number 2", "kind": "x", "flag": False, "meta": {"size": "L"}, "position": 3},
            {"n": 3, "text": "number 3", "kind": "y", "flag": None, "meta": {"size": "S"}, "position": 7},
        ]
    )
    stages = {f"s{number}": generate(where=where) for number, where in enumerate(CONDITIONS)}
    with Simulator() as service:
        lab.run(experiment(service.url, {"first": generate(where="n < 2"), **stages}))
    return lab


class TestWhere:
    @pytest.mark.parametrize("where", CONDITIONS)
    def test_conditions(self, conditions: Lab, where: str) -> None:
        statuses = conditions.statuses(f"s{list(CONDITIONS).index(where)}")
        assert set(statuses.values()) <= {"done", "skipped"}
        assert {n for n, status in statuses.items() if status == "done"} == CONDITIONS[where]

    def test_conditions_over_parsed_output(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        stages = {
            "a": generate("Give the number. {{ text }}", response_format=schema),
            "b": generate(where="(a.parsed->>'n')::int is not null"),
            "c": generate(where="a.parsed is null"),
        }
        assert lab.run(experiment(simulator.url, stages)).counts["b"] == {"done": 3}
        assert set(lab.statuses("c").values()) == {"skipped"}

    def test_a_condition_that_fails_for_a_row_costs_that_row(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([{"n": n, "text": "x", "size": size} for n, size in enumerate(["12", "large", "3", None])])
        outcome = lab.run(
            experiment(simulator.url, {"a": generate(where="size::int > 5"), "b": embed("{{ a.status }}")})
        )
        assert lab.statuses("a") == {0: "done", 1: "error", 2: "skipped", 3: "skipped"}
        assert lab.statuses("b") == {0: "done", 1: "skipped", 2: "done", 3: "done"}
        assert outcome.exit_code == 3
        assert "stages.a.where" in lab.one("SELECT error FROM a WHERE row_id = 1")
        assert "large" in lab.one("SELECT error FROM a WHERE row_id = 1")

    def test_a_skipped_row_goes_on_to_later_stages(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(4))
        b = generate("{% if a.text %}{{ a.text }}{% else %}Nothing came of {{ n }}.{% endif %}")
        outcome = lab.run(experiment(simulator.url, {"a": generate(where="n < 2"), "b": b}))
        assert outcome.counts == {"a": {"done": 2, "skipped": 2}, "b": {"done": 4}}
        assert lab.sql("SELECT b_text FROM results WHERE n = 3") == [("Nothing came of 3.",)]

    @pytest.mark.parametrize(
        ("where", "words"),
        [
            ("nn > 1", "'nn' is neither a column of the source nor a stage. Did you mean 'n'?"),
            ("n >", "not a SQL condition"),
            ("n > 1) OR (n < 1", "not a SQL condition"),
            ("n > 1) UNION SELECT (true", "not a SQL condition"),
            ("n > 1); SELECT (true", "not a SQL condition"),
            ("n > 1 GROUP BY ALL", "not a SQL condition"),
            ("n > 1; SELECT true", "not a SQL condition"),
            ("n > 1 /* and", "not a SQL condition"),
            ("n > 'x'", ""),
            ("a.txt is null", "'a.txt' is no column of stage 'a'. Did you mean 'text'?"),
            ("", "stages.b.where"),
        ],
    )
    def test_a_wrong_condition_stops_the_run_before_anything_is_sent(
        self, lab: Lab, simulator: Simulator, where: str, words: str
    ) -> None:
        lab.rows(texts(1))
        with pytest.raises(ConfigError, match=r"stages\.b") as caught:
            lab.run(experiment(simulator.url, {"a": generate(), "b": generate(where=where)}))
        assert words in str(caught.value)
        assert totals(simulator)["received"] == 0


class TestMicroBatches:
    def test_the_last_one_does_not_wait_for_more(
        self, lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("infermesh.runs.runner._BATCH_LINGER_S", 30.0)
        lab.rows(texts(5))
        stages = {
            "first": embed(),
            "texts": generate(where="n < 3"),
            "vectors": embed("{{ texts.text }}", where="texts.text is not null"),
            "more": embed("{{ n }} {{ vectors.status }}"),
        }
        outcome = lab.run(experiment(simulator.url, stages))
        assert outcome.counts["more"] == {"done": 5}
        assert outcome.elapsed_s < 15
        assert totals(simulator, "embeddings")["received"] <= 5


class TestFailures:
    def test_a_failed_row_skips_what_depends_on_it_and_nothing_else(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(filter_marker="number 2 ")
        lab.rows(texts(4))
        stages = {
            "a": generate(),
            "b": embed("{{ a.text }}"),
            "c": generate("{{ b.status }}"),
            "d": generate("Row {{ n }}."),
        }
        outcome = lab.run(experiment(simulator.url, stages))
        assert (outcome.status, outcome.exit_code) == ("failed_rows", 3)
        assert outcome.counts == {
            "a": {"done": 3, "error": 1},
            "b": {"done": 3, "skipped": 1},
            "c": {"done": 3, "skipped": 1},
            "d": {"done": 4},
        }
        ((kind, error, attempts, deployment, text),) = lab.sql(
            "SELECT error_type, error, attempts, deployment, text FROM a WHERE status = 'error'"
        )
        assert (kind, attempts, deployment, text) == ("content_filter", 1, "d", None)
        assert "content management policy" in error
        for stage in ("b", "c"):
            ((kind, error),) = lab.sql(f"SELECT error_type, error FROM {stage} WHERE status = 'skipped'")
            assert kind == "upstream"
            assert "content management policy" in error
        assert outcome.failures[0][:3] == ("a", "content_filter", 1)

    def test_a_malformed_line_is_an_error_in_every_stage(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([*texts(2), '{"n": 2, "text":', "[3]"])
        outcome = lab.run(experiment(simulator.url, {"a": generate(), "b": embed("{{ text }}", where="n >= 0")}))
        assert outcome.exit_code == 3
        assert outcome.counts == {"a": {"done": 2, "error": 2}, "b": {"done": 2, "error": 2}}
        errors = lab.sql("SELECT row_id, error_type, error FROM a WHERE status = 'error' ORDER BY row_id")
        assert [(row, kind) for row, kind, _ in errors] == [(2, "malformed_input"), (3, "malformed_input")]
        assert "line 3" in errors[0][2]
        assert "line 4" in errors[1][2]
        assert totals(simulator, "chat")["received"] == 2

    def test_a_row_that_a_template_cannot_render(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([{"n": 0, "text": "a", "by": 2}, {"n": 1, "text": "b", "by": 0}])
        lab.run(experiment(simulator.url, {"a": generate("{{ text }} {{ 1 / by }}")}))
        assert lab.sql("SELECT row_id, status, error_type, attempts FROM a ORDER BY row_id") == [
            (0, "done", None, 1),
            (1, "error", "input", 0),
        ]
        assert "stages.a.prompt" in lab.one("SELECT error FROM a WHERE row_id = 1")

    def test_a_failure_that_passes_is_retried(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"server_error": 0.5}, seed=3)
        lab.rows(texts(6))
        watch = Watch()
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["models"]["m"]["max_retries"] = 1
        outcome = lab.run(mapping, watch=watch)
        seen = totals(simulator)
        failed = outcome.counts["a"].get("error", 0)
        assert seen["status"]["500"] > 0
        assert lab.one("SELECT count(*) FROM attempts") == seen["received"]
        assert (
            lab.one("SELECT count(*) FROM attempts WHERE status_code = 500 AND error_type = 'server'")
            == (seen["status"]["500"])
        )
        assert lab.one("SELECT sum(attempts) FROM a") == seen["received"]
        assert lab.one("SELECT count(*) FROM a WHERE status = 'error'") == failed
        assert lab.one("SELECT count(*) FROM a WHERE status = 'done' AND attempts = 2") > 0
        assert watch.stats is not None
        assert watch.stats.requests == seen["received"]
        assert watch.stats.retries == seen["received"] - 6

    def test_another_deployment_takes_over(self, lab: Lab, simulator: Simulator, start_simulator: Start) -> None:
        broken = start_simulator(faults={"unavailable": 1.0, "retry_after_s": None})
        lab.rows(texts(10))
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["deployments"]["broken"] = {"model": "hosted_vllm/any", "api_base": broken.url}
        mapping["models"]["m"]["deployments"] = ["broken", "d"]
        assert lab.run(mapping).counts == {"a": {"done": 10}}
        assert lab.sql("SELECT DISTINCT deployment FROM a") == [("d",)]
        assert totals(broken)["received"] >= 1

    def test_what_nobody_foresaw_costs_its_row(self, lab: Lab, simulator: Simulator) -> None:
        """A message list with a value that cannot be sent: an error row, and the run goes on."""
        lab.rows([{"n": 0, "text": "fine", "more": {"x": 1}}, {"n": 1, "text": None, "more": {}}])
        messages = "{{ [{'role': 'user', 'content': text if text else more.x}] }}"
        outcome = lab.run(experiment(simulator.url, {"a": {"kind": "generate", "messages": messages}}))
        assert outcome.counts == {"a": {"done": 1, "error": 1}}
        assert lab.one("SELECT status FROM a JOIN source USING (row_id) WHERE n = 1") == "error"

    def test_a_writer_that_fails_stops_the_run(
        self, lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lab.rows(texts(3000))
        made = RunStore.writer

        def without_connection(store: RunStore, **hooks: Any) -> GroupWriter:
            writer = made(store, **hooks)
            writer._connection.close()
            return writer

        monkeypatch.setattr(RunStore, "writer", without_connection)
        with pytest.raises(StoreError, match="could not be written"):
            lab.run(experiment(simulator.url, {"a": generate()}))
        monkeypatch.undo()
        assert lab.run(experiment(simulator.url, {"a": generate()})).counts == {"a": {"done": 3000}}


class TestResuming:
    def test_nothing_is_sent_twice(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(10))
        mapping = experiment(simulator.url, {"a": generate(), "b": embed("{{ a.text }}")})
        lab.run(mapping)
        before = lab.sql("SELECT * FROM results ORDER BY row_id")
        simulator.reset()
        assert lab.run(mapping).exit_code == 0
        assert totals(simulator)["received"] == 0
        assert lab.sql("SELECT * FROM results ORDER BY row_id") == before

    def test_failed_rows_are_tried_again_with_what_waited_for_them(
        self, lab: Lab, simulator: Simulator, start_simulator: Start
    ) -> None:
        refusing = start_simulator(filter_marker="number 2 ")
        lab.rows(texts(4))
        stages = {"a": generate(), "b": embed("{{ a.text }}")}
        lab.run(experiment(refusing.url, stages))
        outcome = lab.run(experiment(simulator.url, stages))
        assert outcome.counts == {"a": {"done": 4}, "b": {"done": 4}}
        assert totals(simulator, "chat")["received"] == 1
        assert totals(simulator, "embeddings")["received"] == 1
        assert lab.one("SELECT count(*) FROM a") == 4
        assert lab.one("SELECT count(*) FROM attempts WHERE stage = 'a' AND row_id = 2") == 2

    def test_kept_errors_stay(self, lab: Lab, simulator: Simulator, start_simulator: Start) -> None:
        refusing = start_simulator(filter_marker="number 2 ")
        lab.rows(texts(4))
        stages = {"a": generate(), "b": embed("{{ a.text }}")}
        lab.run(experiment(refusing.url, stages))
        outcome = lab.run(experiment(simulator.url, stages, keep_errors=True))
        assert outcome.counts == {"a": {"done": 3, "error": 1}, "b": {"done": 3, "skipped": 1}}
        assert outcome.exit_code == 3
        assert totals(simulator)["received"] == 0

    def test_rows_that_still_fail_are_still_failed(self, lab: Lab, start_simulator: Start) -> None:
        refusing = start_simulator(filter_marker="number 2 ")
        lab.rows(texts(4))
        mapping = experiment(refusing.url, {"a": generate()})
        lab.run(mapping)
        assert lab.run(mapping).counts == {"a": {"done": 3, "error": 1}}
        assert lab.one("SELECT count(*) FROM a") == 4

    def test_an_edited_prompt_reruns_its_stage_and_its_dependents_where_rows_change(
        self, lab: Lab, simulator: Simulator
    ) -> None:
        lab.rows(texts(10))
        stages = {
            "a": generate(),
            "b": embed("{{ a.text }}", micro_batch_size=1),
            "c": generate("{{ b.status }} {{ n }}"),
            "d": generate("Apart: {{ text }}"),
        }
        lab.run(experiment(simulator.url, stages))
        simulator.reset()
        # Only the rows from 7 on have another prompt than before.
        stages["a"] = generate("{{ text }}{% if n >= 7 %} It was wet.{% endif %}")
        outcome = lab.run(experiment(simulator.url, stages))
        assert all(counts == {"done": 10} for counts in outcome.counts.values())
        assert totals(simulator, "chat")["received"] == 3
        assert totals(simulator, "embeddings")["received"] == 3
        found = lab.sql("SELECT n FROM results WHERE contains(a_text, 'wet') ORDER BY n")
        assert found == [(7,), (8,), (9,)]
        assert lab.one("SELECT count(*) FROM a") == 10

    @pytest.mark.parametrize(
        "change",
        [
            {"stages": {"a": {"max_parallel_requests": 3}}},
            {"stages": {"b": {"micro_batch_size": 7, "max_parallel_requests": 1}}},
            {"models": {"m": {"max_retries": 0, "timeout": 5.0}}},
            {"models": {"m": {"routing_strategy": "least-busy"}}},
            {"deployments": {"d": {"max_parallel_requests": 2, "limits": {"rpm": 60000}}}},
            {"deployments": {"d": {"input_cost_per_token": 1.0}}},
            {"store": {"commit_interval": 0.02}},
        ],
        ids=str,
    )
    def test_what_does_not_decide_an_answer_reruns_nothing(
        self, lab: Lab, simulator: Simulator, change: dict[str, Any]
    ) -> None:
        lab.rows(texts(5))
        mapping = experiment(simulator.url, {"a": generate(), "b": embed("{{ a.text }}")})
        lab.run(mapping)
        simulator.reset()
        for section, entries in change.items():
            for name, value in entries.items():
                mapping[section][name] = mapping[section][name] | value if isinstance(value, dict) else value
        assert lab.run(mapping).counts == {"a": {"done": 5}, "b": {"done": 5}}
        assert totals(simulator)["received"] == 0

    @pytest.mark.parametrize(
        "change",
        [
            {"stages": {"a": {"params": {"temperature": 0.5}}}},
            {"stages": {"a": {"system": "Be brief."}}},
            {"stages": {"a": {"response_format": {"type": "json_object"}}}},
            {"models": {"m": {"params": {"seed": 1}}}},
            {"deployments": {"d": {"model": "hosted_vllm/another"}}},
        ],
        ids=str,
    )
    def test_what_decides_an_answer_reruns_it(self, lab: Lab, simulator: Simulator, change: dict[str, Any]) -> None:
        lab.rows(texts(5))
        mapping = experiment(simulator.url, {"a": generate()})
        lab.run(mapping)
        simulator.reset()
        for section, entries in change.items():
            for name, value in entries.items():
                mapping[section][name] = mapping[section][name] | value
        assert lab.run(mapping).counts == {"a": {"done": 5}}
        assert totals(simulator)["received"] == 5

    def test_an_edited_where_is_applied_to_settled_rows(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(6))
        lab.run(experiment(simulator.url, {"a": generate(where="n < 3")}))
        simulator.reset()
        lab.run(experiment(simulator.url, {"a": generate(where="n >= 2")}))
        assert lab.statuses("a") == {n: "done" if n >= 2 else "skipped" for n in range(6)}
        assert totals(simulator)["received"] == 3

    def test_a_new_stage_is_run_over_settled_rows(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(4))
        lab.run(experiment(simulator.url, {"a": generate()}))
        simulator.reset()
        outcome = lab.run(experiment(simulator.url, {"a": generate(), "b": embed("{{ a.text }}")}))
        assert outcome.counts == {"a": {"done": 4}, "b": {"done": 4}}
        assert totals(simulator, "chat")["received"] == 0

    def test_a_stage_of_another_kind(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(4))
        lab.run(experiment(simulator.url, {"a": generate()}))
        assert lab.run(experiment(simulator.url, {"a": embed()})).counts == {"a": {"done": 4}}
        assert lab.one("SELECT count(embedding) FROM a") == 4

    def test_a_changed_source(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(5))
        mapping = experiment(simulator.url, {"a": generate()})
        lab.run(mapping)
        simulator.reset()
        rows = texts(8)
        lab.rows([rows[6], rows[4], rows[0], rows[2], rows[7]])
        assert lab.run(mapping).counts == {"a": {"done": 5}}
        assert totals(simulator)["received"] == 2
        assert lab.sql("SELECT n, a_text = text FROM results ORDER BY n") == [(n, True) for n in (0, 2, 4, 6, 7)]
        # The rows that went are paid for: when they come back, so do their answers.
        simulator.reset()
        lab.rows(rows)
        assert lab.run(mapping).counts == {"a": {"done": 8}}
        assert totals(simulator)["received"] == 1

    def test_a_wrong_edit_leaves_the_run_as_it_was(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        mapping = experiment(simulator.url, {"a": generate()})
        lab.run(mapping)
        with pytest.raises(ConfigError, match="'txt' is neither a column"):
            lab.run(experiment(simulator.url, {"a": generate("{{ txt }}")}))
        simulator.reset()
        assert lab.run(mapping).counts == {"a": {"done": 3}}
        assert totals(simulator)["received"] == 0

    def test_a_wrong_first_declaration_leaves_no_database(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        with pytest.raises(ConfigError, match="'txt' is neither a column"):
            lab.run(experiment(simulator.url, {"a": generate("{{ txt }}")}))
        assert not list(lab.folder.glob("run.duckdb*"))
        assert not (lab.folder.parent / "latest").is_symlink()


def interrupt_after(rows: int, times: int = 1) -> Watch:
    """Send this process SIGINT once so many row states are settled, in as many ticks as asked."""
    left = times

    def look(stats: RunStats) -> None:
        nonlocal left
        if left and stats.settled >= rows:
            left -= 1
            os.kill(os.getpid(), signal.SIGINT)

    return Watch(look)


class TestInterrupts:
    def test_the_first_drains(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.05)
        lab.rows(texts(200))
        mapping = experiment(
            simulator.url, {"a": generate(max_parallel_requests=10), "b": generate("{{ a.text }} Again.")}
        )
        watch = interrupt_after(10)
        outcome = lab.run(mapping, watch=watch)
        seen = totals(simulator)
        assert (outcome.status, outcome.exit_code) == ("interrupted", 130)
        assert seen["abandoned"] == 0
        assert lab.one("SELECT status FROM run") == "interrupted"
        done = sum(counts.get("done", 0) for counts in outcome.counts.values())
        assert done == seen["answered"] == seen["received"] < 400
        assert any("stopping" in note for note in watch.notes)

        simulator.reset()
        assert lab.run(mapping).counts == {"a": {"done": 200}, "b": {"done": 200}}
        assert totals(simulator)["received"] == 400 - done
        assert lab.one("SELECT status FROM run") == "done"

    def test_one_that_comes_when_all_is_settled_changes_nothing(self, lab: Lab, simulator: Simulator) -> None:
        class Late(Watch):
            def stop(self, stats: RunStats) -> None:
                super().stop(stats)
                os.kill(os.getpid(), signal.SIGINT)

        lab.rows(texts(3))
        outcome = lab.run(experiment(simulator.url, {"answers": generate()}), watch=Late())
        assert (outcome.status, lab.one("SELECT status FROM run")) == ("done", "done")

    def test_the_second_drops_what_is_in_flight(
        self, lab: Lab, start_simulator: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals, "TOGETHER_S", 0.0)  # the test does not wait between the two
        hanging = start_simulator(faults={"hang": 1.0})
        lab.rows(texts(20))
        mapping = experiment(hanging.url, {"a": generate(max_parallel_requests=4)})
        mapping["models"]["m"]["timeout"] = None
        outcome = lab.run(mapping, watch=interrupt_after(0, times=2))
        assert outcome.exit_code == 130
        assert outcome.elapsed_s < 5
        assert outcome.counts == {"a": {"pending": 20}}

    @pytest.mark.long
    def test_an_edit_that_was_interrupted_is_finished_later(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.05)
        lab.rows(texts(100))
        stages = {"a": generate(max_parallel_requests=10), "b": embed("{{ a.text }}")}
        lab.run(experiment(simulator.url, stages))
        stages["a"] = generate("{{ text }} It was wet.", max_parallel_requests=10)
        assert lab.run(experiment(simulator.url, stages), watch=interrupt_after(20)).exit_code in (0, 130)
        half = lab.one("SELECT count(*) FROM a WHERE contains(text, 'wet')")
        assert 0 < half < 100
        simulator.reset()
        assert lab.run(experiment(simulator.url, stages)).exit_code == 0
        assert lab.one("SELECT count(*) FROM a WHERE contains(text, 'wet')") == 100
        assert totals(simulator, "chat")["received"] == 100 - half
        fresh = Lab(lab.root)
        fresh.folder = lab.folder.with_name("fresh")
        fresh.run(experiment(simulator.url, stages))
        query = "SELECT n, a_text, b_embedding FROM results ORDER BY n"
        assert lab.sql(query) == fresh.sql(query)


class TestAttempts:
    def test_a_request_that_carries_several_rows_is_one_attempt(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(10))
        lab.run(experiment(simulator.url, {"b": embed(micro_batch_size=4, max_parallel_requests=1)}))
        assert lab.one("SELECT count(*) FROM attempts") == totals(simulator)["received"]
        assert lab.one("SELECT sum(request_rows) FROM attempts") == 10
        assert lab.one("SELECT max(request_rows) FROM attempts") == 4

    def test_tokens_add_up(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(10))
        outcome = lab.run(experiment(simulator.url, {"a": generate(), "b": embed("{{ a.text }}", micro_batch_size=3)}))
        stages = lab.sql(
            "SELECT sum(prompt_tokens), sum(completion_tokens) FROM (SELECT prompt_tokens, completion_tokens FROM a "
            "UNION ALL SELECT prompt_tokens, completion_tokens FROM b)"
        )
        assert stages == lab.sql("SELECT sum(prompt_tokens), sum(completion_tokens) FROM attempts")
        assert stages == [(outcome.totals["prompt_tokens"], outcome.totals["completion_tokens"])]
        assert stages[0][0] == 20 * 7

    def test_costs_follow_the_deployments_prices(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(10))
        mapping = experiment(simulator.url, {"a": generate(), "b": embed("{{ a.text }}")})
        mapping["deployments"]["d"] |= {"input_cost_per_token": 0.001, "output_cost_per_token": 0.1}
        outcome = lab.run(mapping)
        tokens = outcome.totals
        expected = 0.001 * tokens["prompt_tokens"] + 0.1 * tokens["completion_tokens"]
        assert expected > 1
        assert tokens["cost_usd"] == pytest.approx(expected)
        assert lab.one("SELECT sum(cost_usd) FROM attempts") == pytest.approx(expected)
        assert lab.one("SELECT (SELECT sum(cost_usd) FROM a) + (SELECT sum(cost_usd) FROM b)") == pytest.approx(
            expected
        )

    def test_without_a_price_the_cost_is_unknown_not_nothing(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        assert lab.run(experiment(simulator.url, {"a": generate()})).totals["cost_usd"] is None

    def test_requests_that_split_a_refused_batch_are_all_told(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(bad_texts="number 5 ")
        lab.rows(texts(8))
        lab.run(experiment(simulator.url, {"b": embed(micro_batch_size=8)}))
        seen = totals(simulator)
        assert (
            lab.one("SELECT count(*) FROM attempts") == seen["received"] == 8
        )  # a text that is certainly good among them
        assert lab.one("SELECT count(*) FROM attempts WHERE status_code = 400") == seen["status"]["400"]

    def test_a_schema_class_whose_check_ends_the_process(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        lab.run(experiment(simulator.url, {"a": generate(response_format="tests.functions:Fussy")}))
        assert lab.sql("SELECT status, count(*), count(text), count(parsed) FROM a GROUP BY ALL") == [("done", 3, 3, 0)]

    def test_requests_that_ask_again_are_all_told(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"invalid_json_content": 1.0})
        lab.rows(texts(2))
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        lab.run(experiment(simulator.url, {"a": generate(response_format=schema, on_invalid="retry")}))
        assert lab.one("SELECT count(*) FROM attempts") == totals(simulator)["received"] == 6
        first = lab.sql("SELECT min(attempt), max(attempt) FROM attempts GROUP BY row_id")
        lab.folder = lab.folder.with_name("plain")
        lab.run(experiment(simulator.url, {"a": generate()}))
        ((plain,),) = lab.sql("SELECT DISTINCT attempt FROM attempts")
        assert first == [(plain, plain + 2)] * 2

    def test_a_request_that_asks_again_and_fails_is_told_with_the_first(self, lab: Lab, start_simulator: Start) -> None:
        # The first question fits the window, the same with the wrong answer and what was wrong with it does not.
        simulator = start_simulator(faults={"invalid_json_content": 1.0}, context_window=12)
        lab.rows(texts(1))
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        lab.run(experiment(simulator.url, {"a": generate(response_format=schema, on_invalid="retry")}))
        seen = totals(simulator)
        assert seen["status"] == {"200": 1, "400": 1}
        assert lab.one("SELECT count(*) FROM attempts") == 2
        assert lab.one("SELECT attempts FROM a") == 2


class TestGraph:
    @pytest.mark.parametrize(
        ("stages", "words"),
        [
            ({"a": generate("{{ b.text }}"), "b": generate("{{ a.text }}")}, "is a cycle"),
            ({"a": generate("{{ a.text }}")}, "is a cycle"),
            ({"a": generate(), "b": generate(where="b.text is null")}, "is a cycle"),
            ({"a": generate("{{ txt }}")}, "stages.a.prompt: 'txt' is neither a column of the source nor a"),
            ({"words": generate(), "b": embed("{{ word.text }}")}, "nor a stage. Did you mean 'words'?"),
            ({"a": generate(), "b": embed("{{ a.txt }}")}, "'a.txt' is no column of stage 'a'. Did you mean 'text'?"),
            ({"text": generate("Row {{ n }}.")}, "stages.text: the source has a column 'text'"),
            ({"a": generate("prompts/none.jinja")}, "stages.a.prompt: no file 'prompts/none.jinja'"),
            ({"a": generate("{% if %}")}, "stages.a.prompt: line 1"),
            ({"a": generate(response_format="nowhere.schema:X")}, "'nowhere.schema:X' does not import"),
            ({"a": generate(response_format="json:dumpz")}, "has no 'dumpz'. Did you mean 'dump"),
            ({"a": generate(response_format="schema.json")}, "stages.a.response_format: no file 'schema.json'"),
            ({"a": generate(response_format="Summary")}, "is neither module:PydanticClass"),
            ({"a": generate(response_format={"type": "nothing"})}, "stages.a.response_format"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_with_a_stage_is_told_before_anything_is_sent(
        self, lab: Lab, simulator: Simulator, stages: dict[str, Any], words: str
    ) -> None:
        lab.rows(texts(2))
        with pytest.raises(ConfigError) as caught:
            lab.run(experiment(simulator.url, stages))
        assert words in str(caught.value)
        assert totals(simulator)["received"] == 0

    def test_a_key_that_is_not_in_the_environment(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["deployments"]["d"]["api_key_env"] = "MY_KEY"
        with pytest.raises(ConfigError, match="MY_KEY"):
            lab.run(mapping, environ={})

    def test_the_key_of_the_environment_is_sent(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(api_key="the-right-key")
        lab.rows(texts(1))
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["deployments"]["d"]["api_key_env"] = "MY_KEY"
        assert lab.run(mapping, environ={"MY_KEY": "the-wrong-key"}).counts == {"a": {"error": 1}}
        ((kind, error),) = lab.sql("SELECT error_type, error FROM a")
        assert kind == "authentication"
        assert "the-wrong-key" not in error
        assert lab.run(mapping, environ={"MY_KEY": "the-right-key"}).counts == {"a": {"done": 1}}

    def test_all_three_kinds_in_one_run(self, lab: Lab, simulator: Simulator, tmp_path: Path) -> None:
        (tmp_path / "clip.wav").write_bytes(wav("The lamp is broken."))
        lab.rows([{"n": 0, "audio": "clip.wav"}, {"n": 1, "audio": None}])
        stages = {
            "words": transcribe(where="audio is not null"),
            "answers": generate("{% if words.text %}{{ words.text }}{% else %}No clip.{% endif %}"),
            "vectors": embed("{{ answers.text }}"),
        }
        outcome = lab.run(experiment(simulator.url, stages))
        assert outcome.counts == {"words": {"done": 1, "skipped": 1}, "answers": {"done": 2}, "vectors": {"done": 2}}
        assert lab.sql("SELECT words_text, answers_text FROM results ORDER BY n") == [
            ("The lamp is broken.", "The lamp is broken."),
            (None, "No clip."),
        ]
