"""What a run and a plan say of a job before the first row is sent, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError
from infermesh.plan import make_plan
from infermesh.simulator import Simulator
from tests.support import Lab, Watch, embed, experiment, generate, here, texts, totals, transcribe, write_experiment

HABIT = (
    "stages.a.prompt: {text} is sent as it stands, and all rows get the same request. The column is written {{ text }}"
)


def said_by_plan(lab: Lab, mapping: dict[str, Any], **environ: str) -> list[str]:
    return make_plan(declare(mapping, [lab.root], environ=environ), lab.folder, environ=environ).notes


def test_a_run_and_a_plan_say_the_same(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    mapping = experiment(
        simulator.url,
        {"a": generate("Say {text}", params={"temprature": 1})},
        limits={"team": {"rpm": 60}},
        guards={"max_cost_usd": 1},
    )
    planned, watch = said_by_plan(lab, mapping), Watch()
    lab.run(mapping, watch=watch)
    assert len(planned) == 4
    assert HABIT in planned
    assert any(line.startswith("guards.max_cost_usd: no price is known for d: it stops nothing") for line in planned)
    start = watch.notes.index(planned[0])
    assert watch.notes[start : start + 4] == planned


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        (
            {"kind": "generate", "messages": [{"role": "user", "content": "Say something."}]},
            "stages.a.messages: names no column",
        ),
        (generate("{{ n }}: {text}"), "stages.a.prompt: {text} is sent as it stands. The column is written {{ text }}"),
        (generate("Say something."), "stages.a.prompt: names no column, so all rows get the same request."),
        (generate("prompts/none.prompt"), "stages.a.prompt: prompts/none.prompt is sent for every row as it stands"),
        (
            embed("$text"),
            "stages.a.text: names no column, so all rows get the same request. A column is written {{ text }}",
        ),
        (
            {"kind": "generate", "messages": '[{"role": "user", "content": "Say {text}"}]'},
            HABIT.replace("prompt", "messages"),
        ),
    ],
)
def test_a_prompt_that_names_no_column(lab: Lab, stage: dict[str, Any], line: str) -> None:
    lab.rows(texts(2))
    (note,) = said_by_plan(lab, experiment("http://127.0.0.1:9/v1", {"a": stage}))
    assert note.startswith(line)


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ row['text'] }}",
        'As JSON, {"text": "…"}: {{ text }}',
        "{% if n %}yes{% endif %}",
        "{{ text }} {{ '{n}' }}"[:10],
    ],
)
def test_a_prompt_that_reads_its_row(lab: Lab, prompt: str) -> None:
    lab.rows(texts(2))
    assert said_by_plan(lab, experiment("http://127.0.0.1:9/v1", {"a": generate(prompt)})) == []


def test_a_system_message_alone_may_be_the_same_for_all(lab: Lab) -> None:
    lab.rows(texts(2))
    stage = generate(system="Be short.")
    assert said_by_plan(lab, experiment("http://127.0.0.1:9/v1", {"a": stage})) == []


@pytest.mark.parametrize("written", ["v1.prompt", "v1.jinja\n"])
def test_the_name_of_a_file_is_not_sent_as_a_prompt(lab: Lab, written: str) -> None:
    lab.rows(texts(2))
    (lab.root / written.strip()).write_text("Say {{ text }}")
    with pytest.raises(ConfigError, match=r"stages\.a\.prompt: v1\.\w+ is a file, but would be sent as a text"):
        said_by_plan(lab, experiment("http://127.0.0.1:9/v1", {"a": generate(written)}))


def test_a_budget_counts_where_the_price_is_known(lab: Lab) -> None:
    lab.rows(texts(1))
    entries: dict[str, dict[str, Any]] = {
        "d": {"model": "openai/gpt-4.1-mini", "api_base": "http://127.0.0.1:9/v1"},
        "e": {"model": "hosted_vllm/own", "api_base": "http://127.0.0.1:9/v1"},
    }
    models = {"m": {"deployments": ["d", "e"]}}
    mapping = experiment("", {"a": generate()}, deployments=entries, models=models, guards={"max_cost_usd": 1})
    (note,) = said_by_plan(lab, mapping)
    assert note.startswith("guards.max_cost_usd: no price is known for e: what they cost does not count")
    entries["e"] |= {"input_cost_per_token": 0, "output_cost_per_token": 0}
    assert said_by_plan(lab, mapping) == []


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (generate(params={"n": 3}), "stages.a.params: stream and n > 1 are not supported"),
        (generate(params={"stream": True}), "stages.a.params: stream and n > 1 are not supported"),
        (generate(params={"extra_body": {"n": 2}}), "stages.a.params: stream and n > 1 are not supported"),
        (generate(params={"extra_body": {"model": "x"}}), "stages.a.params: 'model' is among"),
        (generate(params={"extra_body": "x"}), "extra_body: expected a mapping"),
        (generate(params={"messages": []}), "stages.a.params.messages: it would stand in place of"),
        (embed(params={"input": "x"}), "stages.a.params.input: it would stand in place of"),
        (embed(params={"n": 2}), "stages.a.params: stream and n > 1 are not supported"),
        (transcribe("{{ text }}", params={"stream": True}), "stages.a.params: stream and n > 1 are not supported"),
    ],
)
def test_parameters_that_fail_every_row_are_refused(lab: Lab, stage: dict[str, Any], words: str) -> None:
    lab.rows(texts(2))
    mapping = experiment("http://127.0.0.1:9/v1", {"a": stage})
    for attempt in (lambda: said_by_plan(lab, mapping), lambda: lab.run(mapping)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert words in str(caught.value)
    assert not lab.folder.exists()


def test_a_missing_key_is_told_by_a_plan_and_refused_by_a_run(lab: Lab) -> None:
    lab.rows(texts(2))
    deployments = {
        "d": {"model": "openai/gpt-4.1-mini"},
        "spare": {"model": "groq/llama"},  # nobody sends to it
    }
    models = {"m": {"deployments": ["d"]}, "other": {"deployments": ["spare"]}}
    mapping = experiment("", {"a": generate()}, deployments=deployments, models=models)
    line = "deployments.d: no key for openai/gpt-4.1-mini: the environment variable OPENAI_API_KEY is not set."
    (note,) = said_by_plan(lab, mapping)
    assert note.startswith(line)
    with pytest.raises(ConfigError) as caught:
        lab.run(mapping, environ={})
    assert str(caught.value).startswith(line)
    assert not lab.folder.exists()
    assert said_by_plan(lab, mapping, OPENAI_API_KEY="sk-1") == []


@pytest.mark.parametrize(
    ("model", "environ", "missing"),
    [
        ("anthropic/claude-x", {}, "ANTHROPIC_API_KEY"),
        ("anthropic/claude-x", {"ANTHROPIC_AUTH_TOKEN": "t"}, None),
        ("gemini/gemini-x", {}, "GEMINI_API_KEY"),
        ("gemini/gemini-x", {"GOOGLE_API_KEY": "k"}, None),
        ("xai/grok-x", {}, "XAI_API_KEY"),
        ("vertex_ai/gemini-x", {}, None),  # other ways to log in
        ("bedrock/x", {}, None),
    ],
)
def test_the_keys_of_providers_that_litellm_translates_for(
    lab: Lab, model: str, environ: dict[str, str], missing: str | None
) -> None:
    lab.rows(texts(1))
    mapping = experiment("", {"a": generate()}, deployments={"d": {"model": model}})
    notes = said_by_plan(lab, mapping, **environ)
    assert [note for note in notes if f"variable {missing} is not set" in note] == notes
    assert bool(notes) == (missing is not None)


@pytest.mark.parametrize("named", [True, False])
def test_another_experiment_is_not_put_onto_a_run(tmp_path: Path, simulator: Simulator, named: bool) -> None:
    Lab(tmp_path).rows(texts(2))
    for name in ("first", "second"):
        write_experiment(tmp_path, experiment(simulator.url, {"a": generate()}), name)
        file = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        file.write_text(file.read_text().replace(f'"name": "{name}"', f'"name": "{name if named else "unnamed"}"'))
    folder = "hydra.run.dir=outputs/mine"
    assert here("run", "+experiment=first", folder, cwd=tmp_path).returncode == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "outputs/mine/.hydra").iterdir()}
    asked = totals(simulator)["received"]
    for command in ("plan", "run"):
        done = here(command, "+experiment=second", folder, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.endswith(
            "error: outputs/mine holds the run of another experiment: 'first', and this one is 'second'. Name another "
            "folder (hydra.run.dir=FOLDER), or go on with the run that is there: infermesh resume outputs/mine\n"
        )
    assert {path: path.read_bytes() for path in (tmp_path / "outputs/mine/.hydra").iterdir()} == kept
    assert totals(simulator)["received"] == asked
    assert here("run", "+experiment=first", folder, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("openai/gpt-4.1-mni", "openai/gpt-4.1-mini"),
        ("gpt-4.1-mni", "gpt-4.1-mini"),
        ("anthropic/claude-sonet-4-5", "anthropic/claude-sonnet-4-5"),
        ("mistral/mistral-smal-latest", "mistral/mistral-small-latest"),
        ("openai/gpt-4.1-mini-2025-04-14", None),  # a dated name of a model that is known
        ("openai/gpt-4.2-mini", None),  # may be newer than the list
        ("openai/ft:gpt-4.1-mni:me::1", None),  # one's own
        ("azure/gpt-4.1-mni", None),  # a name that its owner has given
        ("hosted_vllm/gpt-4.1-mni", None),
    ],
)
def test_a_model_that_is_probably_misspelt(lab: Lab, model: str, near: str | None) -> None:
    lab.rows(texts(1))
    mapping = experiment("", {"a": generate()}, deployments={"d": {"model": model}})
    if model.startswith("hosted"):
        mapping["deployments"]["d"]["api_base"] = "http://127.0.0.1:9/v1"
    keys = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "MISTRAL_API_KEY": "k", "AZURE_API_KEY": "k"}
    line = f"deployments.d: {model} is not known to the price list: did you mean {near}?"
    assert [said for said in said_by_plan(lab, mapping, **keys) if "price list" in said] == ([line] if near else [])


class TestAConditionThatLeavesOutEveryRow:
    """Nothing is sent then, and nothing fails: it has to be said."""

    def test_of_the_rows_themselves(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows([*texts(1200), "{"])
        mapping = experiment(simulator.url, {"a": generate(where="text like '%refund%'"), "b": generate(where="n < 3")})
        line = "a: where leaves out all 1,200 rows"
        assert [note for note in said_by_plan(lab, mapping) if "leaves out" in note] == [line]
        watch = Watch()
        assert lab.run(mapping, watch=watch).status == "failed_rows"  # the malformed line
        assert [note for note in watch.notes if "leaves out" in note] == [line]
        assert not [note for note in said_by_plan(lab, mapping) if "leaves out" in note]  # nothing is left to do

    def test_of_answers(self, lab: Lab, simulator: Simulator) -> None:
        lab.rows(texts(1))
        mapping = experiment(simulator.url, {"a": generate(), "b": generate("{{ a.text }}", where="a.text = 'no'")})
        watch = Watch()
        lab.run(mapping, watch=watch)
        assert "b: where leaves out the only row" in watch.notes

    def test_rows_that_are_skipped_for_another_reason_are_not_meant(self, lab: Lab, start_simulator: Any) -> None:
        lab.rows(texts(2))
        service = start_simulator(faults={"server_error": 1.0})
        mapping = experiment(service.url, {"a": generate(), "b": generate("{{ a.text }}", where="n >= 0")})
        watch = Watch()
        lab.run(mapping, watch=watch)
        assert lab.statuses("b") == {0: "skipped", 1: "skipped"}
        assert not [note for note in watch.notes if "leaves out" in note]
