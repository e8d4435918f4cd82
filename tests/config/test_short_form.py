"""The short form: models and stages that say themselves who serves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.compose import compose
from infermesh.config.declaration import Declaration, declare
from infermesh.errors import ConfigError
from infermesh.runs.assemble import NOWHERE, assembled
from infermesh.simulator import Simulator
from tests.support import Lab, ask, here, run_folders, texts, write_experiment

GPU = "hosted_vllm/llama"
HOSTS = ["http://host1:8000/v1", "http://host2:8000/v1"]


def declaration(
    models: Mapping[str, Any], model: str = "m", environ: Mapping[str, str] | None = None, **sections: Any
) -> Declaration:
    stage = {"kind": "generate", "model": model, "prompt": "{{ text }}"}
    mapping = {"name": "x", "source": {"path": "rows.jsonl"}, "models": models, "stages": {"a": stage}, **sections}
    return declare(mapping, [Path.cwd()], environ=environ or {})


def signature(job: Declaration, environ: Mapping[str, str] | None = None) -> str:
    with assembled(job, environ or {}, simulator_url=NOWHERE) as (_, pipeline):
        return pipeline.signatures["a"]


def problem(models: Mapping[str, Any], model: str = "m", **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        signature(declaration(models, model, **sections))
    return str(caught.value)


class TestLongForm:
    def test_what_has_no_short_form_is_left_as_it_is(self) -> None:
        job = declaration({"m": {"deployments": ["d"]}}, deployments={"d": {"model": GPU, "api_base": HOSTS[0]}})
        assert job.mapping["deployments"] == {"d": {"model": GPU, "api_base": HOSTS[0]}}
        assert job.mapping["models"] == {"m": {"deployments": ["d"]}}

    def test_a_models_own_server_is_a_deployment_of_its_name(self) -> None:
        job = declaration({"m": {"model": GPU, "api_base": HOSTS[0], "weight": 2, "params": {"seed": 1}}})
        assert job.mapping["deployments"] == {"m": {"model": GPU, "api_base": HOSTS[0], "weight": 2}}
        assert job.mapping["models"] == {"m": {"deployments": ["m"], "params": {"seed": 1}}}

    def test_each_server_of_a_list_is_a_replica_that_has_its_hosts_name(self) -> None:
        job = declaration({"m": {"model": GPU, "api_base": HOSTS, "max_parallel_requests": 8}})
        assert job.experiment.models["m"].deployments == ["host1:8000", "host2:8000"]
        assert [each.api_base for each in job.experiment.deployments.values()] == HOSTS
        assert {each.max_parallel_requests for each in job.experiment.deployments.values()} == {8}

    @pytest.mark.parametrize(
        "bases", [["http://gate/a/v1", "http://gate/b/v1"], ["simulator", "simulator"], ["${oc.env:A}", "${oc.env:B}"]]
    )
    def test_servers_whose_hosts_do_not_tell_them_apart_are_numbered(self, bases: list[str]) -> None:
        job = declaration({"m": {"model": GPU, "api_base": bases}}, environ={"A": HOSTS[0], "B": HOSTS[1]})
        assert list(job.experiment.deployments) == ["m-0", "m-1"]

    def test_two_models_on_the_same_hosts(self) -> None:
        own = {"model": GPU, "api_base": HOSTS}
        job = declaration({"m": own, "other": own})
        assert list(job.experiment.deployments) == ["host1:8000", "host2:8000", "other-0", "other-1"]

    def test_replicas_share_the_limits_that_their_model_says(self) -> None:
        job = declaration({"m": {"model": GPU, "api_base": HOSTS, "limits": {"rpm": 60}}})
        assert job.experiment.members_of("m") == ["host1:8000", "host2:8000"]
        assert job.experiment.limits["m"].rpm == 60

    def test_a_stage_names_what_a_provider_serves(self) -> None:
        job = declaration({}, "openai/gpt-4.1-mini")
        assert job.experiment.deployments["openai/gpt-4.1-mini"].model == "openai/gpt-4.1-mini"
        assert job.experiment.models["openai/gpt-4.1-mini"].deployments == ["openai/gpt-4.1-mini"]

    def test_a_models_name_may_have_a_slash(self) -> None:
        job = declaration({"meta/llama": {"model": GPU, "api_base": HOSTS[0]}}, "meta/llama")
        assert list(job.experiment.models) == ["meta/llama"]

    @pytest.mark.parametrize(("value", "served"), [("openai/gpt-4.1-mini", "openai/gpt-4.1-mini"), ("m", GPU)])
    def test_a_variable_says_the_stages_model(self, value: str, served: str) -> None:
        job = declaration({"m": {"model": GPU, "api_base": HOSTS[0]}}, "${oc.env:M}", {"M": value})
        stage: Any = job.experiment.stages["a"]
        (label,) = job.experiment.models[stage.model].deployments
        assert job.experiment.deployments[label].model == served
        assert value == "m" or value not in str(job.mapping)

    def test_the_embedded_simulator_is_a_provider(self) -> None:
        entry = declaration({"m": {"model": "simulator/llama"}}).experiment.deployments["m"]
        assert (entry.model, entry.api_base) == (GPU, "simulator")

    @pytest.mark.parametrize(
        ("models", "model"),
        [
            ({"m": {"model": GPU, "api_base": HOSTS}}, "m"),
            ({"m": {"model": GPU, "api_base": HOSTS[0], "deployments": None}}, "m"),
            ({"m": {"model": "simulator/llama"}}, "m"),
            ({}, "simulator/llama"),
        ],
    )
    def test_the_signature_is_that_of_the_long_form(self, models: Mapping[str, Any], model: str) -> None:
        long = declaration({"m": {"deployments": ["d"]}}, deployments={"d": {"model": GPU, "api_base": HOSTS[0]}})
        assert signature(declaration(models, model)) == signature(long)

    def test_the_groups_and_overrides_take_it(self, tmp_path: Path) -> None:
        (tmp_path / "conf" / "experiment").mkdir(parents=True)
        (tmp_path / "conf" / "experiment" / "e.yaml").write_text(
            "# @package _global_\ndefaults:\n  - /model@models.m: default\n  - /stage@stages.a: generate\n  - _self_\n"
            f"name: e\nsource: {{path: rows.jsonl}}\nmodels: {{m: {{model: {GPU}, api_base: {HOSTS[0]}}}}}\n"
            "stages: {a: {model: m, prompt: '{{ text }}'}}\n"
        )
        found = compose(["+experiment=e", f"models.m.api_base=[{','.join(HOSTS)}]", "models.m.weight=2"], cwd=tmp_path)
        job = declare(found.mapping, found.roots)
        assert [each.api_base for each in job.experiment.deployments.values()] == HOSTS
        assert {each.weight for each in job.experiment.deployments.values()} == {2}


class TestMessages:
    @pytest.mark.parametrize(
        ("own", "words"),
        [
            ({"api_base": HOSTS[0]}, "models.m.model: missing; api_base needs it beside it: provider/name"),
            ({"model": GPU, "api_base": []}, "models.m.api_base: the list is empty: give at least one URL"),
            ({"model": GPU, "api_base": [HOSTS[0]] * 2}, f"models.m.api_base: {HOSTS[0]} stands there twice"),
            (
                {"model": GPU, "api_base": ",".join(HOSTS)},
                f"models.m.api_base: several URLs are a list: [{', '.join(HOSTS)}]",
            ),
            (
                {"model": "simulator/"},
                "models.m: simulator/ has no name behind it: write simulator/NAME, any name will do",
            ),
            ({"model": GPU, "api_base": [3, HOSTS[0]]}, "models.m.api_base.0: expected text (got 3)"),
            (
                {"model": GPU, "api_base": HOSTS, "weight": -1},
                "models.m.weight: input should be greater than or equal to 0 (got -1)",
            ),
            ({"model": GPU, "limits": {"rmp": 1}}, "models.m.limits.rmp: unknown key. Did you mean 'rpm'?"),
            ({"model": GPU, "limits": "team"}, "models.m.limits: no account 'team' in limits. There is none."),
            ({"model": GPU}, f"models.m: '{GPU}' needs api_base, the URL of its server, such as http://host:8000/v1"),
            ({"model": GPU, "api_bas": HOSTS}, "models.m.api_bas: unknown key. Did you mean 'api_base'?"),
            (GPU, f"models.m: expected a mapping, such as {{model: {GPU}}}."),
        ],
    )
    def test_they_name_the_key_that_was_written(self, own: Any, words: str) -> None:
        assert problem({"m": own}) == words

    def test_a_variable_that_is_not_set(self) -> None:
        said = problem({"m": {"model": GPU, "api_base": [HOSTS[0], "${oc.env:NOPE}"]}})
        assert said.startswith("models.m.api_base.1: the environment variable NOPE is not set")
        assert problem({}, "${oc.env:NOPE}").startswith("stages.a.model: the environment variable NOPE is not set")

    def test_a_variable_is_one_url(self) -> None:
        bases = "${oc.decode:${oc.env:B}}"
        with pytest.raises(
            ConfigError, match=r"^models\.m\.api_base: the variable holds a list, and is one URL here\."
        ):
            declaration({"m": {"model": GPU, "api_base": bases}}, environ={"B": "[http://host1/v1]"})

    def test_a_password_in_one_url_of_a_list(self, tmp_path: Path) -> None:
        bases = ["http://me:hunter22@host1/v1", HOSTS[1]]
        said = problem({"m": {"model": GPU, "api_base": bases}})
        assert said.startswith("models.m.api_base.0: this value holds what looks like a key or a password.")
        found = here("run", "-m", "+experiment=e", f"models.m.api_base=[{','.join(bases)}]", cwd=tmp_path)
        assert found.returncode == 1
        assert "models.m.api_base.0: this value holds" in found.stderr
        assert not list(tmp_path.rglob("multirun.yaml"))

    def test_a_stage_whose_server_has_no_url(self) -> None:
        said = problem({}, GPU)
        assert said.startswith(f"stages.a.model: '{GPU}' needs api_base, the URL of its server")
        assert said.endswith(f"NAME stands in models: NAME: {{model: {GPU}, …}}, and the stage says model: NAME")

    def test_a_list_of_servers_at_a_deployment(self) -> None:
        said = problem({"m": {"deployments": ["d"]}}, deployments={"d": {"model": GPU, "api_base": HOSTS}})
        assert said.startswith(
            "deployments.d.api_base: a deployment is one server. A list stands in a model: models.NAME"
        )

    def test_notes_of_a_plan_or_a_run(self) -> None:
        told = declaration({"m": {"model": GPU, "api_base": HOSTS}}, "openai/x").long_form.as_written
        assert (
            told("limits.t: unused. Write deployments.host1:8000.limits: t")
            == "limits.t: unused. Write models.m.limits: t"
        )
        bound = "bound by x (deployments.{host1:8000,host2:8000}.max_parallel_requests)"
        assert told(bound) == "bound by x (models.m.max_parallel_requests)"
        said = told("limits.t: unused. Write deployments.openai/x.limits: t")
        assert said.startswith(
            "limits.t: unused. Write models.NAME.limits: t. NAME stands in models: NAME: {model: openai/x"
        )

    def test_a_server_at_a_stage(self) -> None:
        stage = {"kind": "generate", "model": GPU, "prompt": "{{ text }}", "api_base": HOSTS[0]}
        said = problem({}, stages={"a": stage})
        assert (
            said == "stages.a.api_base: it belongs to the model that the stage names: write it as models.NAME.api_base."
        )

    def test_a_name_that_is_neither_a_model_nor_a_providers(self) -> None:
        said = problem({"other": {"model": GPU, "api_base": HOSTS[0]}}, "gpt-4.1-mini")
        assert said.startswith("stages.a.model: no model 'gpt-4.1-mini'.")
        assert said.endswith("What a provider serves is written provider/name.")

    def test_the_long_and_the_short_form_at_once(self) -> None:
        said = problem({"m": {"deployments": ["d"], "model": "openai/x"}}, deployments={"d": {"model": GPU}})
        assert "write deployments.d.model, or take models.m.deployments out" in said

    def test_a_stage_that_goes_round_a_model(self) -> None:
        """The model's limits would not hold for it."""
        said = problem({"mini": {"model": "openai/x", "limits": {"rpm": 60}}}, "openai/x")
        assert said.startswith("stages.a.model: models.mini is 'openai/x': write model: mini")

    def test_an_override_of_a_name_that_status_shows(self) -> None:
        said = problem({"m": {"model": GPU, "api_base": HOSTS[0]}}, deployments={"m": {"weight": 2}})
        assert said == "deployments.m.weight: models.m says itself who serves it: write models.m.weight"
        said = problem({"m": {"model": GPU, "api_base": HOSTS[0]}}, deployments={"m": {"model": GPU}})
        assert said.endswith("rename one of the two")

    def test_the_simulator_at_a_servers_url(self) -> None:
        said = problem({"m": {"model": "simulator/llama", "api_base": HOSTS[0]}})
        assert said.startswith("models.m: simulator/llama is the embedded simulator, but api_base names a server")


def test_replicas_answer_and_resume_under_their_names(tmp_path: Path, simulator: Simulator) -> None:
    Lab(tmp_path).rows(texts(6))
    stages = {
        "a": {"kind": "generate", "model": "m", "prompt": "{{ text }}"},
        "b": {"kind": "embed", "model": "simulator/e", "text": "{{ a.text }}"},
    }
    models = {"m": {"model": GPU, "api_base": "http://127.0.0.1:9/v1"}}
    write_experiment(tmp_path, {"source": {"path": "rows.jsonl"}, "models": models, "stages": stages})
    bases = f"[{simulator.url},{simulator.url.replace('127.0.0.1', 'localhost')}]"
    found = here("run", "+experiment=mine", f"models.m.api_base={bases}", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (folder,) = run_folders(tmp_path)
    port = simulator.url.split(":")[2].split("/")[0]
    assert set(ask(folder, "SELECT DISTINCT deployment FROM a")) <= {(f"127.0.0.1:{port}",), (f"localhost:{port}",)}
    assert ask(folder, "SELECT DISTINCT deployment FROM b") == [("simulator/e",)]
    assert "0 requests" in here("resume", str(folder), cwd=tmp_path).stderr
