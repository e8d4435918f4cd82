"""The JSON schema of an experiment's file: it takes what the shipped ones say, and tells a slip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infermesh.config.json_schema import experiment_schema
from tests.support import embed, experiment, generate, here

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [*(ROOT / "conf" / "experiment").glob("*.yaml"), *(ROOT / "examples").rglob("conf/experiment/*.yaml")]
SCHEMA = experiment_schema()


def wrong(mapping: Any) -> list[str]:
    """The paths at which a mapping does not fit."""
    found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(mapping)
    return sorted(".".join(map(str, error.absolute_path)) for error in found)


def job(**sections: Any) -> dict[str, Any]:
    return experiment("http://127.0.0.1:8000/v1", {"a": generate(), "v": embed()}) | sections


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parents[2].name + "/" + path.stem)
def test_every_experiment_of_ours_fits(path: Path) -> None:
    assert wrong(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.is_relative_to(ROOT / "conf")], ids=str)
def test_a_shipped_file_names_the_schema(path: Path) -> None:
    (named,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "yaml-language-server" in line]
    assert (path.parent / named.partition("$schema=")[2]).resolve() == ROOT / "conf" / "experiment.schema.json"


def test_the_schema_itself_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "sections",
    [
        {"defaults": ["/stage@stages.a: generate", {"/model@models.m": "default"}, "_self_"], "hydra": {"run": {}}},
        {"stages": {"a": {"model": "m", "max_parallel_requests": 3}}},  # its kind comes from a group
        {"guards": {"max_duration": "30m", "max_errors": "${oc.env:MOST}"}},
        {
            "models": {
                "m": {
                    "deployments": ["d"],
                    "timeout": None,
                    "max_retries": "${retries}",
                    "params": {"temperature": 0, "top_k": [1]},
                }
            }
        },
        {"deployments": {"d": {"model": "openai/x", "headers": {"a": "b", "c": {"env": "D"}}, "limits": {"rpm": 3}}}},
    ],
)
def test_what_hydra_composes_further_fits(sections: dict[str, Any]) -> None:
    assert wrong(job(**sections)) == []


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"stges": {}}, ""),
        ({"guards": {"max_eror_rate": 1}}, "guards"),
        ({"stages": {"a": {"kind": "generate", "promt": "x"}}}, "stages.a"),
        ({"stages": {"a": {"kind": "generate", "max_parallel_requests": 0}}}, "stages.a"),
        ({"stages": {"a": {"kind": "embed", "prompt": "x"}}}, "stages.a"),
        ({"deployments": {"d": {"model": "m", "weight": "heavy"}}}, "deployments.d.weight"),
    ],
)
def test_a_slip_is_told(sections: dict[str, Any], path: str) -> None:
    assert any(each.startswith(path) for each in wrong(job(**sections)))


def test_every_key_says_what_it_means() -> None:
    bare = [
        f"{name}.{key}"
        for name, definition in [("", SCHEMA), *SCHEMA["$defs"].items()]
        for key, value in definition.get("properties", {}).items()
        if key != "kind" and not value.get("description") and "$ref" not in value
    ]
    assert bare == []


def test_the_shipped_file_is_what_the_command_prints(tmp_path: Path) -> None:
    printed = here("schema", cwd=tmp_path).stdout
    shipped = (ROOT / "conf" / "experiment.schema.json").read_text(encoding="utf-8")
    assert printed == shipped, "the schema has changed: infermesh schema > conf/experiment.schema.json"
