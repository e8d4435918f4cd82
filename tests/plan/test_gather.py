"""The facts of a plan, from declarations, sources and earlier runs. The simulator's counts are the witness."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from infermesh.config.declaration import declare
from infermesh.errors import ConfigError, StoreError
from infermesh.plan import Options, Plan, StageEstimate, make_plan
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.support import Lab, embed, experiment, generate, texts, totals, transcribe, wav

TWO = {"a": generate(max_parallel_requests=8), "b": generate("{{ a.text }} Once more.", max_parallel_requests=8)}


def plan(lab: Lab, mapping: dict[str, Any], **options: Any) -> Plan:
    return make_plan(declare(mapping, [lab.root]), lab.folder, options=Options(**options), environ={})


def stages(found: Plan) -> dict[str, StageEstimate]:
    return {stage.facts.name: stage for stage in found.estimate.stages}


def rows(found: Plan) -> dict[str, tuple[int | None, str]]:
    return {name: (stage.facts.rows, stage.facts.certainty) for name, stage in stages(found).items()}


def embedded(stages: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return experiment("simulator", stages, **sections)


def test_nothing_is_sent_and_nothing_is_written(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(10))
    before = sorted(lab.root.rglob("*"))
    found = plan(lab, experiment(simulator.url, TWO), show=2)
    assert totals(simulator)["received"] == 0
    assert sorted(lab.root.rglob("*")) == before
    assert rows(found) == {"a": (10, "exact"), "b": (10, "exact")}
    assert [sent.payload["messages"][0]["content"] for sent in found.requests["a"]] == [
        "Parcel number 0 came late.",
        "Parcel number 1 came late.",
    ]
    assert found.requests["a"][0].url == f"{simulator.url}/chat/completions"
    assert found.requests["a"][0].payload["model"] == "any"


def test_a_key_is_not_shown(lab: Lab) -> None:
    lab.rows(texts(1))
    entry = {"model": "openai/gpt-4.1-mini", "api_base": "http://127.0.0.1:9/v1?code=hush", "api_key_env": "TEAM_KEY"}
    mapping = experiment("", {"a": generate()}, deployments={"d": entry})
    found = make_plan(
        declare(mapping, [lab.root]),
        lab.folder,
        options=Options(show=1),
        environ={"TEAM_KEY": "a-very-secret-key"},
    )
    assert "secret" not in str(found)
    assert "hush" not in str(found)
    with pytest.raises(ConfigError, match="TEAM_KEY"):
        plan(lab, mapping)


def test_rows_that_will_not_be_sent_do_not_count(lab: Lab, simulator: Simulator) -> None:
    lab.rows([*texts(20, kind="x"), *texts(10, kind="y"), "{not json"])
    two = {"a": generate(where="kind = 'x' and n >= 5"), "b": generate("{{ a.text }}", where="a.text is not null")}
    found = plan(lab, experiment(simulator.url, two))
    assert rows(found) == {"a": (15, "exact"), "b": (30, "at most")}
    found = plan(lab, embedded(two))  # its answers are known
    assert rows(found) == {"a": (15, "exact"), "b": (15, "exact")}


def test_a_condition_that_fails_for_some_rows(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": n, "text": str(n) if n % 2 else "none"} for n in range(20)])
    found = plan(lab, experiment(simulator.url, {"a": generate(where="text::int > 10")}))
    assert rows(found) == {"a": (5, "exact")}


def test_rows_without_a_request_are_told(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"audio": "a.wav" if n % 2 else "gone.wav"} for n in range(10)])
    (lab.root / "a.wav").write_bytes(wav("Seven words are heard in this clip."))
    found = plan(lab, embedded({"a": transcribe(), "b": embed("{{ a.text }}", micro_batch_size=2)}))
    assert rows(found) == {"a": (5, "exact"), "b": (5, "exact")}
    problem = stages(found)["a"].facts.problem
    assert problem is not None
    assert "5 of 10 sample rows will not be sent: stages.a.audio: no audio file 'gone.wav'" in problem
    assert stages(found)["b"].facts.prompt_tokens == pytest.approx(9)


def test_a_sample_stands_for_the_rest(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": n, "text": "word " * (n // 10)} for n in range(3000)])
    found = stages(plan(lab, experiment(simulator.url, {"a": generate()}), sample=50))["a"]
    assert (found.facts.rows, found.facts.certainty) == (3000, "exact")
    whole = sum(5 * (n // 10) / 4 + 4 for n in range(3000))
    assert found.prompt_tokens == pytest.approx(whole, rel=0.03)


def test_what_a_run_has_left(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(30))
    mapping = experiment(simulator.url, TWO)
    lab.run(mapping | {"source": {"path": "rows.jsonl", "limit": 10}})
    simulator.reset()
    content = (lab.folder / DATABASE).read_bytes()
    found = plan(lab, mapping)
    assert found.folder == lab.folder
    assert rows(found) == {"a": (20, "exact"), "b": (20, "exact")}
    assert totals(simulator)["received"] == 0
    assert (lab.folder / DATABASE).read_bytes() == content
    lab.run(mapping)
    assert totals(simulator)["received"] == 40
    found = plan(lab, mapping)
    assert rows(found) == {"a": (0, "exact"), "b": (0, "exact")}
    assert found.estimate.wall_s == 0


def test_what_an_edit_touches(lab: Lab, simulator: Simulator) -> None:
    """Each changed stage's requests are compared with the stored ones, as a run would."""
    lab.rows(texts(30))
    lab.run(experiment(simulator.url, TWO))
    simulator.reset()
    edited = experiment(simulator.url, {**TWO, "a": generate("{{ text }}{% if n < 12 %} Really.{% endif %}")})
    found = plan(lab, edited)
    assert rows(found) == {"a": (12, "exact"), "b": (12, "estimated")}
    lab.run(edited)
    assert 12 < totals(simulator)["received"] <= 24  # some of the new answers may be the old ones


def test_an_edit_is_estimated_from_a_sample(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(200))
    lab.run(experiment(simulator.url, {"a": generate()}))
    edited = experiment(simulator.url, {"a": generate("{{ text }}{% if n % 2 %} Really.{% endif %}")})
    count, certainty = rows(plan(lab, edited, sample=40))["a"]
    assert certainty == "estimated"
    assert count == pytest.approx(100, abs=30)


def test_failed_rows_are_tried_again_unless_they_are_kept(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": n, "text": None if n < 3 else "here"} for n in range(10)])
    prompt = "{{ text.upper() }}"
    mapping = experiment(simulator.url, {"a": generate(prompt)})
    lab.run(mapping)
    fixed = experiment(simulator.url, {"a": generate("{{ (text or 'nothing').upper() }}")})
    assert rows(plan(lab, fixed)) == {"a": (3, "exact")}
    found = plan(lab, mapping | {"keep_errors": True})
    assert rows(found) == {"a": (0, "exact")}


def test_a_template_that_stand_ins_do_not_satisfy(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(10))
    chain = {"a": generate(), "b": generate("{{ a.text['verdict'].upper() }}"), "c": generate("{{ b.text }}")}
    found = plan(lab, experiment(simulator.url, chain))
    assert rows(found)["b"] == (10, "estimated")
    for name in ("b", "c"):
        facts = stages(found)[name].facts
        assert facts.problem is not None
        assert "10 of 10 sample rows cannot be rendered on stand-ins" in facts.problem
        assert facts.prompt_tokens is None


def test_stand_ins_have_the_expected_length(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(5))
    chain = {"a": generate(), "b": generate("{{ a.text }}")}
    found = stages(plan(lab, experiment(simulator.url, chain), output_tokens=500))
    assert found["b"].facts.prompt_tokens == pytest.approx(504, abs=3)
    assert found["a"].completion_tokens == 2500


@pytest.mark.parametrize(
    ("params", "options", "tokens", "source"),
    [
        ({}, {}, 256, "assumed"),
        ({"max_tokens": 30}, {}, 30, "max_tokens"),
        ({"max_tokens": 4000}, {}, 256, "assumed"),
        ({"max_tokens": 30}, {"output_tokens": 500}, 30, "max_tokens"),
        ({}, {"output_tokens": 12}, 12, "--output-tokens"),
    ],
)
def test_an_answer_in_a_prompt_is_no_longer_than_it_may_be(
    lab: Lab, simulator: Simulator, params: dict[str, Any], options: dict[str, Any], tokens: int, source: str
) -> None:
    lab.rows(texts(5))
    chain = {"a": generate(params=params), "b": generate("{{ a.text }}"), "c": generate()}
    found = stages(plan(lab, experiment(simulator.url, chain), **options))
    assert found["b"].facts.prompt_tokens == pytest.approx(tokens + 4, abs=4)
    said = f"in its prompts an answer of a counts as {tokens} tokens ({source})"
    assert {name: each.facts.note for name, each in found.items()} == {"a": None, "b": said, "c": None}


def test_an_answer_in_a_prompt_is_as_long_as_it_was(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(5))
    chain = {"a": generate(), "b": generate("{{ a.text }}")}
    lab.run(experiment(simulator.url, chain))
    lab.folder = lab.folder.with_name("next")
    chain["b"]["prompt"] = "Once more: {{ a.text }}"
    found = stages(plan(lab, experiment(simulator.url, chain)))
    assert found["a"].facts.note is None
    assert "measured in" in str(found["b"].facts.note)


def test_stand_ins_satisfy_the_schema(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(5))
    schema = {"type": "object", "properties": {"topic": {"enum": ["late"]}}, "required": ["topic"]}
    chain = {"a": generate(response_format=schema), "b": generate("About {{ a.parsed.topic }}")}
    found = plan(lab, experiment(simulator.url, chain), show=1)
    assert found.requests["b"][0].payload["messages"][0]["content"] == "About late"


@pytest.mark.parametrize(
    ("params", "options", "tokens", "source"),
    [
        ({}, {}, 256, "assumed 256"),
        ({"max_tokens": 40}, {}, 40, "at most max_tokens"),
        ({"max_tokens": 40}, {"output_tokens": 7}, 7, "--output-tokens"),
    ],
)
def test_the_length_of_unseen_answers(
    lab: Lab, simulator: Simulator, params: dict[str, Any], options: dict[str, Any], tokens: int, source: str
) -> None:
    lab.rows(texts(4))
    found = stages(plan(lab, experiment(simulator.url, {"a": generate(params=params)}), **options))["a"]
    assert found.facts.completion_tokens == tokens
    assert source in found.facts.tokens_source


def test_an_earlier_run_is_the_evidence(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(20))
    mapping = experiment(simulator.url, {"a": generate()})
    assert stages(plan(lab, mapping))["a"].facts.latency is None
    lab.run(mapping)
    counted = lab.sql("SELECT avg(service_s), sum(prompt_tokens), sum(completion_tokens) FROM attempts")[0]
    lab.folder = lab.folder.with_name("next")
    found = stages(plan(lab, mapping))["a"]
    assert found.facts.latency is not None
    assert found.facts.latency.mean_s == pytest.approx(counted[0])
    assert (found.prompt_tokens, found.completion_tokens) == pytest.approx(counted[1:])
    assert found.facts.tokens_source.startswith("measured in ")
    edited = stages(plan(lab, experiment(simulator.url, {"a": generate("{{ text }}" * 10)})))["a"]
    assert edited.prompt_tokens == pytest.approx(10 * (counted[1]), rel=0.3)
    assert edited.completion_tokens == pytest.approx(counted[2])
    given = stages(plan(lab, mapping, latency_s=3.0))["a"].facts.latency
    assert given is not None
    assert given.mean_s == 3.0
    other = stages(plan(lab, mapping | {"name": "other"}))["a"]
    assert other.facts.latency is None


def test_what_was_measured_of_another_model_is_no_evidence(lab: Lab, simulator: Simulator) -> None:
    """Nor what the simulator answered for one that is real now."""
    lab.rows(texts(20))
    real = experiment(simulator.url, {"a": generate()})
    lab.run(embedded({"a": generate()}) | {"name": real["name"]})
    lab.folder = lab.folder.with_name("next")
    assert stages(plan(lab, real))["a"].facts.latency is None
    lab.run(real)
    lab.folder = lab.folder.with_name("third")
    assert stages(plan(lab, real))["a"].facts.latency is not None
    real["deployments"]["d"]["model"] = "hosted_vllm/other"
    assert stages(plan(lab, real))["a"].facts.latency is None


def test_the_simulators_settings(lab: Lab) -> None:
    lab.rows(texts(10))
    settings = {"latency_s": 0.5, "tokens_per_second": 10, "embedding_latency_factor": 0.1}
    found = stages(plan(lab, embedded({"a": generate(), "b": embed("{{ a.text }}")}, simulator=settings)))
    latency, vectors = found["a"].facts.latency, found["b"].facts.latency
    assert latency is not None
    assert vectors is not None
    answer = found["a"].facts.completion_tokens
    assert answer is not None
    assert latency.mean_s == pytest.approx(0.5 + answer / 10, abs=0.01)
    assert vectors.mean_s == pytest.approx(0.05, abs=0.01)


def test_prices(lab: Lab) -> None:
    lab.rows(texts(10))
    own = {"model": "hosted_vllm/any", "api_base": "http://127.0.0.1:9/v1"}
    priced = own | {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}
    one = {"a": generate(params={"max_tokens": 10})}
    found = stages(plan(lab, experiment("", one, deployments={"d": priced})))["a"]
    assert found.prompt_tokens is not None
    assert found.cost_usd == pytest.approx(found.prompt_tokens * 0.001 + 1.0)
    assert stages(plan(lab, experiment("", one, deployments={"d": own})))["a"].cost_usd is None


def test_what_today_has_used_counts(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(30))
    mapping = experiment(simulator.url, {"a": generate()})
    mapping["deployments"]["d"]["limits"] = {"rpd": 25}
    assert plan(lab, mapping).estimate.days == 2
    lab.run(mapping | {"source": {"path": "rows.jsonl", "limit": 10}})
    lab.folder = lab.folder.with_name("next")
    found = plan(lab, mapping)
    assert found.quotas["deployment d"].used_requests == 10
    assert found.estimate.days == 2
    assert plan(lab, mapping | {"source": {"path": "rows.jsonl", "limit": 15}}).estimate.days is None


def test_many_clips_are_not_all_read(lab: Lab) -> None:
    lab.rows([{"audio": f"{n}.wav"} for n in range(50)])
    for n in range(50):
        (lab.root / f"{n}.wav").write_bytes(wav("Heard."))
    found = plan(lab, embedded({"a": transcribe(), "b": embed("{{ a.text }}")}), show=100)
    assert rows(found) == {"a": (50, "exact"), "b": (50, "exact")}
    assert len(found.requests["a"]) <= 25


def test_a_wrong_declaration_is_told_as_a_run_tells_it(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(1))
    mapping = experiment(simulator.url, {"a": generate("{{ txet }}")})
    with pytest.raises(ConfigError) as planned:
        plan(lab, mapping)
    with pytest.raises(ConfigError) as run:
        lab.run(mapping)
    assert str(planned.value) == str(run.value)


def test_an_empty_source(lab: Lab, simulator: Simulator) -> None:
    lab.rows([])
    assert rows(plan(lab, experiment(simulator.url, TWO))) == {"a": (0, "exact"), "b": (0, "exact")}


def test_a_run_that_another_process_is_at(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(3))
    mapping = experiment(simulator.url, {"a": generate()})
    lab.run(mapping)
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(lab.folder / DATABASE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline()
        with pytest.raises(StoreError, match="in use"):
            plan(lab, mapping)
        process.stdin.close()
