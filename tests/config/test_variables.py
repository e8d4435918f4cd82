"""What a declaration takes from environment variables reaches the endpoint, and no file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infermesh.config.compose import compose
from infermesh.config.declaration import Declaration, declare
from infermesh.config.references import FromEnvironment, without_references
from infermesh.config.schema import GenerateStage
from infermesh.errors import ConfigError
from tests.support import experiment, generate, write_experiment

PLANTED = "plantedENVkey/0123456789"
ENVIRON = {"PLANTED": PLANTED, "NUMBER": "7", "LIST": "[1, two]", "EMPTY": ""}


def declared(environ: Mapping[str, str] = ENVIRON, **changes: Any) -> Declaration:
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()})
    for path, value in changes.items():
        node: Any = mapping
        *parents, last = path.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return declare(mapping, [Path.cwd()], environ=environ)


def composed(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    write_experiment(tmp_path, experiment("http://127.0.0.1:9/v1", {"a": generate()}))
    return compose(["+experiment=mine", *overrides], cwd=tmp_path).mapping


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("'${oc.env:PLANTED}'", "${oc.env:PLANTED}"),
        ("'a ${oc.env:PLANTED} b'", "a ${oc.env:PLANTED} b"),
        ("'${oc.env:NOT_SET_AT_ALL,x}'", "${oc.env:NOT_SET_AT_ALL,x}"),
        ("'${oc.env:NOT_SET_AT_ALL,null}'", "${oc.env:NOT_SET_AT_ALL,null}"),
        ("'${oc.env:A,${oc.env:B}}'", "${oc.env:A,'${oc.env:B}'}"),
        ("'${oc.decode:${oc.env:NUMBER}}'", "${oc.decode:${oc.env:NUMBER}}"),
        ("'${models.m.params.other}'", "${oc.env:PLANTED}"),
        ("'${oc.select:nowhere,${oc.env:PLANTED}}'", "${oc.env:PLANTED}"),
        ("'${models.m.params.${oc.env:CHOSEN}}'", "${oc.env:PLANTED}"),
        ("\"${oc.decode:'7'}\"", 7),
        (r"'\${oc.env:PLANTED}'", r"\${oc.env:PLANTED}"),
    ],
)
def test_composing_keeps_them_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, kept: Any
) -> None:
    monkeypatch.setenv("PLANTED", PLANTED)
    monkeypatch.setenv("CHOSEN", "other")
    mapping = composed(tmp_path, "+models.m.params.other='${oc.env:PLANTED}'", f"+models.m.params.one={written}")
    assert mapping["models"]["m"]["params"]["one"] == kept
    assert PLANTED not in str(mapping)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${oc.env:PLANTED}", PLANTED),
        ("Bearer ${oc.env:PLANTED}", f"Bearer {PLANTED}"),
        ("${oc.env:NOT_SET, 'a, {b}'}", "a, {b}"),
        ("${oc.env:NOT_SET,'${oc.env:PLANTED}'}", PLANTED),
        ("${oc.env:NOT_SET,null}", None),
        ("${oc.env:EMPTY}", ""),
        ("${oc.decode:${oc.env:NUMBER}}", 7),
        ("${oc.decode:${oc.env:LIST}}", [1, "two"]),
        (r"\${oc.env:PLANTED} is how", "${oc.env:PLANTED} is how"),
    ],
)
def test_their_values(written: str, value: Any) -> None:
    assert FromEnvironment(written).value(ENVIRON) == value


def test_keys_that_other_types_take_are_read_at_once() -> None:
    found = declared(
        stages__a__max_parallel_requests="${oc.env:NUMBER}", limits__acc__rpm="${oc.decode:${oc.env:NUMBER}}"
    )
    stage = found.experiment.stages["a"]
    assert isinstance(stage, GenerateStage)
    assert stage.max_parallel_requests == 7
    assert found.experiment.limits["acc"].rpm == 7
    assert found.mapping["stages"]["a"]["max_parallel_requests"] == "${oc.env:NUMBER}"


def test_every_variable_that_is_not_set_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        declared({}, deployments__d__headers={"x-a": "${oc.env:NO_A}"}, stages__a__where="${oc.env:NO_B}")
    lines = str(caught.value).splitlines()
    assert [line.partition(": export")[0] for line in lines] == [
        "deployments.d.headers.x-a: the environment variable NO_A is not set",
        "stages.a.where: the environment variable NO_B is not set",
    ]


def test_a_message_shows_what_was_written_and_not_the_value() -> None:
    with pytest.raises(ConfigError) as caught:
        declared(stages__a__max_parallel_requests="${oc.env:PLANTED}")
    assert "stages.a.max_parallel_requests" in str(caught.value)
    assert "(got '${oc.env:PLANTED}')" in str(caught.value)


def test_a_literal_default_may_be_a_key() -> None:
    assert without_references("Bearer ${oc.env:A,abc} ${x.y}") == "Bearer abc "
    with pytest.raises(ConfigError, match=r"headers\.x-api-key: a key in the config"):
        declared(deployments__d__headers={"x-api-key": "${oc.env:NOT_SET,abc}"})
