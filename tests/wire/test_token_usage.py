"""Every provider's way to count tokens, and what an answer costs by it."""

from __future__ import annotations

from typing import Any

import pytest

from infermesh.dispatch.pricing import Prices
from infermesh.results import TokenUsage
from infermesh.wire.usage import count, together, usage_of

# Prices of one token, so large that a mistake of one shows.
IN, OUT = 1.0, 1000.0


def chat(prompt: Any, completion: Any, total: Any = None, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(chat(100, 810, 910, completion_tokens_details={"reasoning_tokens": 800}), (100, 810, 800, None),
                     id="OpenAI: reasoning inside"),
        pytest.param(chat(100, 10, 910, completion_tokens_details={"reasoning_tokens": 800}), (100, 810, 800, None),
                     id="xAI: reasoning beside"),
        pytest.param(chat(100, 10, 910), (100, 810, 800, None), id="Gemini: thoughts in the total alone"),
        pytest.param(chat(100, 10, 910, completion_tokens_details={"reasoning_tokens": 5}), (100, 15, 5, None),
                     id="a total that reasoning does not explain"),
        pytest.param(chat(100, 10, 110, prompt_tokens_details={"cached_tokens": 90}), (100, 10, None, 90), id="OpenAI"),
        pytest.param(chat(100, 10, 110, prompt_cache_hit_tokens=90, prompt_cache_miss_tokens=10), (100, 10, None, 90),
                     id="DeepSeek"),
        pytest.param(chat(100, 10, 110, cached_tokens=90), (100, 10, None, 90), id="Moonshot"),
        pytest.param({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 80,
                      "cache_creation_input_tokens": 10}, (100, 5, None, 80), id="Anthropic: beside"),
        pytest.param(chat(100, 5, 105, cache_read_input_tokens=80, cache_creation_input_tokens=10), (100, 5, None, 80),
                     id="LiteLLM over Anthropic: inside"),
        pytest.param({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 90}, (100, 5, None, 90),
                     id="Anthropic: three keys"),
        pytest.param({"billed_units": {"input_tokens": 3, "output_tokens": 4}}, (3, 4, None, None), id="Cohere"),
        pytest.param({"input_tokens": 9, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4},
                      "output_tokens_details": {"reasoning_tokens": 2}}, (9, 5, 2, 4), id="Responses"),
        pytest.param(chat(10.0, "5", 15.0), (10, 5, None, None), id="floats and text"),
        pytest.param(chat(100, 10, None, completion_tokens_details={"reasoning_tokens": 800}), (100, 810, 800, None),
                     id="xAI: beside, no total"),
        pytest.param(chat(100, 10, 110, completion_tokens_details={"reasoning_tokens": 800}), (100, 810, 800, None),
                     id="xAI: beside, and not in the total"),
        pytest.param(chat(100, 810, 930, completion_tokens_details={"reasoning_tokens": 0}), (100, 810, 0, None),
                     id="no thoughts, and a total that nothing explains"),
        pytest.param(chat(100, 10, 960, completion_tokens_details={"reasoning_tokens": 800}), (100, 810, 800, None),
                     id="Gemini: tool prompts in the total"),
        pytest.param(chat(100, None, 100), (100, 0, None, None), id="no completion"),
        pytest.param(chat(100, -1, 99), (100, 0, None, None), id="negative completion"),
        pytest.param({**chat(None, None), "input_tokens": 100, "output_tokens": 10}, (100, 10, None, None),
                     id="two names, one empty"),
        pytest.param({**chat(0, 0, 0), "input_tokens": 100, "output_tokens": 10}, (100, 10, None, None),
                     id="two names, one zero"),
        pytest.param({"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40, "completion_tokens": 10},
                     (100, 10, None, 60), id="DeepSeek: hits and misses alone"),
        pytest.param({"promptTokenCount": 100, "candidatesTokenCount": 10, "thoughtsTokenCount": 800,
                      "totalTokenCount": 910, "cachedContentTokenCount": 90}, (100, 810, 800, 90), id="Gemini"),
        pytest.param({"inputTokens": 10, "outputTokens": 5, "totalTokens": 105, "cacheReadInputTokens": 90},
                     (100, 5, None, 90), id="Bedrock"),
        pytest.param({"input_tokens": 10, "cache_creation_input_tokens": 5, "output_tokens": 3}, (15, 3, None, None),
                     id="Anthropic: written, none read"),
        pytest.param({"input_tokens": 100, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 50},
                      "cache_creation_input_tokens": 0}, (100, 3, None, 50), id="Responses with Anthropic's names"),
        pytest.param(chat(100, 810, 910, reasoning_tokens=800), (100, 810, 800, None), id="SGLang"),
        pytest.param(chat("10.0", "5.", None), (10, 5, None, None), id="text with a point"),
        pytest.param(chat(10, 5, -1, prompt_tokens_details={"cached_tokens": -3}), (10, 5, None, None), id="negative"),
        pytest.param(chat(10, 5, 10**30), (10, 5, None, None), id="absurd total"),
        pytest.param(chat(-5, 5, 0), None, id="negative prompt"),
        pytest.param(chat(10**30, 5), None, id="absurd prompt"),
        pytest.param(chat(True, 5), None, id="no number"),
        pytest.param(chat(float("nan"), 5), None, id="NaN"),
    ],
)  # fmt: skip
def test_counts(usage: dict[str, Any], expected: tuple[int, int, int | None, int | None] | None) -> None:
    found = usage_of({"usage": usage})
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens, found.reasoning_tokens, found.cached_tokens) == expected
    assert found.total_tokens == found.prompt_tokens + found.completion_tokens or found.total_tokens in (910, 930, 960)
    cost = Prices().cost("hosted_vllm/m", found, input_cost_per_token=IN, output_cost_per_token=OUT)
    assert cost == expected[0] * IN + expected[1] * OUT


def test_embeddings_with_a_total_alone() -> None:
    assert usage_of({"usage": {"total_tokens": 7}}, input_only=True) == TokenUsage(7, 0, 7)
    assert usage_of({"usage": {"total_tokens": 7}}) is None
    assert usage_of({"usage": {"prompt_tokens": 7, "total_tokens": 9}}, input_only=True) == TokenUsage(7, 0, 9)


@pytest.mark.parametrize(
    ("model", "body", "dollars"),
    [
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010)}, 1000 * 0.4e-6 + 10 * 1.6e-6),
        (
            "openai/gpt-4.1-mini",
            {"usage": chat(1000, 10, 1010, prompt_tokens_details={"cached_tokens": 900})},
            100 * 0.4e-6 + 900 * 0.1e-6 + 10 * 1.6e-6,
        ),
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010), "service_tier": "default"}, 416e-6),
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010), "service_tier": "flex"}, 208e-6),
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010), "service_tier": "scale"}, 416e-6),
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010), "service_tier": "on_demand"}, 416e-6),
        (
            "openai/gpt-4.1-mini",
            {"usage": chat(1000, 10, 1010), "service_tier": "priority"},
            1000 * 0.7e-6 + 10 * 2.8e-6,
        ),
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010), "service_tier": "unheard-of"}, None),
        ("openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010), "service_tier": "x" * 5000}, None),
        ("openrouter/openai/gpt-4.1-mini", {"usage": chat(1000, 10, 1010, cost=0.5)}, 0.5),
        ("openrouter/x", {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5}}, 0.5),
        ("perplexity/sonar", {"usage": chat(1000, 10, 1010, cost={"total_cost": 0.25})}, 0.25),
        (
            "anthropic/claude-sonnet-4-5",
            {
                "usage": chat(
                    1000, 10, 1010, prompt_tokens_details={"cached_tokens": 100}, cache_creation_input_tokens=200
                )
            },
            700 * 3e-6 + 100 * 0.3e-6 + 200 * 3.75e-6 + 10 * 15e-6,
        ),
    ],
)
def test_listed_prices(model: str, body: dict[str, Any], dollars: float | None) -> None:
    found = usage_of(body)
    assert found is not None
    cost = Prices().cost(model, found)
    assert cost == (None if dollars is None else pytest.approx(dollars))


def test_a_price_of_ones_own_wins_over_what_the_server_says() -> None:
    found = usage_of({"usage": chat(10, 1, 11, cost=0.5)})
    assert found is not None
    assert Prices().cost("openrouter/x", found, input_cost_per_token=1, output_cost_per_token=1) == 11


def test_whisper_is_billed_by_the_minute() -> None:
    assert Prices().cost("openai/whisper-1", TokenUsage(details={"audio_seconds": 60.0})) == pytest.approx(0.006)
    assert Prices().cost("openai/whisper-1", TokenUsage(10, 1)) is None


@pytest.mark.parametrize(("value", "number"), [(5, 5), (5.0, 5), ("5", 5), (5.5, None), (-1, None), (2**31, None)])
def test_count(value: Any, number: int | None) -> None:
    assert count(value) == number


def test_what_qwen_writes_to_its_cache() -> None:
    usage = chat(1100, 3, 1103, prompt_tokens_details={"cached_tokens": 0, "cache_creation_input_tokens": 1000})
    assert usage_of({"usage": usage}) == TokenUsage(1100, 3, 1103, None, 0, {"cache_write_tokens": 1000})


def test_geminis_own_place() -> None:
    found = usage_of({"usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2}})
    assert found == TokenUsage(7, 2, 9)


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 2**31 - 1, "output_tokens": 1, "cache_read_input_tokens": 2**31 - 1},
        {"prompt_tokens": 5, "completion_tokens": 3, "reasoning_tokens": 2**31 - 1},
    ],
)
def test_counts_that_fit_alone_and_not_together_are_not_known(usage: dict[str, int]) -> None:
    assert usage_of({"usage": usage}) is None


def test_the_tokens_of_two_answers() -> None:
    first, second = TokenUsage(3, 4, 7), TokenUsage(10, 1, 11, cached_tokens=2)
    assert together(first, second) == TokenUsage(13, 5, 18, cached_tokens=2)
    assert together(None, second) == second
    assert together(first, None) is None
    assert together(TokenUsage(2**31 - 1), TokenUsage(1)) is None
