"""What may be changed while a run goes on: pure, from a declaration and assignments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infermesh.config.declaration import Declaration, declare
from infermesh.config.live import changed
from infermesh.errors import ConfigError


def job(**sections: Any) -> Declaration:
    deployments: dict[str, Any] = {
        label: {"model": "hosted_vllm/any", "api_base": "http://127.0.0.1:9/v1"} for label in ("gpu-0", "gpu.1")
    }
    deployments["cloud"] = {"model": "hosted_vllm/any", "api_base": "http://127.0.0.1:9/v1", "limits": "team"}
    deployments["gpu-0"]["api_key_env"] = "KEY"
    mapping: dict[str, Any] = {
        "name": "mine",
        "source": {"path": "rows.jsonl"},
        "limits": {"team": {"rpm": 600, "rpd": 10_000}, "all": {"rpm": 60, "shared": True}},
        "deployments": deployments,
        "models": {"m": {"deployments": [*deployments]}},
        "stages": {
            "a": {"kind": "generate", "model": "m", "prompt": "{{ text }}"},
            "q": {"kind": "sql", "query": "select 1"},
        },
    }
    return declare(mapping | sections, [Path.cwd()], environ={"KEY": "k"})


def test_changes_are_of_the_schemas_types_and_leave_the_old_declaration_alone() -> None:
    before = job()
    other, changes = changed(
        before,
        [
            *("limits.team.rpm=2000", "deployments.gpu.1.weight=0", "deployments.gpu-0.limits.tpm=5e4"),
            *("stages.a.max_parallel_requests=64", "guards.max_cost_usd=2.5", "limits.team.rpd=20000"),
        ],
        {"KEY": "k"},
    )
    assert [str(each) for each in changes] == [  # what is so already is no change
        "limits.team.rpm: 600 → 2000",
        "deployments.gpu.1.weight: 1 → 0",
        "deployments.gpu-0.limits.tpm: null → 50000",
        "guards.max_cost_usd: null → 2.5",
        "limits.team.rpd: 10000 → 20000",
    ]
    assert other.experiment.limits["team"].rpm == 2000
    assert other.mapping["deployments"]["gpu-0"]["limits"] == {"tpm": 5e4}
    assert (before.experiment.limits["team"].rpm, before.mapping["limits"]["team"]["rpm"]) == (600, 600)
    _, back = changed(other, ["deployments.gpu-0.limits.tpm=null"], {"KEY": "k"})
    assert [str(each) for each in back] == ["deployments.gpu-0.limits.tpm: 50000 → null"]


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("limits.team.rpm", "expected KEY=VALUE"),
        ("limits.teem.rpm=5", "Did you mean 'limits.team.rpm'?"),
        ("name=x", "What can be set: limits.{team|all}.rpm (tpm, rpd, tpd), deployments.{gpu-0|gpu.1}.limits.rpm"),
        ("stages.q.max_parallel_requests=3", "cannot be set while the run goes on"),
        ("stages.a.max_parallel_requests=0", "stages.a.max_parallel_requests: input should be greater than or equal"),
        ("stages.a.max_parallel_requests=2.5", "expected a whole number"),
        ("limits.team.rpm=nan", "expected a number, or null (got 'nan')"),
        ("limits.team.tpd=5", "neither added nor removed"),
        ("limits.team.rpd=null", "neither added nor removed"),
        ("limits.all.rpm=600", "other runs use this account too"),
        ("deployments.cloud.limits.rpm=5", "set limits.team.rpm"),
    ],
)
def test_a_refusal_names_the_key_and_what_can_be_set(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(job(), [assignment], {"KEY": "k"})
    assert words in str(caught.value)
    assert str(caught.value).startswith(assignment.partition("=")[0])


def test_one_deployment_of_a_model_keeps_a_weight() -> None:
    off = [f"deployments.{label}.weight=0" for label in ("gpu-0", "gpu.1", "cloud")]
    _, changes = changed(job(), off[:2], {"KEY": "k"})
    assert len(changes) == 2
    with pytest.raises(ConfigError, match=r"models\.m: all its deployments have weight 0"):
        changed(job(), off, {"KEY": "k"})
