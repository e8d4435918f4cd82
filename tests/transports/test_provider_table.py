"""The table of providers agrees with the libraries whose names and prices it goes by, and with the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from genai_prices.data_snapshot import get_snapshot

from infermesh.transports.provider_table import _TABLE, PROVIDERS, named_bare, split_model

DOCS = Path(__file__).resolve().parents[2] / "docs"
# In LiteLLM's price list a provider of its own, in its list of providers part of bedrock.
NOT_LISTED = {"bedrock_converse"}


def test_each_name_stands_once() -> None:
    names = [name for provider in _TABLE for name in provider.names]
    assert len(names) == len(set(names)) == len(PROVIDERS)


@pytest.mark.parametrize("provider", [provider for provider in _TABLE if provider.prices], ids=lambda p: p.names[0])
def test_prices_are_those_of_a_provider_in_the_list(provider: object) -> None:
    assert getattr(provider, "prices", None) in {listed.id for listed in get_snapshot().providers}


@pytest.mark.long
def test_litellm_knows_every_name_that_is_left_to_it() -> None:
    code = "import litellm; print(*(getattr(name, 'value', name) for name in litellm.provider_list))"
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    known = {*done.stdout.split(), *NOT_LISTED}
    for provider in _TABLE:
        names = provider.names if provider.litellm_name is None else (provider.litellm_name,)
        assert set(names) <= known


def test_a_native_provider_has_a_url_or_is_ones_own_server() -> None:
    for provider in _TABLE:
        if provider.wire == "openai" and provider.prices is not None:
            assert provider.base_url is not None, provider.names
            assert provider.key_vars, provider.names
        if provider.base_url is not None:
            assert provider.base_url.startswith(("https://", "http://localhost:"))


def test_every_native_prefix_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for provider in _TABLE:
        if provider.wire == "openai":
            assert [name for name in provider.names if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("openai/gpt-4.1", ("openai", "gpt-4.1")),
        ("hosted_vllm/meta-llama/X", ("hosted_vllm", "meta-llama/X")),
        ("meta-llama/X", ("", "meta-llama/X")),
        ("gpt-4.1", ("", "gpt-4.1")),
        ("openai/", ("openai", "")),
        ("openai", ("", "openai")),
        ("", ("", "")),
    ],
)
def test_a_model_is_split_where_its_provider_is_known(model: str, parts: tuple[str, str]) -> None:
    assert split_model(model) == parts


def test_names_that_are_known_without_a_provider() -> None:
    openai = named_bare("gpt-4.1-mini")
    assert openai is not None
    assert openai.names[0] == "openai"
    assert named_bare("llama-3-8b") is None
