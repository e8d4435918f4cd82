"""``infermesh show``: a row's story, told from what the run has stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infermesh.simulator import Simulator
from tests.support import Lab, Watch, embed, experiment, generate, here, infermesh, texts, wait_until

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
Start = Callable[..., Simulator]


def shown(lab: Lab, *words: str) -> dict[str, Any]:
    found = here("show", *words, "--json", cwd=lab.root)
    assert found.returncode == 0, found.stderr
    story: dict[str, Any] = json.loads(found.stdout)
    return story


@pytest.fixture
def told(lab: Lab, start_simulator: Start) -> Lab:
    """Row 1 fails in the first stage; the second reads the first; one takes only row 0."""
    lab.rows(texts(3))
    (lab.root / "ask.jinja").write_text("About: {{ text }}")
    stages = {
        "a": generate("ask.jinja", response_format=SCHEMA, params={"temperature": 0.5}),
        "b": embed("{{ a.parsed.topic }} and {{ n }}"),
        "c": generate("Again: {{ text }}", where="n = 0"),
    }
    mapping = experiment(start_simulator(filter_marker="number 1", faults={"rate_limit": 0.3}).url, stages)
    mapping["models"]["m"]["max_retries"] = 20
    lab.run(mapping)
    return lab


def test_the_request_is_the_one_that_was_sent(told: Lab) -> None:
    story = shown(told, "0")
    assert story["columns"] == {"n": 0, "text": "Parcel number 0 came late."}
    a, b, c = (story["stages"][name] for name in "abc")
    assert (a["status"], a["request_as_sent"], a["request_problem"]) == ("done", True, None)
    assert a["request"]["payload"]["messages"] == [{"role": "user", "content": "About: Parcel number 0 came late."}]
    assert a["request"]["payload"]["temperature"] == 0.5
    assert a["outputs"]["parsed"] == json.loads(a["outputs"]["text"])
    assert a["attempts"][-1]["error_type"] is None
    assert all(each["status_code"] == 429 for each in a["attempts"][:-1])
    assert b["request_as_sent"] is True, "rendered from the stored answer of a"
    assert b["request"]["payload"]["input"] == [f"{a['outputs']['parsed']['topic']} and 0"]
    assert c["request_as_sent"] is True


def test_a_row_that_failed_and_what_read_it(told: Lab) -> None:
    text = here("show", "lab", "text=Parcel number 1 came late.", cwd=told.root).stdout
    assert "row 1 of outputs/lab/run (lab, run " in text
    assert "a: error" in text
    assert "as it was sent" in text
    assert "About: Parcel number 1 came late." in text
    assert "attempt 1" in text
    assert "b: skipped" in text
    assert "upstream: a: " in text
    assert "left out by where: n = 0" in text


def test_a_prompt_that_has_changed_since(told: Lab) -> None:
    (told.root / "ask.jinja").write_text("Now: {{ text }}")
    assert shown(told, "2")["stages"]["a"]["request_as_sent"] is False
    assert "has changed since it was sent" in here("show", "2", cwd=told.root).stdout
    (told.root / "ask.jinja").unlink()
    story = shown(told, "2")
    assert "ask.jinja" in story["stages"]["a"]["request_problem"]
    assert story["stages"]["a"]["outputs"]["text"], "what is stored is shown all the same"


def test_the_deployment_that_answered(lab: Lab, start_simulator: Start) -> None:
    """Deployments of one model may have other names for it, and other places."""
    lab.rows(texts(12))
    mapping = experiment(start_simulator().url, {"a": generate()})
    mapping["deployments"]["other"] = {"model": "hosted_vllm/another", "api_base": start_simulator().url}
    mapping["models"]["m"]["deployments"] = ["d", "other"]
    lab.run(mapping)
    for row, label in lab.sql("SELECT row_id, deployment FROM a"):
        request = shown(lab, str(row), "--stage", "a")["stages"]["a"]["request"]
        assert (request["deployment"], request["payload"]["model"]) == (label, "any" if label == "d" else "another")


def test_an_answer_that_was_reused_and_a_row_of_a_sql_stage(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    query = {"kind": "sql", "query": "SELECT 'Sum: ' || text AS words FROM a"}
    mapping = experiment(simulator.url, {"a": generate(), "w": query, "s": generate("{{ words }}", rows="w")})
    del mapping["stages"]["w"]["model"]
    first = lab.folder
    lab.run(mapping)
    lab.folder = first.with_name("second")
    lab.run({**mapping, "reuse": "all"})
    text = here("show", "second", "0", cwd=lab.root).stdout
    assert "reused from  outputs/lab/run (run " in text
    story = shown(lab, "second", "1", "--rows", "w")
    assert list(story["columns"]) == ["words"]
    assert list(story["stages"]) == ["s"]
    assert story["stages"]["s"]["request"]["payload"]["messages"][0]["content"] == story["columns"]["words"]


def test_a_variable_that_is_not_set_hides_the_request_alone(
    lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.rows(texts(1))
    mapping = experiment(simulator.url, {"a": generate(params={"user": "${oc.env:SOMEBODY}"})})
    mapping["deployments"]["d"]["api_key_env"] = "THE_KEY_OF_D"
    lab.run(mapping, environ={"SOMEBODY": "me", "THE_KEY_OF_D": "sk-1"})
    a = shown(lab, "0")["stages"]["a"]
    assert (a["status"], a["request"]) == ("done", None)
    assert "SOMEBODY" in a["request_problem"]
    monkeypatch.setenv("SOMEBODY", "me")
    assert shown(lab, "0")["stages"]["a"]["request_as_sent"] is True, "a key is not needed: nothing is sent"


@pytest.mark.long
def test_a_run_that_goes_on(lab: Lab, start_simulator: Start) -> None:
    simulator = start_simulator(latency_s=0.2)
    lab.rows(texts(20))
    seen: list[str] = []

    def look(stats: Any) -> None:
        if not seen and stats.settled >= 2:
            seen.append(infermesh("show", "outputs/lab/run", "0", "--json", cwd=lab.root).stdout)

    lab.run(experiment(simulator.url, {"a": generate(max_parallel_requests=1)}), watch=Watch(look))
    wait_until(lambda: seen, "a story")
    assert json.loads(seen[0])["stages"]["a"]["request_as_sent"] is True


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nothing"], 2, "such as: infermesh show nothing 0"),
        (["1", "2", "3"], 2, "which row?"),
        (["7"], 1, "source of outputs/lab/run has rows 0 to 2"),
        (["tetx=x"], 1, "Did you mean 'text'?"),
        (["text=x"], 1, "has this value"),
        (["0", "--stage", "aa"], 2, "Did you mean 'a'?"),
        (["0", "--rows", "nope"], 1, "has no rows 'nope'"),
    ],
)
def test_a_row_that_there_is_not(lab: Lab, simulator: Simulator, words: list[str], code: int, said: str) -> None:
    lab.rows(texts(3))
    lab.run(experiment(simulator.url, {"a": generate("{{ 1 / 0 }}")}))
    found = here("show", *words, cwd=lab.root)
    assert (found.returncode, found.stdout) == (code, "")
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_a_line_of_the_source_that_could_not_be_read(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": 0, "text": "One."}, "{broken"])
    lab.run(experiment(simulator.url, {"a": generate()}))
    assert "this line of the source could not be read: " in here("show", "1", cwd=lab.root).stdout
    assert Path(shown(lab, "1")["folder"]).name == "run"
