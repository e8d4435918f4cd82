"""How servers count tokens: every provider's shape of ``usage`` → one :class:`~infermesh.results.TokenUsage`.

In a :class:`~infermesh.results.TokenUsage` cached tokens are part of the prompt and reasoning tokens part of the
completion, as OpenAI counts them, whatever the server's own custom:

=============================  ======================================================================================
shape                          what is done
=============================  ======================================================================================
OpenAI, vLLM, SGLang, Azure    ``prompt_tokens``, ``completion_tokens`` and their ``…_details``, as they are
OpenAI Responses and audio     ``input_tokens``, ``output_tokens`` and their ``…_details``, as they are
xAI, Gemini (OpenAI wire)      ``total_tokens`` is more than prompt and completion: the difference was thought, is
                               billed as output, and is added to the completion
DeepSeek                       ``prompt_cache_hit_tokens`` are the cached part of the prompt
Moonshot                       ``cached_tokens`` beside ``prompt_tokens``
Anthropic                      ``cache_read_input_tokens`` and ``cache_creation_input_tokens`` come on top of
                               ``input_tokens``, and are added to the prompt; with ``prompt_tokens`` (LiteLLM) they are
                               inside. Writes for an hour (``cache_creation.ephemeral_1h_input_tokens``) cost more
OpenRouter, Perplexity         ``cost`` is what was billed, in dollars (Perplexity: ``cost.total_cost``)
Cohere                         ``billed_units.input_tokens`` and ``.output_tokens``
Voyage, Jina (embeddings)      ``total_tokens`` alone
OpenAI transcription           ``{"type": "duration", "seconds": …}`` has no tokens: it is billed by time
=============================  ======================================================================================

Sources: each provider's API reference; UKGovernmentBEIS/inspect_ai#5528 and vercel/ai#12425 (xAI and Gemini count
reasoning beside), promptfoo/promptfoo#9507 (counted twice where it is inside); LiteLLM's ``Usage``.

A count that is no whole number from 0 to 2**31 - 1 is not known: it is left out, and no row fails for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infermesh.results import TokenUsage

__all__ = ["apportion", "count", "shares", "usage_of"]

_PLAIN = {"prompt_tokens", "completion_tokens", "total_tokens"}
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
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion, total = usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens")
    if "prompt_tokens" in usage:
        inside, answer = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    else:
        prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
        inside, answer = usage.get("input_tokens_details"), usage.get("output_tokens_details")
        units = usage.get("billed_units")
        if prompt is None and isinstance(units, dict):
            prompt, completion = units.get("input_tokens"), units.get("output_tokens")
        elif prompt is None and input_only:
            prompt = total
    prompt = count(prompt)
    completion = 0 if completion is None else count(completion)
    if prompt is None or completion is None:
        return None
    cached = _first(
        _within(inside, "cached_tokens"),
        usage.get("prompt_cache_hit_tokens"),
        usage.get("cached_tokens"),
        usage.get("cache_read_input_tokens"),
    )
    written = _first(
        usage.get("cache_creation_input_tokens"),
        _within(inside, "cache_creation_tokens"),
        _within(inside, "cache_write_tokens"),
    )
    if cached or written:
        kept = (cached or 0) + (written or 0)
        if ("input_tokens" in usage and "cache_read_input_tokens" in usage) or kept > prompt:
            prompt += kept  # Anthropic's custom: what the cache took or gave stands beside the input
    reasoning = count(_within(answer, "reasoning_tokens"))
    beside = (count(total) or 0) - prompt - completion
    if beside > 0 and not input_only and (reasoning is None or reasoning >= beside):
        completion += beside
        reasoning = beside if reasoning is None else reasoning
    plain = usage.keys() <= _PLAIN and "service_tier" not in body
    details = None if plain else _apart(body, usage, inside, answer, written)
    return TokenUsage(prompt, completion, max(count(total) or 0, prompt + completion), reasoning, cached, details)


def count(value: Any) -> int | None:
    """A number of tokens; ``None`` where it is not a whole number from 0 to 2**31 - 1.

    Some servers write whole numbers as floats or as text.
    """
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 12 else None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST else None


def _first(*values: Any) -> int | None:
    return next((number for value in values if (number := count(value)) is not None), None)


def _within(details: Any, name: str) -> Any:
    return details.get(name) if isinstance(details, dict) else None


def _apart(
    body: dict[str, Any], usage: dict[str, Any], inside: Any, answer: Any, written: int | None
) -> dict[str, float | str] | None:
    """What has a price of its own, or is one; see :class:`~infermesh.results.TokenUsage`."""
    found: dict[str, float | str | None] = {
        "cache_write_tokens": written,
        "cache_write_1h_tokens": count(_within(usage.get("cache_creation"), "ephemeral_1h_input_tokens")),
        "input_audio_tokens": count(_within(inside, "audio_tokens")),
        "output_audio_tokens": count(_within(answer, "audio_tokens")),
        "reported_cost": _dollars(usage),
    }
    tier = body.get("service_tier")
    if isinstance(tier, str) and tier not in ("default", "auto", "standard"):
        found["service_tier"] = tier
    return {name: value for name, value in found.items() if value} or None


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
