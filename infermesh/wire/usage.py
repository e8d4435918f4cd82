"""How servers count tokens: every provider's shape of ``usage`` → one :class:`~infermesh.results.TokenUsage`.

In a :class:`~infermesh.results.TokenUsage` cached tokens are part of the prompt and reasoning tokens part of the
completion, as OpenAI counts them, whatever the server's own custom:

=============================  ======================================================================================
shape                          what is done
=============================  ======================================================================================
OpenAI, vLLM, SGLang, Azure    ``prompt_tokens``, ``completion_tokens`` and their ``…_details``, as they are
OpenAI Responses and audio     ``input_tokens``, ``output_tokens`` and their ``…_details``, as they are
xAI, Gemini (OpenAI wire)      reasoning is more than the completion, or ``total_tokens`` more than both: what was
                               thought stands beside, is billed as output, and is added to the completion. What
                               reasoning does not explain of the difference is left out (Gemini's tool prompts)
Gemini, Bedrock (own wire)     ``promptTokenCount``, ``inputTokens`` and so on, as the like counts above
SGLang                         ``reasoning_tokens`` beside ``completion_tokens``
DeepSeek                       ``prompt_cache_hit_tokens`` are the cached part of the prompt, which is they and
                               ``prompt_cache_miss_tokens``
Qwen                           ``prompt_tokens_details.cache_creation_input_tokens`` are a part of the prompt
Moonshot                       ``cached_tokens`` beside ``prompt_tokens``
Anthropic                      ``cache_read_input_tokens`` and ``cache_creation_input_tokens`` come on top of
                               ``input_tokens``, and are added to the prompt; with ``prompt_tokens`` (LiteLLM) they are
                               inside. Writes for an hour (``cache_creation.ephemeral_1h_input_tokens``) cost more.
                               ``service_tier`` and ``speed`` of usage say what served it
OpenRouter, Perplexity         ``cost`` is what was billed, in dollars (Perplexity: ``cost.total_cost``)
Cohere                         ``billed_units.input_tokens`` and ``.output_tokens``
Voyage, Jina (embeddings)      ``total_tokens`` alone
OpenAI transcription           ``{"type": "duration", "seconds": …}`` has no tokens: it is billed by time
=============================  ======================================================================================

Sources: each provider's API reference; UKGovernmentBEIS/inspect_ai#5528 and vercel/ai#12425 (xAI and Gemini count
reasoning beside), promptfoo/promptfoo#9507 (counted twice where it is inside); LiteLLM's ``Usage``.

A server may send two names for one quantity, one of them empty: the first that reads as a count above zero counts. A
count that is no whole number from 0 to 2**31 - 1 is not known: it is left out, and no row fails for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infermesh.results import TokenUsage

__all__ = ["apportion", "count", "shares", "tier_named", "together", "usage_of"]

# The names of each quantity, the commonest first.
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount", "inputTokens")
_COMPLETION = ("completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokens")
_TOTAL = ("total_tokens", "totalTokenCount", "totalTokens")
_REASONING = ("reasoning_tokens", "thoughtsTokenCount")
_CACHED = (
    "prompt_cache_hit_tokens",
    "cached_tokens",
    "cache_read_input_tokens",
    "cacheReadInputTokens",
    "cachedContentTokenCount",
)
_WRITTEN = ("cache_creation_input_tokens", "cacheWriteInputTokens")
_WRITTEN_INSIDE = ("cache_creation_tokens", "cache_write_tokens", "cache_creation_input_tokens")
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_COMPLETION_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")
# With these names of the prompt, what the cache took or gave stands beside it (Anthropic, Bedrock's Converse).
_CACHE_BESIDE = ("input_tokens", "inputTokens")
# on_demand is Groq's, standard_only a parameter of Anthropic's.
_LIST_PRICE_TIERS = ("default", "auto", "standard", "standard_only", "on_demand", "scale", "")
_LONGEST_TIER = 40  # it goes into a table and a log: a server's essay does not

_WHOLE = re.compile(r"(\d{1,11})(?:\.0*)?")
_PLAIN = {"prompt_tokens", "completion_tokens", "total_tokens"}
_OPENAI = _PLAIN | {"prompt_tokens_details", "completion_tokens_details"}
_MOST = 2**31 - 1  # what the tables' INTEGER columns hold


def usage_of(body: dict[str, Any], *, input_only: bool = False) -> TokenUsage | None:
    """The token counts of an answer, ``None`` where it has none that can be read.

    Parameters
    ----------
    body
        The decoded answer.
    input_only
        The endpoint has no output (embeddings): ``total_tokens`` alone is the input then.

    Examples
    --------
    >>> beside = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 910}
    >>> usage_of({"usage": beside}).completion_tokens
    810
    """
    usage = body.get("usage") or body.get("usageMetadata")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    inside, answer = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    if not inside and not answer and usage.keys() <= _OPENAI and "service_tier" not in body:
        total = usage.get("total_tokens")  # what most answers have
        if (
            type(prompt) is int
            and type(completion) is int
            and type(total) is int
            and 0 < prompt < total == prompt + completion <= _MOST
        ):
            return TokenUsage(prompt, completion, total)
    units = usage.get("billed_units")
    counts = units if isinstance(units, dict) and not any(name in usage for name in _PROMPT) else usage
    prompt, name = _first(counts, _PROMPT)
    completion, _ = _first(counts, _COMPLETION)
    total, _ = _first(usage, _TOTAL)
    if not prompt and (missed := count(usage.get("prompt_cache_miss_tokens"))) is not None:
        prompt = missed + (count(usage.get("prompt_cache_hit_tokens")) or 0)
    if not prompt and input_only:
        prompt = prompt if total is None else total
    if prompt is None:
        return None
    completion = completion or 0
    if type(inside) is not dict:
        inside = _details(usage, _PROMPT_DETAILS)
    if type(answer) is not dict:
        answer = _details(usage, _COMPLETION_DETAILS)
    beside = {} if usage.keys() <= _OPENAI else usage
    cached_inside, written_inside = count(inside.get("cached_tokens")), _first(inside, _WRITTEN_INSIDE)[0]
    cached = cached_inside or _first(beside, _CACHED)[0]
    written = _first(beside, _WRITTEN)[0] or written_inside
    cached = cached_inside if cached is None else cached
    kept = (cached or 0) + (written or 0)
    if kept and (kept > prompt or (name in _CACHE_BESIDE and not cached_inside and not written_inside)):
        prompt += kept
    reasoning = count(answer.get("reasoning_tokens"))
    reasoning = reasoning or _first(beside, _REASONING)[0] or reasoning
    if not input_only:
        difference = max((total or 0) - prompt - completion, 0)
        if reasoning is None:
            reasoning = difference or None
            completion += difference
        else:
            completion += reasoning if reasoning > completion else min(reasoning, difference)
    if max(prompt, completion) > _MOST:  # each count fits, what they add up to does not: nobody knows what is true
        return None
    plain = usage.keys() <= _PLAIN and "service_tier" not in body
    details = None if plain else _apart(body, usage, inside, answer, written)
    return TokenUsage(prompt, completion, max(total or 0, prompt + completion), reasoning, cached, details)


def together(first: TokenUsage | None, second: TokenUsage | None) -> TokenUsage | None:
    """The tokens of two answers, with the details of the second; ``None`` where the tables could not hold the sum."""
    if first is None or second is None:
        return second
    prompt, completion = first.prompt_tokens + second.prompt_tokens, first.completion_tokens + second.completion_tokens
    if max(prompt, completion) > _MOST:
        return None
    total = first.total_tokens + second.total_tokens
    return replace(second, prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)


def count(value: Any) -> int | None:
    """A number of tokens; ``None`` where it is not a whole number from 0 to 2**31 - 1.

    Some servers write whole numbers as floats or as text.
    """
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        value = int(whole[1]) if whole else None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST else None


def _first(counts: dict[str, Any], names: Sequence[str]) -> tuple[int | None, str]:
    """The first count above zero, and its name; else zero, where there is one, else ``None``."""
    zero: tuple[int | None, str] = (None, "")
    if not counts:
        return zero
    for name in names:
        if name in counts and (number := count(counts[name])) is not None:
            if number:
                return number, name
            zero = (0, name)
    return zero


def _details(usage: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return next((found for name in names if isinstance(found := usage.get(name), dict)), {})


def _within(details: Any, name: str) -> Any:
    return details.get(name) if isinstance(details, dict) else None


def _apart(
    body: dict[str, Any], usage: dict[str, Any], inside: dict[str, Any], answer: dict[str, Any], written: int | None
) -> dict[str, float | str] | None:
    """What has a price of its own, or is one; see :class:`~infermesh.results.TokenUsage`."""
    found: dict[str, float | str | None] = {
        "cache_write_tokens": written,
        "cache_write_1h_tokens": count(_within(usage.get("cache_creation"), "ephemeral_1h_input_tokens")),
        "input_audio_tokens": count(inside.get("audio_tokens")),
        "output_audio_tokens": count(answer.get("audio_tokens")),
        "reported_cost": _dollars(usage),
    }
    # Anthropic says its tier in usage.
    tier = body.get("service_tier") or usage.get("service_tier")
    found |= tier_named({"service_tier": tier, "speed": usage.get("speed")})
    return {name: value for name, value in found.items() if value} or None


def tier_named(said: Mapping[str, Any]) -> dict[str, float | str]:
    """The ``service_tier`` and the ``speed`` that an answer, or a request's parameters, name, unless they are standard.

    Examples
    --------
    >>> tier_named({"service_tier": "flex", "temperature": 0})
    {'service_tier': 'flex'}
    >>> tier_named({"service_tier": "auto"})
    {}
    """
    told = ((name, said.get(name)) for name in ("service_tier", "speed"))
    return {
        name: tier[:_LONGEST_TIER]
        for name, tier in told
        if isinstance(tier, str) and tier.lower() not in _LIST_PRICE_TIERS
    }


def _dollars(usage: dict[str, Any]) -> float | None:
    told = usage.get("cost")
    if isinstance(told, dict):
        told = told.get("total_cost")
    own_key = _within(usage.get("cost_details"), "upstream_inference_cost") if usage.get("is_byok") else None
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told) or told < 0:
        return None
    return told + own_key if isinstance(own_key, int | float) else told


def shares(usage: TokenUsage | None, weights: Sequence[int]) -> list[TokenUsage | None]:
    """The usage of each item of a request: its part by weight; the parts add up to the whole."""
    if usage is None:
        return [None] * len(weights)
    prompts = apportion(usage.prompt_tokens, weights)
    completions = apportion(usage.completion_tokens, weights) if usage.completion_tokens else [0] * len(weights)
    return [TokenUsage(p, c, p + c) for p, c in zip(prompts, completions, strict=True)]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split ``total`` into whole shares in proportion to ``weights``; the shares add up to ``total`` exactly.

    Largest remainder (Hamilton's method), ties to the earlier item; equal shares where every weight is 0.
    """
    if not weights:
        return []
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    rest = total - sum(shares)
    if rest:
        by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
        for i in by_remainder[:rest]:
            shares[i] += 1
    return shares
