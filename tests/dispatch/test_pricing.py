from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot

from infermesh.dispatch.pricing import Prices
from infermesh.results import TokenUsage
from infermesh.wire.usage import usage_of

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


# infermesh's prefix → the provider's id in the list.
PROVIDERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "mistral": "mistral",
    "groq": "groq",
    "xai": "x-ai",
}
# What an answer says of itself → genai-prices' words for it.
TIERS: dict[str, dict[str, str]] = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
}
COUNTS: dict[str, Any] = {"cache_write_tokens": 300, "cache_write_1h_tokens": 100}


def listed_models(prefix: str) -> list[str]:
    """Models by the token of a provider, of those that the list finds by their own id."""
    (provider,) = [each for each in get_snapshot().providers if each.id == PROVIDERS[prefix]]
    return [each.id for each in provider.models if provider.find_model(each.id) is each]


def by_the_list(name: str, prefix: str, context: dict[str, str] | None, **counts: Any) -> tuple[float, bool]:
    """What genai-prices itself says, and whether it has a price for the context at all."""
    usage = Usage(input_tokens=2000, output_tokens=100, cache_read_tokens=400, output_reasoning_tokens=60, **counts)
    found = calc_price(usage, name, provider_id=PROVIDERS[prefix], price_context=context)
    variants = found.model.price_variants or ()
    today = datetime.now(tz=UTC)
    hit = any(
        all((context or {}).get(key) == value for key, value in each.when.items())
        and (each.constraint is None or each.constraint.active(today))
        for each in variants
    )
    return float(found.total_price), hit


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("prefix", PROVIDERS)
def test_every_tier_of_every_model_is_as_the_list_says(prefix: str, tier: str) -> None:
    prices, seen = Prices(), 0
    for name in listed_models(prefix):
        counts = COUNTS if prefix == "anthropic" else {}
        dollars, hit = by_the_list(name, prefix, TIERS[tier], **counts)
        if hit and "transcribe" not in name and "whisper" not in name:
            seen += 1
            usage = TokenUsage(2000, 100, 2100, 60, 400, {"service_tier": tier, **counts})
            assert prices.cost(f"{prefix}/{name}", usage) == pytest.approx(dollars, rel=1e-9), name
    expected = {
        "openai": {"batch", "flex", "priority", "fast"},
        "gemini": {"batch", "flex", "priority"},
        "xai": {"batch"},
        "groq": {"batch"},
        "mistral": {"batch"},
        "anthropic": {"batch"},
    }
    assert bool(seen) == (tier in expected[prefix])


@pytest.mark.parametrize(
    ("model", "tier", "dollars"),
    [  # a million tokens read, 400,000 of them cached, and 100,000 written; the providers' pages, November 2026
        ("openai/gpt-5-mini", None, 0.36),
        ("openai/gpt-5-mini", "batch", 0.18),
        ("openai/gpt-5-mini", "flex", 0.18),
        ("openai/gpt-5-mini", "FLEX", 0.18),
        ("anthropic/claude-sonnet-4-5", None, 6.09),
        ("anthropic/claude-sonnet-4-5", "batch", 3.045),
        ("gemini/gemini-2.5-flash", None, 0.442),
        ("gemini/gemini-2.5-flash", "batch", 0.227),  # what is cached stays at its standard price
        ("mistral/mistral-large-latest", "batch", 1.3),  # not in the list: half, as the guide says
        ("openai/text-embedding-3-small", "batch", 0.01),  # the same
        ("groq/llama-3.3-70b-versatile", "flex", 0.669),  # flex is the on-demand price there
        ("openai/text-embedding-3-small", "priority", None),
        ("anthropic/claude-sonnet-4-5", "priority", None),
    ],
)
def test_tiers(model: str, tier: str | None, dollars: float | None) -> None:
    details: Any = None if tier is None else {"service_tier": tier}
    usage = TokenUsage(1_000_000, 100_000, 1_100_000, cached_tokens=400_000, details=details)
    assert Prices().cost(model, usage) == (None if dollars is None else pytest.approx(dollars))


def test_what_the_list_does_not_say_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    prices = Prices()
    with caplog.at_level(logging.WARNING, "infermesh"):
        for _ in range(3):
            for name, tier in (
                ("gpt-4.1-mini", "flex"),
                ("gpt-4.1-mini", "odd"),
                ("gpt-4.1-mini", "batch"),
                ("o3", "odd"),
            ):
                prices.cost(f"openai/{name}", TokenUsage(10, 1, details={"service_tier": tier}))
    assert [line.split(":")[0] for line in caplog.messages] == ["openai/gpt-4.1-mini"] * 2 + ["openai/o3"]
    assert "its tier flex: these answers count as 0.5 of the standard price" in caplog.messages[0]
    assert "its tier odd: what these answers cost is not known" in caplog.messages[1]


def test_given_prices_and_a_tier() -> None:
    prices = Prices()
    usage = TokenUsage(1000, 100, 1100, details={"service_tier": "batch", "reported_cost": 9.0})
    # What is given holds for every tier; the other half is the list's, for this one.
    half = prices.cost("openai/gpt-4.1-mini", usage, output_cost_per_token=1.0)
    assert half == pytest.approx(100 + 1000 * 0.2e-6)
    assert prices.cost("openai/gpt-4.1-mini", usage, input_cost_per_token=0.0) == pytest.approx(100 * 0.8e-6)


def _chat(prompt: int, completion: int, total: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def anthropic_usage(**more: Any) -> dict[str, Any]:
    written = {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100}
    kept = {"cache_creation_input_tokens": 300, "cache_read_input_tokens": 400, "cache_creation": written}
    return {"usage": {"input_tokens": 1000, "output_tokens": 10, **kept, **more}}


SONNET = 1000 * 3e-6 + 400 * 0.3e-6 + 200 * 3.75e-6 + 100 * 6e-6 + 10 * 15e-6


@pytest.mark.parametrize(
    ("model", "body", "dollars"),
    [
        ("anthropic/claude-sonnet-4-5", anthropic_usage(service_tier="standard"), SONNET),
        ("anthropic/claude-sonnet-4-5", anthropic_usage(service_tier="batch"), SONNET / 2),
        ("anthropic/claude-opus-4-8", anthropic_usage(speed="standard"), SONNET * 5 / 3),
        ("anthropic/claude-opus-4-8", anthropic_usage(speed="fast"), SONNET * 10 / 3),
        # Reasoning within the completion, as OpenAI counts, and beside it, as xAI does: both are paid once.
        (
            "openai/o3",
            {"usage": {**_chat(100, 900, 1000), "completion_tokens_details": {"reasoning_tokens": 800}}},
            100 * 2e-6 + 900 * 8e-6,
        ),
        (
            "xai/grok-4.3",
            {"usage": {**_chat(100, 100, 1000), "completion_tokens_details": {"reasoning_tokens": 800}}},
            100 * 1.25e-6 + 900 * 2.5e-6,
        ),
        # Here reasoning has a price of its own, and is no part of what the completion costs.
        (
            "perplexity/sonar-deep-research",
            {"usage": {**_chat(100, 900, 1000), "completion_tokens_details": {"reasoning_tokens": 800}}},
            100 * 2e-6 + 100 * 8e-6 + 800 * 3e-6,
        ),
    ],
)
def test_what_answers_say_of_themselves(model: str, body: dict[str, Any], dollars: float) -> None:
    usage = usage_of(body)
    assert usage is not None
    assert Prices().cost(model, usage) == pytest.approx(dollars, rel=1e-9)
