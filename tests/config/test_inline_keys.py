"""A key in a declaration is refused wherever it stands; the message names the place, and not the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infermesh.config.compose import compose
from infermesh.config.load import load
from infermesh.config.overrides import refuse_inline
from infermesh.config.schema import HeaderFromEnv
from infermesh.errors import ConfigError
from infermesh.simulator import Simulator
from tests.support import ask, experiment, generate, here, run_folders, texts, write_experiment, write_jsonl

HEADERS = [
    *("x-goog-api-key", "X-Api-Key", "api-key", "authorization", "Proxy-Authorization", "Cookie", "apikey"),
    *("Ocp-Apim-Subscription-Key", "X-Auth-Token", "x-amz-security-token", "Helicone-Auth", "CF-Access-Client-Secret"),
]
# Each has the shape of a provider's key.
KEYS = [
    "AIzaSyFAKEFAKEFAKEFAKEFAKEFAKEFAKE",
    "gsk_FAKEFAKEFAKEFAKEFAKE",
    "xai-q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "sk-q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "sk-ant-api03-q8Zt4mX1vB7nK3pL9-sD2fG6hJ0wR5yTc",
    "hf_abcdefghijKLMNOPQRSTuvwxyzabcd",
    "AKIAIOSFODNN7EXAMPLE",
    "nvapi-q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "r8_q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "pplx-q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "Bearer q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc",
    "https://me:s3cretpw@host/v1",
    "https://:s3cretpw@host/v1",
    "http://q8Zt4mX1vB7nK3pL9sD2@host/v1",
    "Basic bWU6czNjcmV0cHc=",
    "xoxb-1234567890-q8Zt4mX1vB7nK3pL9sD2",
    "s3://bucket/rows.parquet?s3_secret_access_key=abcdefgh",
    "-----BEGIN RSA PRIVATE KEY-----\\nMIIabc",
    "CREATE SECRET one (TYPE s3, KEY_ID 'abc', SECRET 'def')",
    "set s3_secret_access_key = 'abcdefgh'",
]


def declaration(**deployment: Any) -> dict[str, Any]:
    mapping = experiment("http://127.0.0.1:9/v1", {"a": generate()})
    mapping["deployments"]["d"].update(deployment)
    return mapping


def places(value: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a key may have been put: its path in the config, and the declaration."""
    yield "deployments.d.headers.x-any", declaration(headers={"x-any": value})
    yield "deployments.d.headers.x-any.env", declaration(headers={"x-any": {"env": value}})
    yield "deployments.d.api_key_env", declaration(api_key_env=value)
    yield "deployments.d.api_base", declaration(api_base=value)
    yield "deployments.d.headers.…", declaration(headers={value: "x"})
    mapping = declaration()
    mapping["models"]["m"]["params"] = {"extra_body": {"deep": [{"any": value}]}}
    yield "models.m.params.extra_body.deep.0.any", mapping
    mapping = declaration()
    mapping["stages"]["a"]["prompt"] = f"Call it with {value}, please: {{{{ text }}}}"
    yield "stages.a.prompt", mapping


@pytest.mark.parametrize("key", KEYS, ids=[key[:8] for key in KEYS])
def test_a_value_with_the_shape_of_a_key(key: str) -> None:
    for path, mapping in places(key):
        with pytest.raises(ConfigError) as caught:
            load(mapping)
        text = str(caught.value)
        assert text.startswith(f"{path}: "), text
        assert key not in text
        assert "environment" in text
        assert "\n" not in text


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("value", ["abc", 12345, "two words"])
def test_a_header_with_the_name_of_a_key(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(declaration(headers={name: value}))
    text = str(caught.value)
    assert text.startswith(f"deployments.d.headers.{name}: a key in the config")
    assert f"{name}: {{env: NAME}}" in text
    assert str(value) not in text


@pytest.mark.parametrize("headers", ["x-api-key: abc-def", ["x-api-key: abc-def"], {"x-api-key": ["abc-def"]}])
def test_headers_of_another_form_are_not_repeated(headers: Any) -> None:
    with pytest.raises(ConfigError, match=r"deployments\.d\.headers") as caught:
        load(declaration(headers=headers))
    assert "abc-def" not in str(caught.value)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_may_name_a_variable(name: str) -> None:
    found = load(declaration(headers={name: {"env": "MY_KEY"}, "x-team": "blue"}))
    assert found.deployments["d"].headers == {name: HeaderFromEnv(env="MY_KEY"), "x-team": "blue"}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-a": 3}, "deployments.d.headers.x-a: expected text, or {env: NAME}"),
        ({"x-a": {"env": ""}}, "deployments.d.headers.x-a.env: string should have at least 1 character"),
        ({"x-a": {"env": "A", "envv": "B"}}, "deployments.d.headers.x-a.envv: unknown key. Did you mean 'env'?"),
    ],
)
def test_a_header_that_is_neither(headers: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(declaration(headers=headers))
    assert str(caught.value) == said


def test_names_that_only_sound_like_keys_are_taken() -> None:
    mapping = declaration(headers={"X-Title": "tickets", "OpenAI-Organization": "org-AbCdEf0123456789abcdef"})
    mapping["models"]["m"]["params"] = {"prompt_cache_key": "tickets-v1", "stop_token": "</s>", "max_tokens": 5}
    mapping["stages"]["p"] = {"kind": "python", "function": "m:f", "columns": {"token": "VARCHAR", "api_key": "JSON"}}
    mapping["simulator"] = {"api_key": "any-word"}
    load(mapping)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("deployments.d.headers.x-goog-api-key=abc", "deployments.d.headers.x-goog-api-key"),
        ("++deployments.d.headers={x-api-key: abc, x-a: b}", "deployments.d.headers.x-api-key"),
        ("deployments.d.headers.x-api-key=abc,def", "deployments.d.headers.x-api-key"),
        ("deployments.d.headers=choice({x-a: b},{cookie: 'abc'})", "deployments.d.headers.cookie"),
        ("deployments.d.headers.x-a='gsk_FAKEFAKEFAKEFAKEFAKE',b", "deployments.d.headers.x-a"),
        ("stages.a.prompt='Use AIzaSyFAKEFAKEFAKEFAKEFAKE'", "stages.a.prompt"),
        ("stages.a.prompt='not closed gsk_FAKEFAKEFAKEFAKEFAKE", "stages.a.prompt"),
        ("deployments.d.api_key=abc", "deployments.d.api_key"),
        ("+deployments.d.headers.authorization=${oc.env:HOME,abc}", "deployments.d.headers.authorization"),
        ("+deployments.d.headers.x-key='abc ${oc.env:HOME}'", "deployments.d.headers.x-key"),
        ("+deployments.d.headers.x-a='${oc.env:HOME,gsk_FAKEFAKEFAKEFAKEFAKE}'", "deployments.d.headers.x-a"),
        ("hydra.job.env_set.ANY_API_KEY=abc", "hydra.job.env_set.ANY_API_KEY"),
        ("models.m.params.extra_body.azure_ad_token=abc", "models.m.params.extra_body.azure_ad_token"),
    ],
)
def test_overrides_and_what_they_sweep_over(override: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_inline([override])
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert not [part for part in ("abc", "FAKE", "oc.env") if part in text.replace("${oc.env:NAME}", "")]


@pytest.mark.parametrize(
    "override",
    [
        *("+deployments.d.headers.authorization=${oc.env:ANY}", "+deployments.d.headers.x-key='Bearer ${oc.env:ANY}'"),
        *("models.m.params.aws_secret_access_key=${oc.env:ANY}", "deployments.d.api_base='http://${oc.env:A}@host/v1'"),
        *("deployments.d.headers.cookie='session=${oc.env:ANY}'", "deployments.d.headers.x-key=${limits.any}"),
        *("deployments.d.headers.x-api-key.env=MY_KEY", "deployments.d.headers={x-api-key:{env:MY_KEY}}", "-m"),
        *("stages.a.max_parallel_requests=1,2", "a=range(1,5)", "a=glob(*)", "--cfg", "job", "+experiment=a,b"),
    ],
)
def test_overrides_without_a_key(override: str) -> None:
    refuse_inline([override])


class TestRuns:
    @pytest.fixture
    def project(self, tmp_path: Path, simulator: Simulator) -> Path:
        write_jsonl(tmp_path / "rows.jsonl", texts(2))
        mapping = experiment(simulator.url, {"a": generate()})
        mapping["deployments"]["d"]["headers"] = {"x-goog-api-key": KEYS[0]}
        write_experiment(tmp_path, mapping)
        return tmp_path

    @pytest.mark.parametrize("sweep", [[], ["-m", "stages.a.max_parallel_requests=1,2"]])
    def test_nothing_is_written(self, project: Path, sweep: list[str]) -> None:
        found = here("run", *sweep, "+experiment=mine", cwd=project)
        assert found.returncode == 1
        assert "deployments.d.headers.x-goog-api-key: a key in the config" in found.stderr
        assert KEYS[0] not in found.stderr + found.stdout
        assert [path for path in (project / "outputs").rglob("*") if path.is_file()] == []

    def test_composing_alone_finds_it_when_it_is_loaded(self, project: Path) -> None:
        with pytest.raises(ConfigError, match="x-goog-api-key"):
            load(compose(["+experiment=mine"], cwd=project).mapping)

    def test_a_header_from_the_environment_is_sent_and_written_nowhere(
        self, tmp_path: Path, start_simulator: Any
    ) -> None:
        secret = "q8Zt4mX1vB7nK3pL9sD2"
        write_jsonl(tmp_path / "rows.jsonl", texts(2))
        mapping = experiment(start_simulator(api_key=secret).url, {"a": generate()})
        mapping["deployments"]["d"]["headers"] = {"authorization": {"env": "MY_HEADER"}}
        write_experiment(tmp_path, mapping)
        found = here("run", "+experiment=mine", cwd=tmp_path, MY_HEADER=f"Bearer {secret}")
        assert found.returncode == 0, found.stderr
        (folder,) = run_folders(tmp_path)
        assert ask(folder, "SELECT count(*) FROM a WHERE status = 'done'") == [(2,)]
        kept = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        assert kept["deployments"]["d"]["headers"] == {"authorization": {"env": "MY_HEADER"}}
        assert not [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]

    def test_a_missing_variable_is_named_before_anything_is_sent(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "rows.jsonl", texts(2))
        write_experiment(tmp_path, declaration(headers={"x-api-key": {"env": "NOT_SET_AT_ALL"}}))
        found = here("run", "+experiment=mine", cwd=tmp_path)
        assert found.returncode == 1
        assert "NOT_SET_AT_ALL that headers.x-api-key names is not set" in found.stderr
        assert run_folders(tmp_path) == []
