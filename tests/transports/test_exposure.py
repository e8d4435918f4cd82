"""Keys over plain http:// to hosts that are not local: one line says so."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from infermesh import LMClient
from infermesh.config.deployment import DeploymentConfig
from infermesh.transports import exposure, make_transport
from infermesh.transports.exposure import is_local

from .conftest import KEY

AWAY = "http://gpu.example.com:8000/v1"


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    exposure._warn.cache_clear()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "unencrypted" in record.getMessage()]


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0"),
        *("10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.0.9", "169.254.1.1", "100.64.0.1", "fd00::1"),
        *("fe80::1%eth0", "gpu-3", "gpu.local", "vllm.default.svc", "vllm.default.svc.cluster.local"),
        *("metadata.internal", "nas.lan", "host.docker.internal", "box.home.arpa"),
    ],
)
def test_what_is_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host",
    [
        *("gpu.example.com", "local.example.com", "notlocal.evil", "internal.io", "10.0.0.1.example.com"),
        *("8.8.8.8", "172.32.0.1", "172.15.0.1", "192.169.0.1", "11.0.0.1", "100.128.0.1", "203.0.113.7"),
        *("2001:db8::1", "2606:4700::1111", "::ffff:8.8.8.8"),
    ],
)
def test_what_is_not(host: str) -> None:
    assert not is_local(host)


@pytest.mark.parametrize("kind", ["native", "litellm"])
@pytest.mark.parametrize(
    "given",
    [
        {"api_key": KEY},
        {"api_key_env": "TEAM"},
        {"headers": {"x-api-key": KEY}},
        {"headers": {"X-Odd": {"env": "TEAM"}}},
        {"api_base": "HTTP://user:hunter2@gpu.example.com:8000/v1"},
    ],
)
def test_a_key_that_goes_out_in_the_open_is_told_once(
    kind: str, given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "native" and "api_base" in given:
        given = {"api_base": given["api_base"].replace("HTTP", "http")}
    config = DeploymentConfig(**{"model": "hosted_vllm/m", "api_base": AWAY, "transport": kind, **given})
    with caplog.at_level(logging.WARNING, "infermesh"):
        for _ in range(2):
            make_transport(config, label="gpu-0", environ={"TEAM": KEY})
    (line,) = said(caplog)
    assert "gpu-0: its key goes to http://gpu.example.com:8000 unencrypted" in line
    assert "https://" in line
    assert KEY not in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "given",
    [
        {"api_base": AWAY.replace("http:", "https:"), "api_key": KEY},
        {"api_base": "http://10.0.0.7:8000/v1", "api_key": KEY},
        {"api_base": "http://[fd00::1]:8000/v1", "api_key": KEY},
        {"api_base": AWAY},
        {"api_base": AWAY, "api_key": "EMPTY"},
        {"api_base": AWAY, "headers": {"x-team": "blue"}},
    ],
)
def test_nothing_is_said_of_what_nobody_can_read(given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "infermesh"):
        make_transport(DeploymentConfig("hosted_vllm/m", **given), label="gpu-0", environ={})
    assert said(caplog) == []


def test_each_deployment_of_a_client_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "infermesh"):
        LMClient("hosted_vllm/m", api_base=[AWAY, AWAY.replace("gpu", "tpu"), "http://gpu-3/v1"], api_key=KEY).close()
    assert [line.partition(":")[0] for line in said(caplog)] == ["replica-0", "replica-1"]
