"""The rule that picks transport, name, URL and key."""

from __future__ import annotations

import subprocess
import sys

import pytest

from infermesh.config.deployment import DeploymentConfig
from infermesh.errors import AuthenticationError, ConfigError
from infermesh.transports import LiteLLMTransport, NativeTransport, make_transport
from infermesh.transports.providers import resolve_deployment
from infermesh.wire.requests import generation_request

OPENAI = "https://api.openai.com/v1"
HOST = "http://host1:8000/v1"
KEYS = {
    "OPENAI_API_KEY": "sk-openai",
    "HOSTED_VLLM_API_KEY": "vllm-key",
    "GROQ_API_KEY": "gsk-key",
    "LITELLM_PROXY_API_KEY": "proxy-key",
}

# model, api_base → kind, wire model, base, key
RULES: list[tuple[str, str | None, str, str, str | None, str | None]] = [
    ("openai/gpt-4.1-mini", None, "native", "gpt-4.1-mini", OPENAI, "sk-openai"),
    ("openai/gpt-4.1-mini", HOST, "native", "gpt-4.1-mini", HOST, "sk-openai"),
    ("gpt-4.1-mini", None, "native", "gpt-4.1-mini", OPENAI, "sk-openai"),
    ("gpt-4.1-mini", OPENAI, "native", "gpt-4.1-mini", OPENAI, "sk-openai"),
    ("my-finetune", OPENAI, "native", "my-finetune", OPENAI, "sk-openai"),
    (
        "gpt-4.1-mini",
        "https://eu.api.openai.com/v1",
        "native",
        "gpt-4.1-mini",
        "https://eu.api.openai.com/v1",
        "sk-openai",
    ),
    ("gpt-4.1-mini", HOST, "native", "gpt-4.1-mini", HOST, None),
    (
        "gpt-4.1",
        "https://api.openai.com.evil.example/v1",
        "native",
        "gpt-4.1",
        "https://api.openai.com.evil.example/v1",
        None,
    ),
    ("text-embedding-3-small", None, "native", "text-embedding-3-small", OPENAI, "sk-openai"),
    ("whisper-1", None, "native", "whisper-1", OPENAI, "sk-openai"),
    ("o3", None, "native", "o3", OPENAI, "sk-openai"),
    ("hosted_vllm/meta-llama/X", HOST, "native", "meta-llama/X", HOST, "vllm-key"),
    ("vllm/X", HOST, "native", "X", HOST, "vllm-key"),
    ("sglang/X", HOST, "native", "X", HOST, None),
    ("meta-llama/X", HOST, "native", "meta-llama/X", HOST, None),
    ("llama-3-8b", HOST, "native", "llama-3-8b", HOST, None),
    ("litellm_proxy/X", HOST, "native", "X", HOST, "proxy-key"),
    ("custom_openai/X", HOST, "native", "X", HOST, None),
    ("lm_studio/X", None, "native", "X", "http://localhost:1234/v1", None),
    ("ollama/llama3", "http://localhost:11434/v1", "native", "llama3", "http://localhost:11434/v1", None),
    ("ollama/llama3", "http://localhost:11434", "litellm", "ollama/llama3", "http://localhost:11434", None),
    ("groq/llama-3.3", None, "native", "llama-3.3", "https://api.groq.com/openai/v1", "gsk-key"),
    ("openrouter/openai/gpt-4o", None, "native", "openai/gpt-4o", "https://openrouter.ai/api/v1", None),
    ("anthropic/claude-x", None, "litellm", "anthropic/claude-x", None, None),
    ("anthropic/claude-x", f"{HOST}/", "litellm", "anthropic/claude-x", HOST.removesuffix("/v1"), None),
    ("claude-x", None, "litellm", "claude-x", None, None),
    ("azure/dep", "https://x.openai.azure.com", "litellm", "azure/dep", "https://x.openai.azure.com", None),
    ("bedrock/anthropic.claude", None, "litellm", "bedrock/anthropic.claude", None, None),
    ("eu.anthropic.claude-x", None, "litellm", "eu.anthropic.claude-x", None, None),
]


@pytest.mark.parametrize(("model", "api_base", "kind", "wire_model", "base", "key"), RULES)
def test_the_rule(
    model: str, api_base: str | None, kind: str, wire_model: str, base: str | None, key: str | None
) -> None:
    found = resolve_deployment(DeploymentConfig(model, api_base), KEYS)
    assert (found.kind, found.wire_model, found.api_base, found.api_key) == (kind, wire_model, base, key)


@pytest.mark.parametrize(
    ("model", "api_base", "wire_model"),
    [
        ("hosted_vllm/X", HOST, "hosted_vllm/X"),
        ("vllm/X", HOST, "hosted_vllm/X"),
        ("meta-llama/X", HOST, "hosted_vllm/meta-llama/X"),
        ("openai/gpt-4.1", None, "openai/gpt-4.1"),
    ],
)
def test_forced_onto_litellm(model: str, api_base: str | None, wire_model: str) -> None:
    found = resolve_deployment(DeploymentConfig(model, api_base, transport="litellm"), {})
    assert (found.kind, found.wire_model) == ("litellm", wire_model)


def test_forced_onto_native() -> None:
    found = resolve_deployment(
        DeploymentConfig("anthropic/claude-x", "https://api.anthropic.com/v1", transport="native"), KEYS
    )
    assert (found.kind, found.wire_model, found.api_key) == ("native", "claude-x", None)


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_openais_base_from_the_environment(variable: str) -> None:
    environ = {**KEYS, variable: "http://proxy:4000/v1/"}
    for model in ("openai/gpt-4.1", "gpt-4.1"):
        found = resolve_deployment(DeploymentConfig(model), environ)
        assert (found.api_base, found.api_key) == ("http://proxy:4000/v1/", "sk-openai")
    assert resolve_deployment(DeploymentConfig("any", "http://proxy:4000/v1"), environ).api_key == "sk-openai"
    assert resolve_deployment(DeploymentConfig("any", HOST), environ).api_key is None


def test_keys_by_precedence() -> None:
    environ = {**KEYS, "MINE": "mine"}
    assert (
        resolve_deployment(DeploymentConfig("openai/x", api_key="inline", api_key_env="MINE"), environ).api_key
        == "inline"
    )
    assert resolve_deployment(DeploymentConfig("openai/x", api_key_env="MINE"), environ).api_key == "mine"
    assert resolve_deployment(DeploymentConfig("anthropic/x", api_key_env="MINE"), environ).api_key == "mine"
    assert "mine" not in repr(resolve_deployment(DeploymentConfig("openai/x", api_key_env="MINE"), environ))


@pytest.mark.parametrize("environ", [{}, {"MINE": ""}])
def test_a_named_variable_that_is_not_set(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"gpu-0.*MINE"):
        make_transport(DeploymentConfig("x", HOST, api_key_env="MINE"), label="gpu-0", environ=environ)


def test_a_headers_value_from_a_variable() -> None:
    config = DeploymentConfig("hosted_vllm/x", HOST, headers={"x-team": "blue", "x-goog-api-key": {"env": "MINE"}})
    found = resolve_deployment(config, {"MINE": "my key"})
    assert found.headers == {"x-team": "blue", "x-goog-api-key": "my key"}
    for shown in (repr(found), repr(config)):
        assert "my key" not in shown


@pytest.mark.parametrize("environ", [{}, {"MINE": ""}])
def test_a_headers_variable_that_is_not_set(environ: dict[str, str]) -> None:
    config = DeploymentConfig("x", HOST, headers={"x-goog-api-key": {"env": "MINE"}})
    with pytest.raises(ConfigError, match=r"gpu-0.*MINE that headers\.x-goog-api-key names is not set"):
        make_transport(config, label="gpu-0", environ=environ)


@pytest.mark.parametrize("value", [3, None, {"variable": "MINE"}, {}])
def test_a_headers_value_that_is_none(value: object) -> None:
    with pytest.raises(ConfigError, match=r"gpu-0.*headers\.x-a: expected text, or {env: NAME}"):
        make_transport(DeploymentConfig("x", HOST, headers={"x-a": value}), label="gpu-0", environ={})


@pytest.mark.parametrize("key", ["q8Zt4mX1vB7nK3pL9sD2fG6hJ0wR5yTc", "0f3e2d1c5b6a47898a9b0c1d2e3f4a5b", "two words"])
def test_a_key_in_the_place_of_a_variables_name_is_not_repeated(key: str) -> None:
    for config in (
        DeploymentConfig("x", HOST, api_key_env=key),
        DeploymentConfig("x", HOST, headers={"x-a": {"env": key}}),
    ):
        with pytest.raises(ConfigError, match="expected the name of an environment variable") as caught:
            make_transport(config, label="gpu-0", environ={})
        assert key not in str(caught.value)


def test_a_header_may_be_the_key() -> None:
    config = DeploymentConfig("openai/x", headers={"Authorization": {"env": "MINE"}})
    assert resolve_deployment(config, {"MINE": "k"}).missing_key is None
    assert resolve_deployment(DeploymentConfig("openai/x"), {"MINE": "k"}).missing_key == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DeploymentConfig("hosted_vllm/X"), "api_base"),
        (DeploymentConfig("X", transport="native"), "api_base"),
        (DeploymentConfig("hosted_vllm/X", "host:8000/v1"), "http://host:8000/v1"),
        (DeploymentConfig("openai/"), "no name"),
        (DeploymentConfig("opnai/gpt-4.1"), "Did you mean 'openai/gpt-4.1'?"),
        (DeploymentConfig("meta-llama/X"), "no provider 'meta-llama' is known, and there is no api_base"),
        (DeploymentConfig("llama-3-8b"), "it names no provider, and there is no api_base"),
        (DeploymentConfig("x", f"{HOST}/chat/completions"), f"write {HOST}"),
        (DeploymentConfig("x", f"{HOST}/embeddings/"), "api_base ends in /embeddings"),
        (DeploymentConfig("x", f"{HOST}/responses?key=secret"), "api_base ends in /responses"),
    ],
)
def test_wrong_declarations(config: DeploymentConfig, said: str) -> None:
    with pytest.raises(ConfigError, match="gpu-0") as caught:
        make_transport(config, label="gpu-0", environ={})
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_who_names_litellm_asks_litellm() -> None:
    found = resolve_deployment(DeploymentConfig("brand-new/x", transport="litellm"), {})
    assert (found.kind, found.wire_model) == ("litellm", "brand-new/x")


async def test_a_missing_key_fails_the_request_not_the_construction() -> None:
    transport = make_transport(DeploymentConfig("openai/gpt-4.1"), label="gpu-0", environ={})
    with pytest.raises(AuthenticationError, match=r"gpu-0.*OPENAI_API_KEY"):
        await transport.send(generation_request("chat_completion", "hi", {}), 1.0)
    await transport.aclose()


def test_kinds() -> None:
    assert isinstance(make_transport(DeploymentConfig("x", HOST), label="a", environ={}), NativeTransport)
    assert isinstance(make_transport(DeploymentConfig("gemini/x"), label="a", environ={}), LiteLLMTransport)


def test_importing_transports_loads_no_http_stack() -> None:
    script = (
        "import sys, infermesh.transports; "
        "names = ('litellm', 'python_socks', 'truststore', 'openai', 'genai_prices'); "
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
