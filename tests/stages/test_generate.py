"""The generate stage, against a simulated service."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh import ConfigError
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.support import Lab, experiment, generate, here, texts, totals, write_experiment

Start = Callable[..., Simulator]

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"enum": ["parcel", "other"]}, "number": {"type": "integer"}},
    "required": ["topic", "number"],
    "additionalProperties": False,
}
PROMPT = "Classify the message.\n\n<message>\n{{ text }}\n</message>"


def run(lab: Lab, simulator: Simulator, count: int = 2, **stage: Any) -> list[tuple[Any, ...]]:
    lab.rows(texts(count))
    fields = stage if "messages" in stage else {"prompt": PROMPT} | stage
    lab.run(experiment(simulator.url, {"a": {"kind": "generate", **fields}}))
    return lab.sql("SELECT status, text, parsed, finish_reason FROM a ORDER BY row_id")


class TestInput:
    def test_a_prompt_is_the_users_message(self, lab: Lab, simulator: Simulator) -> None:
        assert run(lab, simulator)[1] == ("done", "Parcel number 1 came late.", None, "stop")

    def test_a_system_message_goes_before_it(self, lab: Lab, simulator: Simulator) -> None:
        run(lab, simulator)
        without = lab.one("SELECT sum(prompt_tokens) FROM a")
        run(lab, simulator, system="Be brief, {{ n }}.")
        assert lab.one("SELECT sum(prompt_tokens) FROM a") == without + 2 * 3

    def test_messages_are_sent_as_they_are(self, lab: Lab, simulator: Simulator) -> None:
        conversation = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First question."},
            {"role": "assistant", "content": "First answer."},
            {"role": "user", "content": "The second question counts."},
        ]
        lab.rows([{"n": 0, "chat": conversation}])
        lab.run(experiment(simulator.url, {"a": {"kind": "generate", "messages": "{{ chat }}"}}))
        assert lab.one("SELECT text FROM a") == "The second question counts."
        assert lab.one("SELECT prompt_tokens FROM a") == sum(-(-len(turn["content"]) // 4) for turn in conversation)

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (7, "expected a list of messages, got int"),
            (None, "NoneType"),
            ([], "empty"),
            ([{"content": "x"}], "role"),
            (["x"], "role"),
        ],
    )
    def test_messages_that_are_none_cost_their_row(
        self, lab: Lab, simulator: Simulator, value: Any, words: str
    ) -> None:
        lab.rows([{"n": 0, "chat": [{"role": "user", "content": "Fine."}]}, {"n": 1, "chat": value}])
        lab.run(experiment(simulator.url, {"a": {"kind": "generate", "messages": "{{ chat }}"}}))
        assert lab.statuses("a") == {0: "done", 1: "error"}
        ((kind, error),) = lab.sql("SELECT error_type, error FROM a WHERE row_id = 1")
        assert kind == "input"
        assert words in error

    def test_a_name_that_is_undefined_within_messages_costs_its_row(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([{"n": 0, "more": {"text": "Fine."}}, {"n": 1, "more": {}}])
        messages = "{{ [{'role': 'user', 'content': more.text}] }}"
        lab.run(experiment(simulator.url, {"a": {"kind": "generate", "messages": messages}}))
        assert lab.statuses("a") == {0: "done", 1: "error"}
        assert lab.sql("SELECT error_type, attempts FROM a WHERE row_id = 1") == [("input", 0)]

    @pytest.mark.parametrize(
        "sql", ["DATE '2024-05-01'", "TIMESTAMPTZ '2024-05-01 12:00:00Z'", "1.50::DECIMAL(5,2)", "'a'::BLOB", "uuid()"]
    )
    def test_values_that_json_does_not_know_are_sent_as_text(self, lab: Lab, simulator: Simulator, sql: str) -> None:
        source = {"sql": f"SELECT 0 AS n, {sql} AS v"}
        stages = {"a": generate("Value {{ v }}")}
        assert lab.run(experiment(simulator.url, stages, source=source)).counts == {"a": {"done": 1}}

    def test_wire_parameters_of_model_and_stage(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([{"n": 0, "text": "One two three four five six seven eight nine ten eleven twelve."}])
        mapping = experiment(simulator.url, {"a": generate(), "b": generate(params={"max_tokens": 2})})
        mapping["models"]["m"]["params"] = {"max_tokens": 4}
        lab.run(mapping)
        assert lab.sql("SELECT a_completion_tokens, a_finish_reason, b_completion_tokens FROM results") == [
            (4, "length", 2)
        ]

    @pytest.mark.parametrize("endpoint", ["text_completion", "responses"])
    def test_other_endpoints(self, lab: Lab, simulator: Simulator, endpoint: str) -> None:
        lab.rows(texts(2))
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["models"]["m"]["endpoint"] = endpoint
        lab.run(mapping)
        used = {"text_completion": "completions", "responses": "responses"}[endpoint]
        assert totals(simulator, used)["received"] == 2
        assert lab.one("SELECT count(*) FROM a WHERE status = 'done' AND len(text) > 10") == 2

    def test_reasoning_stands_in_its_own_column(self, lab: Lab, start_simulator: Start) -> None:
        run(lab, start_simulator(reasoning_tokens=12), 1)
        ((text, reasoning, tokens),) = lab.sql("SELECT text, reasoning, completion_tokens FROM a")
        assert text == "Parcel number 0 came late."
        assert reasoning
        assert reasoning not in text
        assert tokens > 12

    def test_tool_calls(self, lab: Lab, simulator: Simulator) -> None:
        function = {
            "name": "locate_parcel",
            "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
        }
        lab.rows([{"n": 0, "text": "Locate parcel number 17."}])
        params = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        lab.run(experiment(simulator.url, {"a": generate(params=params)}))
        ((calls, finish),) = lab.sql("SELECT tool_calls, finish_reason FROM a")
        (call,) = json.loads(calls)
        assert call["name"] == "locate_parcel"
        assert isinstance(json.loads(call["arguments"]), dict)
        assert finish == "tool_calls"


class TestStructured:
    def test_the_answer_is_parsed(self, lab: Lab, simulator: Simulator) -> None:
        for status, text, parsed, _ in run(lab, simulator, response_format=SCHEMA):
            assert status == "done"
            assert json.loads(parsed) == json.loads(text)
            assert json.loads(parsed)["topic"] == "parcel"
        # A JSON column: SQL reaches into it.
        assert lab.sql("SELECT DISTINCT a_parsed->>'topic' FROM results") == [("parcel",)]

    def test_a_schema_file(self, lab: Lab, simulator: Simulator) -> None:
        (lab.root / "schema.json").write_text(json.dumps(SCHEMA))
        assert all(
            json.loads(row[2])["topic"] == "parcel" for row in run(lab, simulator, response_format="schema.json")
        )

    def test_a_pydantic_class_from_the_project(self, lab: Lab, simulator: Simulator) -> None:
        source = """
            from typing import Literal
            from pydantic import BaseModel

            class Answer(BaseModel):
                topic: Literal["parcel", "other"]
                number: int
        """
        (lab.root / "my_lab_schema.py").write_text(textwrap.dedent(source))
        rows = run(lab, simulator, response_format="my_lab_schema:Answer")
        assert all(json.loads(row[2])["topic"] == "parcel" for row in rows)

    def test_a_json_object(self, lab: Lab, simulator: Simulator) -> None:
        for _, _, parsed, _ in run(lab, simulator, response_format={"type": "json_object"}):
            assert isinstance(json.loads(parsed), dict)

    def test_an_answer_that_does_not_satisfy_the_schema_is_done_without_parsed(
        self, lab: Lab, start_simulator: Start
    ) -> None:
        simulator = start_simulator(faults={"invalid_json_content": 1.0})
        for status, text, parsed, _ in run(lab, simulator, response_format=SCHEMA):
            assert (status, parsed) == ("done", None)
            assert text
        assert totals(simulator)["received"] == 2
        for reason in lab.sql("SELECT invalid FROM a"):
            assert str(reason).startswith("('the answer ")

    def test_an_answer_that_satisfies_it_has_no_reason(self, lab: Lab, simulator: Simulator) -> None:
        run(lab, simulator, response_format=SCHEMA)
        assert lab.one("SELECT count(invalid) FROM a") == 0

    def test_how_many_do_not_is_told_with_what_to_do(self, tmp_path: Path, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"invalid_json_content": 1.0})
        Lab(tmp_path).rows(texts(3))
        write_experiment(tmp_path, experiment(simulator.url, {"a": generate(PROMPT, response_format=SCHEMA)}))
        done = here("run", "+experiment=mine", "hydra.run.dir=outputs/x", cwd=tmp_path)
        assert done.returncode == 0
        assert "  invalid   3 × a: answers without 'parsed': the answer " in done.stderr
        assert "infermesh retry outputs/x --stage a --where 'invalid is not null'" in done.stderr
        assert "  invalid: 3 × a: answers without 'parsed': the answer " in here("status", cwd=tmp_path).stdout
        again = here("retry", "outputs/x", "--stage", "a", "--where", "invalid is not null", "--dry-run", cwd=tmp_path)
        assert "3 rows of a" in again.stderr

    def test_it_may_be_an_error(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"invalid_json_content": 1.0})
        for status, text, parsed, _ in run(lab, simulator, response_format=SCHEMA, on_invalid="error"):
            assert (status, text, parsed) == ("error", None, None)
        ((kind, reason, attempts, tokens),) = lab.sql(
            "SELECT DISTINCT error_type, error, attempts, (SELECT min(completion_tokens) FROM attempts) > 0 FROM a"
        )
        assert (kind, attempts, tokens) == ("invalid_answer", 1, True)
        assert reason.startswith("the answer ")
        assert totals(simulator)["received"] == 2

    def test_a_run_made_before_there_were_reasons_goes_on(self, lab: Lab, simulator: Simulator) -> None:
        run(lab, simulator, response_format=SCHEMA)
        with duckdb.connect(str(lab.folder / DATABASE)) as connection:
            for view in ("results", "progress"):
                connection.execute(f"DROP VIEW {view}")
            connection.execute("ALTER TABLE a DROP COLUMN invalid")
        old, lab.folder = lab.folder, lab.folder.with_name("new")
        mapping = experiment(simulator.url, {"a": generate(PROMPT, response_format=SCHEMA)}, reuse=str(old))
        assert lab.run(mapping).reused == 2
        lab.folder = old
        assert lab.run(mapping | {"reuse": "none"}).totals["requests"] == 2
        assert lab.sql("SELECT invalid, status FROM a") == [(None, "done")] * 2

    def test_asking_again_mends_it(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"invalid_json_content": 0.6}, seed=1)
        rows = run(lab, simulator, 12, response_format=SCHEMA, on_invalid="retry")
        asked = totals(simulator)["received"]
        mended = sum(row[2] is not None for row in rows)
        assert asked > 12
        assert 6 <= mended <= 12
        # Each row is asked at most three times, and as often as its answers were no JSON.
        assert lab.one("SELECT max(attempts) FROM a") <= 3
        assert lab.one("SELECT sum(attempts) FROM a") == asked
        assert lab.one("SELECT count(*) FROM a WHERE attempts < 3 AND parsed IS NULL") == 0

    def test_later_stages_read_into_parsed(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(2))
        stages = {"a": generate(PROMPT, response_format=SCHEMA), "b": generate("The topic is {{ a.parsed.topic }}.")}
        lab.run(experiment(simulator.url, stages))
        assert lab.sql("SELECT DISTINCT b_text FROM results") == [("The topic is parcel.",)]

    def test_later_stages_of_an_answer_without_parsed_fail_for_that_row(self, lab: Lab, start_simulator: Start) -> None:
        simulator = start_simulator(faults={"invalid_json_content": 1.0})
        lab.rows(texts(2))
        stages = {"a": generate(PROMPT, response_format=SCHEMA), "b": generate("The topic is {{ a.parsed.topic }}.")}
        outcome = lab.run(experiment(simulator.url, stages))
        assert outcome.counts == {"a": {"done": 2}, "b": {"error": 2}}
        assert lab.sql("SELECT DISTINCT error_type FROM b") == [("input",)]


def test_rows_as_they_are_need_a_column_to_send(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"id": 1, "Prompt": "Hello."}])
    with pytest.raises(ConfigError, match=r"stages\.a\.prompt: the source has no column prompt, .*Prompt") as error:
        lab.run(experiment(simulator.url, {"a": {"kind": "generate", "mapper": "row"}}))
    assert "'{{ Prompt }}'" in str(error.value)
    assert totals(simulator)["received"] == 0
