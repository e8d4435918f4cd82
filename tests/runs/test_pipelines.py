"""Runs with sql and python stages, reuse, retry and guards, in this process against a simulated service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError, StoreError
from infermesh.query.verify import verify
from infermesh.runs.control import Control
from infermesh.runs.execute import execute
from infermesh.simulator import Simulator
from infermesh.store.database import Redo
from infermesh.store.schema import DATABASE
from tests import functions
from tests.support import Lab, Watch, embed, experiment, generate, texts, totals

Start = Callable[..., Simulator]

CHUNKS = (
    "SELECT n, unnest(parts) AS part, generate_subscripts(parts, 1) AS i "
    "FROM (SELECT n, string_split(text, '|') AS parts FROM source)"
)
MERGED = (
    "SELECT c.n, string_agg(s.text, ' ' ORDER BY c.i) AS text FROM chunks c JOIN summaries s USING (row_id) "
    "WHERE s.status = 'done' GROUP BY c.n"
)


def documents(count: int, parts: int = 3) -> list[dict[str, Any]]:
    return [{"n": n, "text": "|".join(f"Part {part} of document {n}." for part in range(parts))} for n in range(count)]


def sql(query: str) -> dict[str, Any]:
    return {"kind": "sql", "query": query}


def chunked(url: str, **changes: Any) -> dict[str, Any]:
    """Documents in parts, each part summarised, the summaries joined, a title for each document."""
    stages: dict[str, Any] = {
        "chunks": sql(CHUNKS),
        "summaries": {"model": "m", **generate("Sum up: {{ chunks.part }}")},
        "merged": sql(MERGED),
        "titles": {"model": "m", **generate("A title for: {{ merged.text }}")},
    }
    mapping = experiment(url, {})
    mapping["stages"] = stages | changes
    return mapping


def python(function: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "python", "function": f"tests.functions:{function}", **fields}


def with_python(url: str, stage: dict[str, Any]) -> dict[str, Any]:
    mapping = experiment(url, {"answers": generate()})
    mapping["stages"]["scores"] = stage
    return mapping


@pytest.fixture(autouse=True)
def _forget() -> None:
    functions.calls.clear()
    functions.together.clear()


class TestSqlStages:
    def test_fan_out_and_fan_in(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(4))
        outcome = lab.run(chunked(simulator.url))
        assert outcome.status == "done"
        assert outcome.counts == {
            "chunks": {"done": 12},
            "summaries": {"done": 12},
            "merged": {"done": 4},
            "titles": {"done": 4},
        }
        assert totals(simulator)["received"] == 16
        assert lab.sql("SELECT n, titles_text LIKE '%Part 0 of document 2.%' FROM merged_results WHERE n = 2") == [
            (2, True)
        ]
        assert lab.sql("SELECT part, summaries_status FROM chunks_results WHERE n = 1 ORDER BY i") == [
            (f"Part {part} of document 1.", "done") for part in range(3)
        ]
        assert lab.one("SELECT count(*) FROM results") == 4

    def test_a_resumed_run_sends_nothing(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(4))
        lab.run(chunked(simulator.url))
        simulator.reset()
        assert lab.run(chunked(simulator.url)).status == "done"
        assert totals(simulator)["received"] == 0

    def test_an_added_document_sends_its_own_requests(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(4))
        lab.run(chunked(simulator.url))
        simulator.reset()
        lab.rows(documents(5))
        lab.run(chunked(simulator.url))
        assert totals(simulator)["received"] == 4
        assert lab.one("SELECT count(*) FROM merged_results WHERE titles_status = 'done'") == 5

    def test_a_removed_document_goes_from_every_result(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(4))
        lab.run(chunked(simulator.url))
        simulator.reset()
        lab.rows(documents(3))
        outcome = lab.run(chunked(simulator.url))
        assert totals(simulator)["received"] == 0
        assert outcome.counts["chunks"] == {"done": 9}
        assert outcome.counts["titles"] == {"done": 3}
        assert lab.one("SELECT count(*) FROM titles") == 4  # kept in the tables

    def test_an_edited_query_keeps_the_rows_that_stay_the_same(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(4))
        lab.run(chunked(simulator.url))
        simulator.reset()
        outcome = lab.run(chunked(simulator.url, chunks=sql(f"SELECT * FROM ({CHUNKS}) WHERE i <= 2")))
        assert totals(simulator)["received"] == 4  # titles of shorter texts
        assert outcome.counts["summaries"] == {"done": 8}

    def test_an_edited_prompt_resends_its_stage(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(4))
        lab.run(chunked(simulator.url))
        simulator.reset()
        watch = Watch()
        edited = {"model": "m", **generate("Another title for: {{ merged.text }}")}
        lab.run(chunked(simulator.url, titles=edited), watch=watch)
        assert totals(simulator)["received"] == 4
        assert any(note.startswith("titles: prompt: '") and "'Another title for: " in note for note in watch.notes)
        assert any(note == "summaries: 12 kept" for note in watch.notes)

    def test_failed_rows_are_left_to_the_query(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(filter_marker="document 2")
        lab.rows(documents(3))
        outcome = lab.run(chunked(simulator.url))
        assert outcome.status == "failed_rows"
        assert outcome.counts["summaries"] == {"done": 6, "error": 3}
        assert outcome.counts["titles"] == {"done": 2}

    def test_an_interrupt_before_the_query_leaves_the_rest_for_later(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(latency_s=0.05)
        lab.rows(documents(40))
        mapping = chunked(simulator.url)
        mapping["guards"] = {"max_duration": 0.6}
        mapping["stages"]["summaries"]["max_parallel_requests"] = 4
        outcome = lab.run(mapping)
        assert (outcome.status, outcome.exit_code) == ("stopped", 4)
        assert outcome.counts["merged"] == {"pending": 0}
        sent = totals(simulator)["received"]
        assert 0 < sent < 120
        del mapping["guards"]
        mapping["stages"]["summaries"]["max_parallel_requests"] = 64
        assert lab.run(mapping).status == "done"
        assert totals(simulator)["received"] == 160

    def test_a_query_over_the_results_of_two_stages(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(6))
        mapping = experiment(simulator.url, {"answers": generate(where="n < 4"), "vectors": embed("{{ text }}")})
        mapping["stages"]["joined"] = sql(
            "SELECT n, a.text, len(embedding) AS size FROM source JOIN answers a USING (row_id) "
            "JOIN vectors v USING (row_id) WHERE a.status = 'done'"
        )
        lab.run(mapping)
        assert lab.sql("SELECT count(*), min(size) FROM joined") == [(4, 64)]

    def test_a_query_in_a_file(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(2))
        (lab.root / "chunks.sql").write_text(f"-- parts\n{CHUNKS};\n")
        assert lab.run(chunked(simulator.url, chunks=sql("chunks.sql"))).counts["chunks"] == {"done": 6}

    def test_a_condition_over_its_rows(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(2))
        where = generate("{{ part }}", rows="chunks", where="chunks.i > 1 AND n = 0")
        assert lab.run(chunked(simulator.url, summaries={"model": "m", **where})).counts["summaries"] == {
            "done": 2,
            "skipped": 4,
        }

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("SELECT nothing FROM source", r"stages\.chunks\.query: .*nothing"),
            ("SELECT * FROM missing", r"stages\.chunks\.query: .*missing.*tables: source, "),
            ("DELETE FROM source", r"stages\.chunks\.query: not a SELECT"),
            ("SELECT 1 AS a; SELECT 2 AS b", r"stages\.chunks\.query: expected one SELECT"),
            (
                "SELECT row_id, n FROM source",
                r"stages\.chunks\.query: a column is called 'row_id'.*select row_id as id",
            ),
            ("SELECT n, 1 AS i, 'x' AS part, n AS chunks FROM source", r"stages\.chunks: .*'chunks'.*Rename the stage"),
            ("missing.sql", r"stages\.chunks\.query: no file 'missing\.sql'"),
            ("SELECT * FROM titles", r"is a cycle"),
        ],
    )
    def test_what_is_wrong_with_a_query_is_told_before_anything_is_sent(
        self, lab: Lab, simulator: Simulator, query: str, message: str
    ) -> None:
        lab.rows(documents(1))
        with pytest.raises(ConfigError, match=message):
            lab.run(chunked(simulator.url, chunks=sql(query)))
        assert totals(simulator)["received"] == 0

    def test_a_column_that_the_query_does_not_make(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(1))
        with pytest.raises(ConfigError, match=r"'chunks\.parts' is no column of stage 'chunks'.*Did you mean 'part'"):
            lab.run(chunked(simulator.url, summaries={"model": "m", **generate("{{ chunks.parts }}")}))

    def test_a_stage_over_two_kinds_of_rows(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(1))
        titles = {"model": "m", **generate("{{ merged.text }} {{ summaries.text }}")}
        with pytest.raises(ConfigError, match=r"stages\.titles: it reads stages over different rows: .*sql can join"):
            lab.run(chunked(simulator.url, titles=titles))

    def test_a_query_that_fails_on_the_rows_keeps_what_was_done(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(documents(2))
        with pytest.raises(StoreError, match=r"stages\.merged\.query fails: .*is kept: correct the query"):
            lab.run(chunked(simulator.url, merged=sql("SELECT text::INTEGER AS text FROM summaries")))
        assert lab.run(chunked(simulator.url)).status == "done"
        assert totals(simulator)["received"] == 8


class TestPythonStages:
    def test_declared_columns(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(5))
        stage = python("length", reads=["answers"], columns={"chars": "bigint", "label": "varchar"})
        assert lab.run(with_python(simulator.url, stage)).status == "done"
        assert lab.sql("SELECT chars, label, status FROM scores JOIN source USING (row_id) WHERE n = 3") == [
            (len("Parcel number 3 came late."), "n=3", "done")
        ]

    def test_an_async_function_and_one_json_column(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        mapping = with_python(simulator.url, python("doubled"))
        mapping["stages"]["last"] = {"model": "m", **generate("{{ scores.value[1] }}")}
        lab.run(mapping)
        assert lab.sql("SELECT l.text FROM last l JOIN source USING (row_id) ORDER BY n") == [("0",), ("2",), ("4",)]

    def test_without_a_model(self, lab: Lab) -> None:
        lab.rows(texts(3))
        mapping = {"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"scores": python("doubled")}}
        assert lab.run(mapping).counts == {"scores": {"done": 3}}

    def test_a_function_that_fails_costs_its_row(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(4))
        assert lab.run(with_python(simulator.url, python("failing"))).counts["scores"] == {"done": 2, "error": 2}
        assert lab.sql("SELECT error_type, error, attempts FROM scores WHERE status = 'error' ORDER BY row_id") == [
            ("function", "tests.functions:failing: ValueError: one is not allowed", 1),
            ("input", "two has no input", 0),
        ]

    @pytest.mark.parametrize("name", ["ending", "ending_async"])
    def test_whatever_a_function_ends_in_costs_its_row(self, lab: Lab, name: str) -> None:
        ends = ["exit", "interrupt", "cancelled", "stop", "generator", "half", "speechless", "none"]
        lab.rows([{"end": end} for end in ends])
        mapping = {"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": python(name, max_retries=0)}}
        outcome = lab.run(mapping)
        assert (outcome.status, outcome.counts["s"]) == ("failed_rows", {"done": 1, "error": 7})
        assert lab.sql("SELECT \"end\" FROM s JOIN source USING (row_id) WHERE s.status = 'done'") == [("none",)]

    def test_whatever_a_mapper_ends_in_costs_its_row(self, lab: Lab, simulator: Simulator) -> None:
        ends = ["exit", "interrupt", "cancelled", "stop", "generator", "half", "speechless", "none"]
        lab.rows([{"end": end} for end in ends])
        outcome = lab.run(experiment(simulator.url, {"a": {"kind": "generate", "mapper": "tests.functions:ending"}}))
        assert (outcome.status, outcome.counts["a"]) == ("failed_rows", {"done": 1, "error": 7})

    @pytest.mark.parametrize("name", ["trap", "trap_async"])
    @pytest.mark.parametrize("place", ["whole", "x"])
    def test_whatever_a_functions_value_does_costs_its_row(self, lab: Lab, name: str, place: str) -> None:
        lab.rows([{"value": value, "as": place} for value in ("object", "dict", "words", "long")])
        stage = python(name, max_retries=0, columns={"x": "VARCHAR"})
        outcome = lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": stage}})
        assert outcome.counts["s"] == ({"done": 1, "error": 3} if place == "x" else {"error": 4})
        assert lab.one("SELECT max(length(error)) FROM s") < 5000

    @pytest.mark.parametrize("name", ["trap", "trap_async"])
    @pytest.mark.parametrize("place", ["whole", "input"])
    def test_whatever_a_mappers_value_does_costs_its_row(
        self, lab: Lab, simulator: Simulator, name: str, place: str
    ) -> None:
        lab.rows([{"value": value, "as": place} for value in ("object", "dict", "words", "long")])
        mapper = {"kind": "generate", "mapper": f"tests.functions:{name}"}
        outcome = lab.run(experiment(simulator.url, {"a": mapper}))
        assert outcome.counts["a"] == ({"done": 1, "error": 3} if place == "input" else {"error": 4})
        assert lab.one("SELECT max(length(error)) FROM a") < 5000

    def test_times_that_a_function_returns(self, lab: Lab) -> None:
        lab.rows([{"n": n} for n in range(3)])
        stage = python("times", columns={"x": "TIMESTAMP"}, max_retries=0)
        outcome = lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": stage}})
        assert outcome.counts["s"] == {"done": 2, "error": 1}
        assert lab.sql("SELECT x::VARCHAR FROM s WHERE status = 'done' ORDER BY row_id") == [
            ("2025-01-02 03:04:05.000006",),
            ("2025-01-02 01:04:05.000006",),
        ]

    def test_calls_that_hang_do_not_keep_others_waiting(self, lab: Lab) -> None:
        lab.rows([{"n": n % 2} for n in range(6)])
        stage = python("hanging", max_retries=0, timeout=0.2, max_parallel_requests=2)
        outcome = lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": stage}})
        assert outcome.counts["s"] == {"done": 3, "error": 3}

    @pytest.mark.parametrize(("kind", "fit"), [("DOUBLE", [1, 2, 4]), ("FLOAT", [4])])
    def test_numbers_that_a_column_cannot_hold_cost_their_row(self, lab: Lab, kind: str, fit: list[int]) -> None:
        lab.rows([{"n": n} for n in range(5)])
        stage = python("large", columns={"x": kind}, max_retries=0)
        lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": stage}})
        assert lab.sql("SELECT row_id FROM s WHERE status = 'done' ORDER BY 1") == [(n,) for n in fit]

    def test_what_may_pass_is_tried_again(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(1))
        stage = python("flaky", max_retries=1)
        assert lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": {"s": stage}}).counts["s"] == {
            "done": 1
        }
        assert lab.sql("SELECT attempt, error_type FROM attempts ORDER BY attempt") == [(1, "function"), (2, None)]

    @pytest.mark.parametrize(
        ("function", "columns", "message"),
        [
            ("wrong", {"chars": "BIGINT"}, "chars: expected BIGINT, got 'many'"),
            ("wrong", {"size": "BIGINT"}, "it returned 'chars', which is none of"),
            ("doubled", {"chars": "BIGINT"}, "expected a dict with chars, got list"),
        ],
    )
    def test_what_does_not_fit_the_columns(
        self, lab: Lab, function: str, columns: dict[str, str], message: str
    ) -> None:
        lab.rows(texts(1))
        stages = {"s": python(function, columns=columns)}
        lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": stages})
        assert message in lab.one("SELECT error FROM s")

    def test_a_call_that_takes_too_long(self, lab: Lab) -> None:
        lab.rows(texts(1))
        stages = {"s": python("endless", timeout=0.05, max_retries=0)}
        lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": stages})
        assert lab.one("SELECT error FROM s") == "tests.functions:endless: no answer within 0.05 s"

    def test_as_many_at_once_as_declared(self, lab: Lab) -> None:
        lab.rows(texts(40))
        stages = {"s": python("crowded", max_parallel_requests=3)}
        lab.run({"name": "lab", "source": {"path": "rows.jsonl"}, "stages": stages})
        assert max(functions.together) == 3

    def test_resumed_it_calls_only_for_rows_that_changed(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(5))
        stage = python("length", reads=["answers"], columns={"chars": "BIGINT", "label": "VARCHAR"})
        lab.run(with_python(simulator.url, stage))
        functions.calls.clear()
        lab.rows([*texts(5), {"n": 5, "text": "Another."}])
        lab.run(with_python(simulator.url, stage))
        assert [call["n"] for call in functions.calls] == [5]

    @pytest.mark.parametrize(
        ("stage", "message"),
        [
            ({"kind": "python", "function": "no_such_module:f"}, r"stages\.scores\.function: .*does not import"),
            ({"kind": "python", "function": "tests.leaves:f"}, r"'tests\.leaves:f' does not import: SystemExit: 0"),
            ({"kind": "python", "function": "tests.functions:calls"}, r"is a list, not a function"),
            (python("length", reads=["answer"]), r"stages\.scores\.reads: no stage 'answer'.*'answers'"),
            (python("length", columns={"a": "DOUBL"}), r"stages\.scores\.columns\.a: no column type 'DOUBL'.*'DOUBLE'"),
            (python("length", columns={"Status": "BIGINT"}), r"columns\.Status: every stage's table has such a column"),
            (python("length", rows="answers"), r"stages\.scores\.rows: expected 'source' or a sql stage"),
        ],
    )
    def test_what_is_wrong_with_it(self, lab: Lab, simulator: Simulator, stage: dict[str, Any], message: str) -> None:
        lab.rows(texts(1))
        with pytest.raises(ConfigError, match=message):
            lab.run(with_python(simulator.url, stage))


def elsewhere(lab: Lab, name: str, mapping: dict[str, Any], watch: Watch | None = None) -> Any:
    """A run of the same experiment in another folder."""
    return execute(
        declare(mapping, [lab.root]), lab.root / "outputs" / "lab" / name, observer=watch or Watch(), environ={}
    )


class TestReuse:
    def test_identical_requests_are_not_sent(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(20))
        mapping = experiment(simulator.url, {"answers": generate(), "vectors": embed("{{ answers.text }}")})
        elsewhere(lab, "first", mapping)
        simulator.reset()
        lab.rows(texts(25))
        watch = Watch()
        outcome = lab.run(mapping | {"reuse": "latest"}, watch=watch)
        assert (outcome.status, outcome.reused) == ("done", 40)
        assert totals(simulator, "chat")["received"] == 5
        assert lab.sql("SELECT count(*), max(cost_usd), max(attempts) FROM answers WHERE reused_from IS NOT NULL") == [
            (20, 0.0, 0)
        ]
        assert (
            lab.one(
                "SELECT count(*) FROM results WHERE answers_text LIKE '%came late%' AND len(vectors_embedding) = 64"
            )
            == 25
        )
        assert any("reuse: latest" in note and "20 of answers" in note for note in watch.notes)

    def test_the_latest_that_nobody_holds(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        mapping = experiment(simulator.url, {"answers": generate()})
        elsewhere(lab, "first", mapping)
        damaged = lab.root / "outputs" / "lab" / "second" / DATABASE
        damaged.parent.mkdir()
        damaged.write_bytes(b"no database")
        watch = Watch()
        assert lab.run(mapping | {"reuse": "latest"}, watch=watch).reused == 3
        assert any("second is left out" in note for note in watch.notes)

    def test_none_is_the_default(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        mapping = experiment(simulator.url, {"answers": generate()})
        elsewhere(lab, "first", mapping)
        lab.run(mapping)
        assert totals(simulator)["received"] == 6

    def test_all_runs_and_whose_answer_it_was(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(6))
        for n, name in enumerate(("a", "b")):
            mapping = experiment(simulator.url, {"answers": generate(where=f"n // 3 = {n}")})
            elsewhere(lab, name, mapping)
        simulator.reset()
        mapping = experiment(simulator.url, {"other": generate()}, reuse="all")
        assert elsewhere(lab, "c", mapping).reused == 6
        assert elsewhere(lab, "d", mapping | {"reuse": str(lab.root / "outputs" / "lab" / "c")}).reused == 6
        assert totals(simulator)["received"] == 0
        lab.folder = lab.root / "outputs" / "lab" / "d"
        assert lab.one("SELECT count(DISTINCT reused_from) FROM other") == 2  # whoever asked, not who took it first

    def test_what_decides_the_answer_must_be_the_same(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(3))
        elsewhere(lab, "first", experiment(simulator.url, {"answers": generate()}))
        simulator.reset()
        lab.run(experiment(simulator.url, {"answers": generate(params={"temperature": 1.0})}, reuse="all"))
        assert totals(simulator)["received"] == 3

    def test_failed_rows_are_not_taken(self, lab: Lab, simulator: Simulator, start_simulator: Start) -> None:
        lab.rows(texts(4))
        elsewhere(lab, "first", experiment(start_simulator(filter_marker="number 2").url, {"answers": generate()}))
        outcome = lab.run(experiment(simulator.url, {"answers": generate()}, reuse="latest"))
        assert (outcome.status, outcome.reused) == ("done", 3)
        assert totals(simulator)["received"] == 1

    def test_a_folder_without_a_run(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        with pytest.raises(ConfigError, match=r"reuse: 'nowhere' holds no run\. Expected none, latest, all"):
            lab.run(experiment(simulator.url, {"answers": generate()}, reuse="nowhere"))


def again(lab: Lab, mapping: dict[str, Any], redo: Redo) -> Any:
    return execute(declare(mapping, [lab.root]), lab.folder, observer=Watch(), environ={}, redo=redo)


class TestRetry:
    def test_chosen_rows_and_what_changes_with_them(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(10))
        mapping = experiment(simulator.url, {"answers": generate(), "vectors": embed("{{ answers.text }}")})
        lab.run(mapping)
        simulator.reset()
        assert again(lab, mapping, Redo("answers", "row_id IN (2, 5) OR completion_tokens > 4000")).status == "done"
        assert totals(simulator, "chat")["received"] == 2
        assert totals(simulator, "embeddings")["received"] == 0  # the simulator gave the same answers again
        assert lab.one("SELECT count(*) FROM answers") == 10
        assert lab.one("SELECT count(*) FROM attempts WHERE stage = 'answers'") == 12

    def test_another_runs_answers_do_not_stand_for_them(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(5))
        mapping = experiment(simulator.url, {"answers": generate()}, reuse="latest")
        elsewhere(lab, "first", mapping)
        assert lab.run(mapping).reused == 5
        simulator.reset()
        assert again(lab, mapping, Redo("answers", "row_id < 2")).reused == 0
        assert totals(simulator)["received"] == 2

    def test_an_answer_stays_until_there_is_another(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(6))
        simulator = start_simulator()
        stages = {"answers": generate(), "vectors": embed("{{ answers.text }}")}
        lab.run(experiment(simulator.url, stages))
        before = lab.sql("SELECT row_id, text, finished_at FROM answers ORDER BY ALL")
        broken = start_simulator(faults={"server_error": 1.0})
        failing = experiment(broken.url, stages)
        failing["models"]["m"]["max_retries"] = 0
        outcome = again(lab, failing, Redo("answers", "row_id < 4"))
        assert (outcome.status, outcome.exit_code) == ("failed_rows", 3)
        assert outcome.counts["answers"] == {"done": 2, "pending": 4}
        assert lab.sql("SELECT row_id, text, finished_at FROM answers ORDER BY ALL") == before
        assert lab.one("SELECT count(*) FROM attempts WHERE error_type IS NOT NULL") == 4
        # They are still to be done again, which the next session does, and no other row.
        simulator.reset()
        assert lab.run(experiment(simulator.url, stages)).status == "done"
        assert totals(simulator, "chat")["received"] == 4
        assert lab.one("SELECT count(*) FROM answers") == 6
        simulator.reset()
        assert lab.run(experiment(simulator.url, stages)).status == "done"
        assert totals(simulator)["received"] == 0

    @pytest.mark.parametrize("over", ["source", "chosen"])
    def test_rows_that_are_gone_are_not_done_again(self, lab: Lab, start_simulator: Start, over: str) -> None:
        def stages(most: int) -> dict[str, Any]:
            lab.rows(texts(most if over == "source" else 6))
            query = {"kind": "sql", "query": f"SELECT n, text FROM source WHERE n < {most}"}
            return {"answers": generate()} if over == "source" else {"chosen": query, "answers": generate(rows=over)}

        def mapping(simulator: Simulator, most: int) -> dict[str, Any]:
            declared = experiment(simulator.url, stages(most))
            declared["stages"].get("chosen", {}).pop("model", None)
            declared["models"]["m"]["max_retries"] = 0
            return declared

        lab.run(mapping(start_simulator(), 6))
        lab.run(mapping(start_simulator(), 4))
        with duckdb.connect(str(lab.folder / DATABASE), read_only=True) as connection:
            assert Redo("answers", "row_id >= 0").count(connection) == 4
        watch = Watch()
        broken = declare(mapping(start_simulator(filter_marker="number 2"), 4), [lab.root])
        outcome = execute(broken, lab.folder, observer=watch, environ={}, redo=Redo("answers", "true"))
        assert outcome.counts["answers"] == {"done": 3, "pending": 1}
        assert "retry: 4 rows of answers are sent again" in watch.notes
        assert [found.words for found in verify(lab.folder) if not found.ok] == []

    def test_with_errors_kept(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(3))
        broken = start_simulator(faults={"server_error": 1.0})
        mapping = experiment(broken.url, {"answers": generate()}, keep_errors=True)
        mapping["models"]["m"]["max_retries"] = 0
        lab.run(mapping)
        simulator = start_simulator()
        mapping = experiment(simulator.url, {"answers": generate()}, keep_errors=True)
        assert again(lab, mapping, Redo("answers", "row_id = 1")).counts["answers"] == {"done": 1, "error": 2}

    def test_other_failed_rows_are_left(self, lab: Lab, start_simulator: Start) -> None:
        """Of the same stage, of one that reads it, and of one beside it."""
        lab.rows(texts(6))
        stages = {
            "answers": generate(),
            "vectors": embed("{{ answers.text }}"),
            "beside": embed("beside {{ text }}"),
        }
        broken = experiment(start_simulator(faults={"server_error": 1.0}).url, stages)
        broken["models"]["m"]["max_retries"] = 0
        lab.run(broken)
        simulator = start_simulator()
        with duckdb.connect(str(lab.folder / DATABASE), read_only=True) as connection:
            chosen = Redo("answers", "status = 'error' AND row_id IN (1, 4)")
            assert chosen.count(connection) == 2
        outcome = again(lab, experiment(simulator.url, stages), chosen)
        assert totals(simulator, "chat")["received"] == 2
        assert totals(simulator, "embeddings")["received"] == 1  # both in one batch
        assert outcome.counts["answers"] == {"done": 2, "error": 4}
        assert outcome.counts["vectors"] == {"done": 2, "skipped": 4}
        assert outcome.counts["beside"] == {"error": 6}
        assert outcome.status == "failed_rows"
        assert lab.run(experiment(simulator.url, stages)).status == "done"
        assert totals(simulator, "chat")["received"] == 6

    def test_a_row_that_fails_beside_is_left_where_the_reader_needs_it(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(3))
        stages = {
            "answers": generate(),
            "beside": embed("{{ text }}{{ 1 / 0 if n == 1 }}"),
            "both": embed("{{ answers.text }} {{ beside.status }}"),
        }
        simulator = start_simulator()
        lab.run(experiment(simulator.url, stages))
        simulator.reset()
        outcome = again(lab, experiment(simulator.url, stages), Redo("answers", "row_id = 1"))
        assert (totals(simulator, "chat")["received"], totals(simulator, "embeddings")["received"]) == (1, 0)
        assert outcome.counts["both"] == {"done": 2, "skipped": 1}

    def test_pending_rows_are_left(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(2))
        query = {"kind": "sql", "query": "SELECT count(*) AS answers FROM answers", "model": None}
        mapping = experiment(simulator.url, {"answers": generate(), "number": query})
        del mapping["stages"]["number"]["model"]
        lab.run(mapping)
        lab.rows(texts(5))
        simulator.reset()
        watch = Watch()
        declared = declare(mapping, [lab.root])
        outcome = execute(declared, lab.folder, observer=watch, environ={}, redo=Redo("answers", "row_id = 0"))
        assert totals(simulator)["received"] == 1
        assert (outcome.status, outcome.counts["answers"]) == ("interrupted", {"done": 2, "pending": 3})
        assert lab.one("SELECT answers FROM number") == 2, "a query waits for all the rows that it reads"
        assert any("still pending, as before: 3 of answers" in note for note in watch.notes)
        assert lab.run(mapping).status == "done"
        assert totals(simulator)["received"] == 4

    def test_rows_that_a_query_makes_of_new_answers_are_sent(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(4))
        query = {"kind": "sql", "query": "SELECT text FROM answers"}
        stages = {"answers": generate(), "words": query, "vectors": embed("{{ text }}", rows="words")}
        first = start_simulator(filter_marker="number 3")
        mapping = experiment(first.url, stages)
        del mapping["stages"]["words"]["model"]
        lab.run(mapping)
        assert lab.one("SELECT count(*) FROM vectors WHERE status = 'done'") == 3
        simulator = start_simulator()
        mapping["deployments"]["d"]["api_base"] = simulator.url
        outcome = again(lab, mapping, Redo("answers", "status = 'error'"))
        assert outcome.counts["vectors"]["done"] == 4
        assert totals(simulator, "chat")["received"] == 1
        assert totals(simulator, "embeddings")["received"] == 1

    def test_an_edited_stage_stays_to_be_looked_at(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(4))
        lab.run(experiment(simulator.url, {"answers": generate()}))
        edited = experiment(simulator.url, {"answers": generate("Say: {{ text }}")})
        simulator.reset()
        assert again(lab, edited, Redo("answers", "row_id = 2")).status == "done"
        assert totals(simulator)["received"] == 1
        lab.run(edited)
        assert totals(simulator)["received"] == 4

    def test_a_retry_that_is_stopped_goes_on(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(40))
        mapping = experiment(simulator.url, {"answers": generate(max_parallel_requests=1)})
        lab.run(mapping)
        simulator.reset()
        control = Control()
        control.stop()
        declared, redo = declare(mapping, [lab.root]), Redo("answers", "row_id < 30")
        outcome = execute(declared, lab.folder, observer=Watch(), environ={}, redo=redo, control=control)
        assert outcome.status == "interrupted"
        assert lab.run(mapping).status == "done"
        assert totals(simulator)["received"] == 30

    def test_a_condition_that_does_not_bind(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(2))
        mapping = experiment(simulator.url, {"answers": generate()})
        lab.run(mapping)
        with pytest.raises(ConfigError, match=r"where: .*tokens.*over the columns of answers"):
            again(lab, mapping, Redo("answers", "tokens > 1"))
        with pytest.raises(ConfigError, match=r"where: not a SQL condition: syntax error"):
            again(lab, mapping, Redo("answers", "row_id > 1) OR (row_id = 0"))
        with pytest.raises(ConfigError, match=r"stage 'answer': .*Did you mean 'answers'"):
            again(lab, mapping, Redo("answer", "true"))
        assert lab.one("SELECT count(*) FROM answers") == 2


class TestGuards:
    def guarded(self, lab: Lab, simulator: Simulator, guards: dict[str, Any], **deployment: Any) -> Any:
        mapping = experiment(simulator.url, {"answers": generate(max_parallel_requests=1)}, guards=guards)
        mapping["deployments"]["d"] |= deployment
        mapping["models"]["m"]["max_retries"] = 0
        return mapping

    def test_a_budget(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(50))
        prices = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.01}
        mapping = self.guarded(lab, simulator, {"max_cost_usd": 0.5}, **prices)
        outcome = lab.run(mapping)
        assert (outcome.status, outcome.exit_code) == ("stopped", 4)
        cost = lab.one("SELECT sum(cost_usd) FROM attempts")
        each = lab.one("SELECT max(cost_usd) FROM attempts")
        assert 0.5 - 2 * each < cost <= 0.5
        assert "guards.max_cost_usd is 0.5" in (outcome.reason or "")
        assert lab.one("SELECT status FROM run") == "stopped"
        sent = totals(simulator)["received"]
        assert lab.run(mapping).status == "stopped"  # earlier sessions count
        assert totals(simulator)["received"] == sent
        assert lab.run(self.guarded(lab, simulator, {}, **prices)).status == "done"
        assert totals(simulator)["received"] == 50

    def test_a_number_of_errors(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(50))
        simulator = start_simulator(faults={"server_error": 1.0})
        outcome = lab.run(self.guarded(lab, simulator, {"max_errors": 1}))
        assert outcome.exit_code == 4
        assert outcome.counts["answers"]["error"] <= 3

    def test_a_share_of_errors(self, lab: Lab, start_simulator: Start) -> None:
        lab.rows(texts(200))
        simulator = start_simulator(filter_marker="came")
        outcome = lab.run(self.guarded(lab, simulator, {"max_error_rate": 0.5}))
        assert outcome.exit_code == 4
        assert 20 <= outcome.counts["answers"]["error"] <= 30

    def test_a_guard_that_is_not_reached(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(30))
        guards = {"max_cost_usd": 100, "max_errors": 5, "max_error_rate": 0.1, "max_duration": "1h"}
        assert lab.run(self.guarded(lab, simulator, guards)).status == "done"

    def test_the_sessions_are_told(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(2))
        lab.run(experiment(simulator.url, {"answers": generate()}))
        lab.run(experiment(simulator.url, {"answers": generate()}))
        assert lab.sql("SELECT session, status, elapsed_s > 0 FROM sessions ORDER BY session") == [
            (1, "done", True),
            (2, "done", True),
        ]
