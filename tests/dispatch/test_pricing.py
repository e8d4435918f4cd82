from __future__ import annotations

import pytest
from genai_prices import Usage, calc_price

from infermesh.dispatch.pricing import Prices
from infermesh.results import TokenUsage

USAGE = TokenUsage(1000, 100, 1100, cached_tokens=400)


def listed(name: str, provider: str, cached: int | None = 400) -> float:
    usage = Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=cached)
    return float(calc_price(usage, name, provider_id=provider).total_price)


@pytest.mark.parametrize(
    ("model", "name", "provider"),
    [
        ("openai/gpt-4.1-mini", "gpt-4.1-mini", "openai"),
        ("gpt-4.1-mini", "gpt-4.1-mini", "openai"),
        ("o3", "o3", "openai"),
        ("text-embedding-3-small", "text-embedding-3-small", "openai"),
        ("anthropic/claude-3-5-sonnet-20241022", "claude-3-5-sonnet-20241022", "anthropic"),
        ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5", "anthropic"),  # tiers
        ("gemini/gemini-2.5-pro", "gemini-2.5-pro", "google"),
        ("deepseek/deepseek-chat", "deepseek-chat", "deepseek"),  # by the hour of the day
        ("mistral/mistral-large-latest", "mistral-large-latest", "mistral"),
    ],
)
@pytest.mark.parametrize("cached", [None, 400])
def test_the_list(model: str, name: str, provider: str, cached: int | None) -> None:
    usage = TokenUsage(1000, 100, 1100, cached_tokens=cached)
    prices = Prices()
    for _ in range(2):
        assert prices.cost(model, usage) == pytest.approx(listed(name, provider, cached), rel=1e-9)


@pytest.mark.parametrize(
    "model",
    ["hosted_vllm/gpt-4.1-mini", "meta-llama/X", "vllm/x", "openai/nope", "nope", "", "/", "whisper-1", "openai/"],
)
def test_unknown(model: str) -> None:
    prices = Prices()
    assert prices.cost(model, USAGE) is None
    assert prices.cost(model, USAGE) is None


def test_given_prices() -> None:
    prices = Prices()
    assert prices.cost("any", USAGE, input_cost_per_token=0.01, output_cost_per_token=0.1) == pytest.approx(20.0)
    assert prices.cost("any", USAGE, input_cost_per_token=0.01) == pytest.approx(10.0)
    assert prices.cost("any", USAGE, output_cost_per_token=0.0) == 0.0
    mixed = prices.cost("openai/gpt-4.1-mini", USAGE, output_cost_per_token=1.0)
    assert mixed == pytest.approx(100 + 600 * 0.4e-6 + 400 * 0.1e-6)


def test_a_transcription_model_is_priced_as_audio() -> None:
    assert Prices().cost("gpt-4o-transcribe", TokenUsage(1_000_000, 0, 1_000_000)) == pytest.approx(6.0)


def test_no_usage_no_cost() -> None:
    assert Prices().cost("gpt-4.1-mini", TokenUsage()) == 0.0
