"""The declaration: the shipped YAML says what the models say, and every mistake is told by its path."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from infermesh.config.load import load
from infermesh.config.schema import (
    DeploymentEntry,
    EmbedStage,
    EngineConfig,
    Experiment,
    GenerateStage,
    GuardsConfig,
    HeaderFromEnv,
    ModelEntry,
    NotifyConfig,
    PythonStage,
    SinkConfig,
    SourceConfig,
    SqlStage,
    StoreConfig,
    TelemetryConfig,
    TranscribeStage,
)
from infermesh.errors import ConfigError
from infermesh.limits import Limits
from infermesh.simulator import SimulatorSettings
from infermesh.types import LIMITS

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS: dict[str, type[BaseModel] | type[Limits]] = {
    "source/default": SourceConfig,
    "limits/none": Limits,
    "deployment/default": DeploymentEntry,
    "model/default": ModelEntry,
    "engine/process": EngineConfig,
    "stage/generate": GenerateStage,
    "stage/embed": EmbedStage,
    "stage/transcribe": TranscribeStage,
    "stage/python": PythonStage,
    "stage/sql": SqlStage,
}
# A deployment's limits are a group of their own; a key stands in no file.
NOT_IN_YAML = {"deployment/default": {"limits"}, "simulator": {"api_key"}}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return found


def defaults(model: type[BaseModel] | type[Limits]) -> dict[str, Any]:
    """Each field's default; ``???`` where it has none."""
    if issubclass(model, Limits):
        return {field.name: field.default for field in dataclasses.fields(model)}
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = "???" if field.is_required() else field.get_default(call_default_factory=True)
        found[name] = value.model_dump() if isinstance(value, BaseModel) else value
    return found


class TestShippedYaml:
    @pytest.mark.parametrize("name", GROUPS)
    def test_a_groups_keys_and_defaults_are_the_models(self, name: str) -> None:
        written = {key: value for key, value in read(name).items() if key != "defaults"}
        expected = defaults(GROUPS[name])
        for key in NOT_IN_YAML.get(name, ()):
            del expected[key]
        assert written == expected

    def test_every_group_is_held_to_its_model(self) -> None:
        files = {str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml")}
        experiments = {name for name in files if name.startswith("experiment/")}
        assert files - experiments == {*GROUPS, "config", "deployment/simulator", "engine/local", "engine/ray"}

    @pytest.mark.parametrize(
        ("section", "model"),
        [
            ("store", StoreConfig),
            ("simulator", SimulatorSettings),
            ("guards", GuardsConfig),
            ("notify", NotifyConfig),
            ("telemetry", TelemetryConfig),
        ],
    )
    def test_the_roots_sections_are_the_models(self, section: str, model: type[BaseModel]) -> None:
        expected = defaults(model)
        for key in NOT_IN_YAML.get(section, ()):
            del expected[key]
        assert read("config")[section] == expected

    def test_the_root_has_every_key_of_an_experiment(self) -> None:
        root = read("config")
        assert {*root, "source", "engine"} - {"defaults", "hydra"} == set(Experiment.model_fields)
        for key in ("limits", "deployments", "models", "stages", "sinks"):
            assert root[key] == {}
        assert root["keep_errors"] is Experiment.model_fields["keep_errors"].default
        assert root["reuse"] == Experiment.model_fields["reuse"].default

    @pytest.mark.parametrize("kind", ["local", "ray"])
    def test_an_engine_is_as_the_others_but_for_its_kind(self, kind: str) -> None:
        assert read(f"engine/{kind}") == read("engine/process") | {"kind": kind}

    def test_the_simulated_deployment_changes_nothing_but_where_it_is(self) -> None:
        assert read("deployment/simulator").keys() - {"defaults"} == {"model", "api_base"}

    @pytest.mark.parametrize("name", [*GROUPS, "config"])
    def test_every_key_is_explained_or_plain(self, name: str) -> None:
        """A comment at the file's head at least: the files are where people look keys up."""
        assert (CONF / f"{name}.yaml").read_text().startswith("# ")


def described(model: type[BaseModel] | type[Limits]) -> dict[str, str | None]:
    if issubclass(model, Limits):
        return dict(LIMITS)
    return {name: field.description for name, field in model.model_fields.items()}


# A stage's kind and the sections are explained where their keys are.
SECTIONS = {"kind", "store", "engine", "guards", "notify", "telemetry", "simulator"}
DOCS = (CONF.parent / "docs" / "configuration.md").read_text(encoding="utf-8") + (
    CONF.parent / "docs" / "pipelines.md"
).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "model",
    [*GROUPS.values(), Experiment, GuardsConfig, NotifyConfig, TelemetryConfig, SinkConfig, StoreConfig, HeaderFromEnv],
)
def test_every_key_is_described_and_documented(model: type[BaseModel] | type[Limits]) -> None:
    for name, description in described(model).items():
        if name not in SECTIONS:
            assert description, name
            assert re.search(rf"`[\w.]*\b{name}\b", DOCS) or f"{name}:" in DOCS, name


VALID: dict[str, Any] = {
    "name": "tickets",
    "source": {"path": "rows.jsonl"},
    "limits": {"account": {"rpm": 100}},
    "deployments": {
        "gpu-0": {"model": "hosted_vllm/llama", "api_base": "http://h:8000/v1", "limits": {"rpm": 600}},
        "cloud": {"model": "openai/gpt-4.1-mini", "api_key_env": "OPENAI_API_KEY", "limits": "account"},
    },
    "models": {"llama": {"deployments": ["gpu-0", "cloud"], "params": {"temperature": 0.2}}},
    "stages": {
        "summaries": {"kind": "generate", "model": "llama", "prompt": "{{ text }}"},
        "vectors": {"kind": "embed", "model": "llama", "text": "{{ summaries.text }}"},
        "words": {"kind": "transcribe", "model": "llama", "audio": "{{ audio }}"},
    },
}


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    mapping = copy.deepcopy(VALID)
    change(mapping)
    return mapping


def at(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Set a key by its dotted path."""

    def change(mapping: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        node: Any = mapping
        for part in outer:
            node = node[part]
        node[last] = value

    return change


def without(path: str) -> Callable[[dict[str, Any]], object]:
    def change(mapping: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        node: Any = mapping
        for part in outer:
            node = node[part]
        del node[last]

    return change


def problems(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(mapping)
    return str(caught.value).splitlines()


def test_a_sound_declaration_is_taken() -> None:
    experiment = load(VALID)
    assert experiment.models["llama"].deployments == ["gpu-0", "cloud"]
    assert isinstance(experiment.stages["words"], TranscribeStage)
    assert experiment.deployments["gpu-0"].limits == Limits(rpm=600)
    assert not experiment.uses_simulator


class TestMisspelt:
    @pytest.mark.parametrize(
        ("path", "nearest"),
        [
            ("stagess", "stages"),
            ("keep_error", "keep_errors"),
            ("source.limits", "limit"),
            ("limits.account.rmp", "rpm"),
            ("deployments.gpu-0.max_paralel_requests", "max_parallel_requests"),
            ("deployments.gpu-0.limits.rpmm", "rpm"),
            ("models.llama.routing_stategy", "routing_strategy"),
            ("stages.summaries.promt", "prompt"),
            ("stages.summaries.max_parallel_request", "max_parallel_requests"),
            ("stages.vectors.micro_batch", "micro_batch_size"),
            ("stages.words.max_transcription_byte", "max_transcription_bytes"),
        ],
    )
    def test_an_unknown_key_names_the_nearest(self, path: str, nearest: str) -> None:
        (problem,) = problems(edited(at(path, 1)))
        assert problem == f"{path}: unknown key. Did you mean '{nearest}'?"

    @pytest.mark.parametrize(
        ("section", "key", "nearest"),
        [("store", "memory_limits", "memory_limit"), ("simulator", "latency", "latency_s")],
    )
    def test_in_the_sections_with_defaults(self, section: str, key: str, nearest: str) -> None:
        (problem,) = problems(edited(at(section, {key: 1})))
        assert problem == f"{section}.{key}: unknown key. Did you mean '{nearest}'?"

    def test_in_the_simulators_faults(self) -> None:
        (problem,) = problems(edited(at("simulator", {"faults": {"server_err": 0.1}})))
        assert problem == "simulator.faults.server_err: unknown key. Did you mean 'server_error'?"

    def test_nothing_near_lists_what_there_is(self) -> None:
        (problem,) = problems(edited(at("source.zzz", 1)))
        assert problem.startswith("source.zzz: unknown key. There is: ")

    @pytest.mark.parametrize(
        ("key", "shown"), [("", "''"), (" ", "' '"), ("a\rb", r"'a\\rb'"), ("\x1b[2J", r"'\\x1b\[2J'")]
    )
    def test_a_name_that_cannot_be_seen_is_quoted(self, key: str, shown: str) -> None:
        with pytest.raises(ConfigError, match=f"^{shown}: unknown key"):
            load({**VALID, key: 1})

    def test_all_mistakes_are_told_at_once(self) -> None:
        mapping = edited(at("source.limits", 1))
        at("models.llama.max_retry", 1)(mapping)
        at("stages.vectors.txt", 1)(mapping)
        assert [problem.split(":")[0] for problem in problems(mapping)] == [
            "source.limits",
            "models.llama.max_retry",
            "stages.vectors.txt",
        ]


class TestNames:
    @pytest.mark.parametrize(
        ("path", "value", "expected"),
        [
            ("stages.vectors.model", "lama", "no model 'lama'. Did you mean 'llama'?"),
            ("models.llama.deployments", ["gpu-1"], "no deployment 'gpu-1'. Did you mean 'gpu-0'?"),
            ("deployments.cloud.limits", "acount", "no account 'acount' in limits. Did you mean 'account'?"),
        ],
    )
    def test_a_name_that_stands_nowhere(self, path: str, value: Any, expected: str) -> None:
        assert problems(edited(at(path, value))) == [f"{path}: {expected}"]

    @pytest.mark.parametrize(
        ("name", "named"),
        [
            ("my-stage", "my_stage"),
            ("1st", "_1st"),
            ("a b", "a_b"),
            ("", ""),
            ("summaries.text", "summaries_text"),
            ('x"; drop', "x_drop"),
        ],
    )
    def test_a_stages_name_is_a_tables_name(self, name: str, named: str) -> None:
        mapping = edited(lambda found: found["stages"].update({name: dict(VALID["stages"]["summaries"])}))
        (problem,) = problems(mapping)
        assert problem.startswith(f"stages.{name}: a stage's name is a table's name")
        _, _, proposed = problem.partition(" Write ")
        assert proposed == named

    @pytest.mark.parametrize("name", ["run", "source", "attempts", "Results", "progress", "retired", "sessions"])
    def test_a_table_of_every_run_is_no_name_for_a_stage(self, name: str) -> None:
        mapping = edited(lambda found: found["stages"].update({name: dict(VALID["stages"]["summaries"])}))
        (problem,) = problems(mapping)
        assert problem.startswith(f"stages.{name}: '{name}' is a table of every run.")

    def test_the_view_over_a_query_is_no_name_for_a_stage(self) -> None:
        mapping = edited(lambda found: found["stages"].update(chunks={"kind": "sql", "query": "FROM source"}))
        mapping["stages"]["chunks_results"] = dict(VALID["stages"]["summaries"])
        assert problems(mapping) == [
            "stages.chunks_results: 'chunks_results' is the view over the rows of stages.chunks. Choose another name."
        ]

    def test_stages_that_differ_in_case_only(self) -> None:
        """SQL does not tell them apart: they would be one table."""
        mapping = edited(lambda found: found["stages"].update(Summaries=dict(VALID["stages"]["summaries"])))
        (problem,) = problems(mapping)
        assert "summaries" in problem
        assert "Summaries" in problem

    @pytest.mark.parametrize(
        ("name", "proposed"),
        [
            ("", "mine"),
            ("../up", "up"),
            ("a/b", "a-b"),
            (".hidden", "hidden"),
            ("My first run!", "My-first-run"),
            ("-m", "m"),
            ("Größe", "Groe"),
            ("日本", "mine"),
        ],
    )
    def test_an_experiments_name_is_a_folders_name(self, name: str, proposed: str) -> None:
        (problem,) = problems(edited(at("name", name)))
        assert problem.startswith("name: it names a folder: letters from a to z, digits, ")
        assert problem.endswith(f"(got {name!r}). Write name: {proposed}")
        assert load(edited(at("name", proposed))).name == proposed


class TestStages:
    def test_a_kind_that_there_is_not(self) -> None:
        (problem,) = problems(edited(at("stages.vectors.kind", "embbed")))
        assert problem == "stages.vectors.kind: no kind 'embbed'. Did you mean 'embed'?"

    def test_no_kind(self) -> None:
        (problem,) = problems(edited(without("stages.vectors.kind")))
        assert problem == "stages.vectors: a stage needs a 'kind': generate, embed, transcribe, python, sql."

    def test_an_override_of_a_misspelt_stage(self) -> None:
        """``stages.summary.max_parallel_requests=4`` makes a stage of that name with nothing else in it."""
        (problem,) = problems(edited(at("stages.summary", {"max_parallel_requests": 4})))
        assert "stages.summary" in problem
        assert "Did you mean 'stages.summaries'?" in problem

    @pytest.mark.parametrize("change", [at("stages.summaries.messages", "{{ m }}"), without("stages.summaries.prompt")])
    def test_a_prompt_or_messages(self, change: Callable[[dict[str, Any]], object]) -> None:
        (problem,) = problems(edited(change))
        assert problem.startswith("stages.summaries: give either 'prompt'")
        assert "'messages'" in problem

    @pytest.mark.parametrize("path", ["stages.vectors.model", "deployments.cloud.model", "name", "source"])
    def test_what_is_required(self, path: str) -> None:
        assert problems(edited(without(path))) == [f"{path}: missing; it is required."]

    def test_a_model_that_nobody_serves(self) -> None:
        (problem,) = problems(edited(without("models.llama.deployments")))
        assert problem == (
            "models.llama.deployments: missing, and no 'model': nobody serves it. "
            "Write model: provider/name, or name its deployments."
        )

    @pytest.mark.parametrize("value", ["generate", None, ["generate"], 3])
    def test_a_stage_that_is_no_mapping(self, value: Any) -> None:
        (problem,) = problems(edited(at("stages.vectors", value)))
        assert problem.startswith("stages.vectors: ")


class TestValues:
    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            ("stages.summaries.max_parallel_requests", 0, "greater than or equal to 1 (got 0)"),
            ("stages.summaries.max_parallel_requests", "many", "got 'many'"),
            ("stages.summaries.on_invalid", "raise", "'null', 'retry' or 'error'"),
            ("stages.vectors.micro_batch_size", -1, "greater than or equal to 1"),
            ("models.llama.timeout", 0, "greater than 0"),
            ("models.llama.max_retries", -1, "greater than or equal to 0"),
            ("models.llama.deployments", [], "at least 1"),
            ("models.llama.routing_strategy", "fastest", "'least-busy'"),
            ("deployments.gpu-0.weight", -1, "greater than or equal to 0"),
            ("deployments.gpu-0.transport", "curl", "'litellm'"),
            ("deployments.gpu-0.limits.rpm", 0, "greater than 0"),
            ("limits.account.rpm", -5, "greater than 0"),
            ("source.limit", -1, "greater than or equal to 0"),
            ("source.format", "xml", "'parquet'"),
            ("stages", {}, "at least 1"),
            ("stages", None, "expected keys with values"),
        ],
    )
    def test_a_value_that_cannot_be(self, path: str, value: Any, words: str) -> None:
        (problem,) = problems(edited(at(path, value)))
        assert problem.startswith(f"{path}: ")
        assert words in problem

    @pytest.mark.parametrize("source", [{}, {"path": "a.jsonl", "sql": "select 1"}])
    def test_a_path_or_a_query(self, source: dict[str, Any]) -> None:
        (problem,) = problems(edited(at("source", source)))
        assert problem.startswith("source: give either 'path'")

    def test_the_empty_declaration(self) -> None:
        found = problems({})
        assert {problem.split(":")[0] for problem in found} == {"name", "source", "stages"}

    def test_no_message_speaks_of_the_library_that_checked(self) -> None:
        for change in (at("stages", 3), at("source.limit", "x"), at("deployments.gpu-0.limits.rpmm", 1), at("x", 1)):
            text = "\n".join(problems(edited(change)))
            assert "pydantic" not in text
            assert "validation error" not in text


KEY = "sk-1234567890abcdefghijkl"


def _secrets() -> Iterator[tuple[str, Any]]:
    for key in ("api_key", "API_KEY", "Authorization", "x-api-key"):
        yield f"deployments.cloud.{key}", "0123456789"
    yield "deployments.cloud.headers", {"Authorization": "Basic dXNlcjpwYXNz"}
    yield "deployments.cloud.headers", {"X-Custom": f"Bearer {KEY}"}
    yield "deployments.cloud.api_base", "http://user:s3cretpw@host:8000/v1"
    yield "deployments.cloud.api_key_env", KEY
    yield "models.llama.params", {"api_key": "0123456789"}
    yield "models.llama.params", {"extra_body": {"deep": [{"token": "0123456789"}]}}
    yield "stages.summaries.params", {"extra_headers": {"api-key": "0123456789"}}
    yield "stages.summaries.prompt", f"Use {KEY} to call it"
    yield "source.sql", f"select * from x where token = '{KEY}'"
    yield "deployments.cloud.headers", {"X-Token": "hf_abcdefghijklmnopqrstuvwxyz"}


class TestSecrets:
    @pytest.mark.parametrize(("path", "value"), list(_secrets()))
    def test_an_inline_key_is_refused_and_not_repeated(self, path: str, value: Any) -> None:
        (problem,) = problems(edited(at(path, value)))
        assert problem.startswith(path)
        assert "api_key_env" in problem
        for secret in (KEY, "0123456789", "s3cretpw", "dXNlcjpwYXNz", "hf_abcdef"):
            assert secret not in problem

    def test_an_inline_key_beside_another_mistake_is_not_repeated_either(self) -> None:
        mapping = edited(at("deployments.cloud.api_key", KEY))
        at("name", KEY)(mapping)
        assert KEY not in "\n".join(problems(mapping))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("deployments.gpu-0.api_base", "http://host:8000/v1?x=a@b"),
            ("stages.summaries.prompt", "Write to sk-support about task-management and the Bearer of bad news."),
            ("models.llama.params", {"max_tokens": 10, "stop": ["token"], "logit_bias": {"token": 1}}),
            ("deployments.cloud.headers", {"X-Request-Source": "infermesh"}),
        ],
    )
    def test_what_only_looks_like_one_is_taken(self, path: str, value: Any) -> None:
        load(edited(at(path, value)))
