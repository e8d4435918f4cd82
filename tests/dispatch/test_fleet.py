"""Deployments and models of an experiment and of a client: one way to build them, so that both mean the same."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest

from infermesh import ConfigError, DeploymentConfig
from infermesh.client.build import client_model, deployment_configs
from infermesh.config.load import load
from infermesh.config.schema import DeploymentEntry
from infermesh.dispatch import Deployment
from infermesh.dispatch.fleet import Fleet
from infermesh.dispatch.retry import RetryPolicy
from infermesh.limits import DayUsage, Limits, LocalRateLimiter, OpenLimiter
from infermesh.limits.composite import CompositeLimiter
from infermesh.types import LIMITS
from tests.fakes import virtual
from tests.support import experiment, generate

URL = "http://127.0.0.1:9/v1"


def fleet(deployments: dict[str, Any], environ: dict[str, str] | None = None, **sections: Any) -> Fleet:
    mapping = experiment(URL, {"a": generate()}, **sections)
    mapping["deployments"] = {
        label: {"model": "hosted_vllm/x", "api_base": URL} | d for label, d in deployments.items()
    }
    mapping["models"] = {"m": {"deployments": list(deployments)}}
    return Fleet(load(mapping), environ=environ or {}, simulator_url="http://127.0.0.1:7/v1")


def test_an_entry_of_an_experiment_says_what_a_deployment_config_says() -> None:
    entries = {
        name: field.get_default(call_default_factory=True) for name, field in DeploymentEntry.model_fields.items()
    }
    configs = {field.name: field.default for field in dataclasses.fields(DeploymentConfig)}
    assert entries.keys() - {"limits"} == configs.keys() - LIMITS.keys() - {"api_key"}
    for name in entries.keys() - {"limits", "model", "headers"}:
        assert entries[name] == configs[name], name


def test_every_field_arrives() -> None:
    entry = {
        **{"model": "openai/x", "api_base": URL, "api_key_env": "KEY", "transport": "litellm", "weight": 2.0},
        **{"max_parallel_requests": 3, "headers": {"x-a": "b", "x-key": {"env": "KEY"}}},
        **{"input_cost_per_token": 0.1, "output_cost_per_token": 0.2, "ca_bundle": "ca.pem"},
    }
    limits = {"rpm": 1, "tpm": 2, "rpd": 3, "tpd": 4, "max_request_burst": 5, "max_token_burst": 6}
    rest = {"header_bucket_scope": "day", "default_output_tokens": 7}
    config = DeploymentEntry.model_validate({**entry, "limits": limits | rest}).deployment_config()
    assert dataclasses.asdict(config) == entry | limits | rest | {"api_key": None}
    assert config.limits == Limits(**limits, **rest)  # type: ignore[arg-type]


class TestLimiters:
    def test_none_own_and_shared(self) -> None:
        found = fleet(
            {
                "free": {},
                "own": {"limits": {"rpm": 5}},
                "a": {"limits": "account"},
                "b": {"limits": "account"},
                "c": {"limits": "alone"},
            },
            limits={"account": {"tpm": 10}, "alone": {"rpd": 3}},
        )
        limiters = {label: deployment.limiter for label, deployment in found.deployments.items()}
        assert isinstance(limiters["free"], OpenLimiter)
        assert isinstance(limiters["own"], LocalRateLimiter)
        assert limiters["own"].limits == Limits(rpm=5)
        assert isinstance(limiters["a"], CompositeLimiter)
        assert isinstance(limiters["b"], CompositeLimiter)
        assert limiters["a"] is not limiters["b"]
        assert isinstance(limiters["c"], LocalRateLimiter)
        assert {label: limiter.counts_tokens for label, limiter in limiters.items()} == {
            **{"free": False, "own": False, "a": True, "b": True, "c": False}
        }

    def test_an_account_of_one_deployment_is_told_of_once(self) -> None:
        found = fleet({"c": {"limits": "alone"}}, limits={"alone": {"rpd": 3}})
        today = dt.datetime.now(dt.UTC).date()
        assert found.restore_usage({"c": DayUsage(today, 2, 40)}) == [
            "account alone has used 2 requests and 40 tokens today"
        ]

    @virtual
    async def test_a_clients_limits_are_shared_and_a_deployments_are_its_own(self) -> None:
        configs = deployment_configs(
            "any",
            None,
            None,
            {
                "a": DeploymentConfig("hosted_vllm/x", URL, rpd=1),
                "b": {"model": "hosted_vllm/x", "api_base": URL, "tpd": 100},
            },
        )
        a, b = (deployment.limiter for deployment in client_of(configs, Limits(rpd=3)))
        assert a.try_acquire(10) is not None
        assert a.try_acquire(10) is None
        assert b.try_acquire(60, 0) is not None
        assert b.try_acquire(60, 0) is None
        assert b.try_acquire(30, 0) is not None
        assert b.try_acquire(1, 0) is None  # the account's three are gone


def client_of(configs: dict[str, DeploymentConfig], account: Limits) -> list[Deployment]:
    _, deployments = client_model(
        "any",
        configs,
        account=account,
        strategy="simple-shuffle",
        endpoint="chat_completion",
        retry=RetryPolicy(),
        timeout=1.0,
    )
    return deployments


def test_the_users_key_is_not_sent_to_the_simulator() -> None:
    found = fleet(
        {"d": {"api_base": "simulator", "api_key_env": "MINE"}}, {"MINE": "team-key"}, simulator={"api_key": "sim"}
    )
    transport: Any = found.deployments["d"].transport
    assert (transport.api_base, transport._key) == ("http://127.0.0.1:7/v1", "sim")


def test_what_is_wrong_names_the_deployment() -> None:
    configs = {"gpu-0": DeploymentConfig("hosted_vllm/x", URL, rpm=-1)}
    with pytest.raises(ConfigError, match=r"deployments\.gpu-0\.rpm: "):
        client_of(configs, Limits())
