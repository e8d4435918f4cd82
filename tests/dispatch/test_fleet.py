"""Deployments and models of an experiment and of a client: one way to build them, so that both mean the same."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import inspect
from typing import Any

import pytest

from infermesh import ConfigError, DeploymentConfig, LMClient
from infermesh.client.build import client_model, deployment_configs
from infermesh.config.load import load
from infermesh.config.schema import DeploymentEntry
from infermesh.dispatch import Deployment
from infermesh.dispatch.fleet import Fleet
from infermesh.dispatch.retry import RetryPolicy
from infermesh.errors import APIConnectionError, AuthenticationError
from infermesh.limits import DayUsage, Limits, LocalRateLimiter, OpenLimiter
from infermesh.limits.composite import CompositeLimiter
from infermesh.transports.http.failures import NO_ANSWER, connection_failed
from infermesh.types import LIMITS
from tests.fakes import ScriptedTransport, now, request, virtual
from tests.support import experiment, generate

URL = "http://127.0.0.1:9/v1"


def fleet(
    deployments: dict[str, Any],
    environ: dict[str, str] | None = None,
    models: dict[str, Any] | None = None,
    **sections: Any,
) -> Fleet:
    mapping = experiment(URL, {"a": generate()}, **sections)
    mapping["deployments"] = {
        label: {"model": "hosted_vllm/x", "api_base": URL} | d for label, d in deployments.items()
    }
    mapping["models"] = models or {"m": {"deployments": list(deployments)}}
    return Fleet(load(mapping), environ=environ or {}, simulator_url="http://127.0.0.1:7/v1")


def test_an_entry_of_an_experiment_says_what_a_deployment_config_says() -> None:
    entries = {
        name: field.get_default(call_default_factory=True) for name, field in DeploymentEntry.model_fields.items()
    }
    configs = {field.name: field.default for field in dataclasses.fields(DeploymentConfig)}
    # A client has no store that would remember a batch.
    assert entries.keys() - {"limits", "batch"} == configs.keys() - LIMITS.keys() - {"api_key"}
    # None takes the client's, which has the same default.
    configs["max_response_bytes"] = inspect.signature(LMClient).parameters["max_response_bytes"].default
    for name in entries.keys() - {"limits", "model", "headers", "batch"}:
        assert entries[name] == configs[name], name


def test_every_field_arrives() -> None:
    entry = {
        **{"model": "openai/x", "api_base": URL, "api_key_env": "KEY", "transport": "litellm", "weight": 2.0},
        **{"max_parallel_requests": 3, "headers": {"x-a": "b", "x-key": {"env": "KEY"}}},
        **{"input_cost_per_token": 0.1, "output_cost_per_token": 0.2, "ca_bundle": "ca.pem"},
        "max_response_bytes": 1000,
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


def scripted(found: Fleet, **scripts: Any) -> dict[str, ScriptedTransport]:
    """Let the deployments play scripts."""
    played = {label: ScriptedTransport([step] * 10_000, 0.01) for label, step in scripts.items()}
    for label, transport in played.items():
        found.deployments[label].transport = transport
    return played


async def stopped_at(found: Fleet, within_s: float) -> tuple[float, str] | None:
    """When the fleet would stop the run, in seconds from now, and why."""
    start = now()
    while now() - start < within_s:
        await asyncio.sleep(0.25)
        if reason := found.unreachable(now()):
            return now() - start, reason
    return None


class TestAway:
    @virtual
    async def test_one_that_refuses_beside_one_that_is_away_does_not_keep_the_run_up(self) -> None:
        models = {"m": {"deployments": ["a", "b"], "max_wait_unreachable": 20.0}}
        found = fleet({"a": {}, "b": {}}, models=models)
        scripted(found, a=AuthenticationError("wrong key", status_code=401), b=APIConnectionError("refused"))
        tasks = [asyncio.create_task(found.models["m"].generate(request())) for _ in range(4)]
        stopped = await stopped_at(found, 100.0)
        assert stopped is not None
        assert stopped[0] == pytest.approx(20, abs=2)
        assert "wrong key" in stopped[1]
        assert "refused" in stopped[1]
        found.stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    @virtual
    async def test_each_model_has_its_own_patience_with_a_deployment_that_they_share(self) -> None:
        patience = {"m": 0.0, "short": 10.0, "long": 40.0}
        models = {name: {"deployments": ["a"], "max_wait_unreachable": s} for name, s in patience.items()}
        found = fleet({"a": {}}, models=models)
        scripted(found, a=connection_failed("a", "http://a", NO_ANSWER, made=False))
        tasks = {name: asyncio.create_task(found.models[name].generate(request())) for name in ("m", "long")}
        stopped = await stopped_at(found, 100.0)
        assert stopped is not None
        assert stopped[0] == pytest.approx(40, abs=2)
        assert "models.long.max_wait_unreachable" in stopped[1]
        assert isinstance(tasks["m"].exception(), APIConnectionError)
        tasks["short"] = asyncio.create_task(found.models["short"].generate(request()))
        stopped = await stopped_at(found, 20.0)
        assert stopped is not None
        assert "models.short.max_wait_unreachable" in stopped[1]
        found.stop()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
