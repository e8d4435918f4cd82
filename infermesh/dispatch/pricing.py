"""What an answer cost, by the installed genai-prices list. No network; an unknown price is ``None`` and no error."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from infermesh.results import TokenUsage
from infermesh.runtime.guarded import start_thread
from infermesh.transports.provider_table import PROVIDERS, named_bare, split_model

__all__ = ["Prices", "near_model", "reported_cost"]

_PER_MILLION = 1e-6
_NEAR = 0.85  # as difflib measures it: a letter or two of a name

# OpenAI's "Flex processing" and "Batch API": both at half the price of the standard tier.
_TIERS = {"flex": 0.5, "batch": 0.5}

_Calculation = Callable[[TokenUsage], float | None]


def reported_cost(usage: TokenUsage) -> float | None:
    """What the server says that it bills for the answer, in US dollars; ``None`` where it does not say."""
    told = usage.details.get("reported_cost") if usage.details is not None else None
    return float(told) if told is not None else None


@dataclass(slots=True)
class _Rates:
    """US dollars a token."""

    input: float
    output: float
    cached: float

    def __call__(self, usage: TokenUsage) -> float:
        cached = usage.cached_tokens or 0
        return (
            (usage.prompt_tokens - cached) * self.input + cached * self.cached + usage.completion_tokens * self.output
        )


class Prices:
    """The cost of answers. Each model is looked up once; after that, a call is three multiplications."""

    def __init__(self) -> None:
        self._fetching = False
        self._known: dict[str, _Calculation | None] = {}

    def prefetch(self) -> None:
        """Load the list in a thread, so that the first answer need not wait a quarter of a second for it."""
        if not self._fetching:
            self._fetching = True
            start_thread("infermesh-prices", _load)

    @staticmethod
    def listed(model: str) -> bool:
        """Whether the list may know the model's price. It knows none of models on the user's own servers."""
        prefix, _ = split_model(model)
        return PROVIDERS[prefix].prices is not None if prefix else "/" not in model

    def cost(
        self,
        model: str,
        usage: TokenUsage,
        *,
        input_cost_per_token: float | None = None,
        output_cost_per_token: float | None = None,
    ) -> float | None:
        """US dollars for one answer's tokens.

        Parameters
        ----------
        model
            The deployment's model, as LiteLLM writes it: ``openai/gpt-4.1-mini``, ``anthropic/…``, or a bare name.
            Models of the user's own servers (``hosted_vllm/`` …) have no price.
        usage
            The server's counts. Cached prompt tokens have their own price, if the list has one, as have tokens written
            to the cache, and sound. What the server says it bills takes the place of the list.
        input_cost_per_token, output_cost_per_token
            Dollars a token, instead of the list's prices, for cached tokens too. If only one is given, the other comes
            from the list; for a model that the list does not know, it is 0.

        Returns
        -------
        float | None
            ``None``: no price is known.
        """
        if input_cost_per_token is not None or output_cost_per_token is not None:
            return self._at_given_prices(model, usage, input_cost_per_token, output_cost_per_token)
        if usage.details is not None and (told := reported_cost(usage)) is not None:
            return told
        try:
            calculate = self._known[model]
        except KeyError:
            calculate = self._known[model] = _look_up(model)
        if calculate is None:
            return None
        factor = 1.0
        if usage.details is not None and (tier := usage.details.get("service_tier")) is not None:
            known = _TIERS.get(str(tier).lower())
            if known is None:
                return None  # dearer or cheaper than the list says, and nobody says by how much
            factor = known
        cost = calculate(usage)
        return cost if cost is None or factor == 1.0 else cost * factor

    def _at_given_prices(
        self, model: str, usage: TokenUsage, input_cost: float | None, output_cost: float | None
    ) -> float:
        if input_cost is None:
            input_part = self.cost(model, TokenUsage(usage.prompt_tokens, cached_tokens=usage.cached_tokens)) or 0.0
        else:
            input_part = usage.prompt_tokens * input_cost
        if output_cost is None:
            return input_part + (self.cost(model, TokenUsage(0, usage.completion_tokens)) or 0.0)
        return input_part + usage.completion_tokens * output_cost


def _load() -> None:
    with contextlib.suppress(Exception):
        importlib.import_module("genai_prices.data_snapshot").get_snapshot()


def _look_up(model: str) -> _Calculation | None:
    if not Prices.listed(model):
        return None
    prefix, name = split_model(model)
    known = PROVIDERS[prefix] if prefix else named_bare(name)
    provider_id = None if known is None else known.prices
    try:
        # Imported late: it takes a quarter of a second, and models of one's own servers do not need it.
        from genai_prices.data_snapshot import get_snapshot

        provider, info = get_snapshot().find_provider_model(name, None, provider_id, None)
        return _calculation(provider, info)
    except Exception:  # the answer is good even if the list fails over its price
        return None


def near_model(model: str) -> str | None:
    """The model that was probably meant, where the list does not know this one and knows one of nearly that name.

    Numbers are not guessed: a name with another version may be newer than the list. ``None`` where nothing is near, or
    the list does not have most of the provider's models.

    Examples
    --------
    >>> near_model("openai/gpt-4.1-mni")
    'openai/gpt-4.1-mini'
    """
    prefix, name = split_model(model)
    provider = PROVIDERS[prefix] if prefix else named_bare(name)
    if provider is None or not provider.lists_models or name.startswith("ft:"):
        return None
    try:
        from genai_prices.data_snapshot import get_snapshot

        (listed,) = [each for each in get_snapshot().providers if each.id == provider.prices]
        if listed.find_model(name) is not None:
            return None
        same = [each.id for each in listed.models if _digits(each.id) == _digits(name)]
    except Exception:  # a remark is not worth an error
        return None
    close = difflib.get_close_matches(name, same, n=1, cutoff=_NEAR)
    return f"{prefix}/{close[0]}" if close and prefix else next(iter(close), None)


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _calculation(provider: Any, info: Any) -> _Calculation | None:
    now = datetime.now(tz=UTC)
    prices = info.get_prices(now)
    rates = {key: value for key, value in vars(prices).items() if key.endswith("_mtok") and value is not None}
    if "input_mtok" not in rates and "output_mtok" not in rates:
        if getattr(prices, "audio_hours", None) is None:
            return None  # priced by the picture or the request
        return lambda usage: _by_list(provider, info, usage) if usage.details else None
    if "transcribe" in info.id and "input_audio_mtok" in rates:
        rates["input_mtok"] = rates["input_audio_mtok"]  # the input is a clip, which usage does not say
    elif _varies(info, now) or _is_intricate(rates):
        return lambda usage: _by_list(provider, info, usage)
    per_token = {key: float(value) * _PER_MILLION for key, value in rates.items()}
    base = per_token.get("input_mtok", 0.0)
    plain = _Rates(base, per_token.get("output_mtok", 0.0), per_token.get("cache_read_mtok", base))
    return lambda usage: plain(usage) if usage.details is None else _by_list(provider, info, usage)


def _varies(info: Any, now: datetime) -> bool:
    """Whether the price depends on the hour, or will change at a known date."""
    if not isinstance(info.prices, list):
        return False
    for condition in info.prices:
        start = getattr(condition.constraint, "start_date", None)
        if condition.constraint is not None and (start is None or start > now.date()):
            return True
    return False


def _is_intricate(rates: dict[str, Any]) -> bool:
    """Whether a price has tiers, or distinguishes tokens that :class:`TokenUsage` does not."""
    return any(not isinstance(rates[key], Decimal) for key in rates if key in _PLAIN) or any(
        key.startswith(("input_text", "output_text", "output_reasoning")) for key in rates
    )


_PLAIN = ("input_mtok", "output_mtok", "cache_read_mtok")


def _by_list(provider: Any, info: Any, usage: TokenUsage) -> float | None:
    from genai_prices import Usage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            apart: dict[str, Any] = {
                name: value for name, value in (usage.details or {}).items() if name.endswith(("_tokens", "_seconds"))
            }
            counted = Usage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                cache_read_tokens=usage.cached_tokens or None,
                **apart,
            )
            return float(info.calc_price(counted, provider).total_price)
    except Exception:
        return None
