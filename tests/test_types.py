"""The limits are declared once; wherever a signature or a table spells them out, it has them all."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from infermesh import ConfigError, DeploymentConfig, LMClient
from infermesh.bench.sweeps import decides_speed_only
from infermesh.cli.oneshot.options import LimitOptions
from infermesh.plan import QuotaFacts
from infermesh.types import LIMITS, Limits

DOCS = Path(__file__).resolve().parents[1] / "docs"
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Limits)}
# How headers are read and answers estimated is no quota: the command line has no flag for it.
WITHOUT_FLAG = {"header_bucket_scope", "default_output_tokens"}


def test_the_client_takes_every_limit() -> None:
    parameters = inspect.signature(LMClient).parameters
    assert {name: parameters[name].default for name in LIMITS} == DEFAULTS


def test_a_deployment_takes_every_limit() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(DeploymentConfig)}
    # None: as the client has it.
    assert {name: fields[name] for name in LIMITS} == {**DEFAULTS, "header_bucket_scope": None}


def test_the_command_line_has_a_flag_for_every_quota_and_burst() -> None:
    flags = {field.name for field in dataclasses.fields(LimitOptions)}
    assert flags >= LIMITS.keys() - WITHOUT_FLAG
    assert not flags & WITHOUT_FLAG


def test_an_estimate_knows_every_limit() -> None:
    assert LIMITS.keys() <= {field.name for field in dataclasses.fields(QuotaFacts)}


@pytest.mark.parametrize("name", LIMITS)
def test_a_swept_limit_decides_speed_only(name: str) -> None:
    assert decides_speed_only(f"limits.account.{name}")
    assert decides_speed_only(f"++deployments.gpu-0.limits.{name}")
    assert decides_speed_only(f"models.m.limits.{name}")


def test_which_keys_of_a_models_own_deployment_decide_speed_only() -> None:
    assert decides_speed_only("models.m.api_base")
    assert not decides_speed_only("models.m.model")
    assert not decides_speed_only("models.m.params.temperature")


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_is_documented(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", (DOCS / "configuration.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"`{name}`" in (DOCS / "client.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [-1, "many", True])
def test_a_value_out_of_range_is_told_by_its_name(name: str, value: Any) -> None:
    for make in (
        lambda: Limits(**{name: value}),
        lambda: LMClient("openai/x", **{name: value}),
        lambda: LMClient("x", deployments={"d": {"model": "openai/x", name: value}}),
    ):
        with pytest.raises(ConfigError, match=name):
            make()
