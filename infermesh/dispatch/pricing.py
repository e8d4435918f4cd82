"""What an answer cost, by the installed genai-prices list. No network; an unknown price is ``None`` and no error."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from infermesh.config.schema import Experiment, ModelStageConfig
from infermesh.results import TokenUsage
from infermesh.runtime.guarded import start_thread
from infermesh.transports.provider_table import PROVIDERS, named_bare, split_model
from infermesh.wire.requests import all_params
from infermesh.wire.usage import tier_named

__all__ = ["Prices", "asked_params", "asked_tiers", "near_model", "reported_cost", "served_by", "unlisted_tier"]

_PER_MILLION = 1e-6
_NEAR = 0.85  # as difflib measures it: a letter or two of a name

# What a tier costs where the list has no price of it for the model: a share of the standard price, by the provider's
# own guide. What is in neither (most often "priority") has no price.
_SHARES = {
    ("openai", "batch"): 0.5,  # https://platform.openai.com/docs/guides/batch
    ("openai", "flex"): 0.5,  # …/docs/guides/flex-processing: "priced at Batch API rates"
    ("anthropic", "batch"): 0.5,  # https://docs.claude.com/en/docs/build-with-claude/batch-processing
    ("google", "batch"): 0.5,  # https://ai.google.dev/gemini-api/docs/batch-api
    ("mistral", "batch"): 0.5,  # https://docs.mistral.ai/capabilities/batch
    ("groq", "batch"): 0.5,  # https://console.groq.com/docs/batch
    ("groq", "flex"): 1.0,  # https://console.groq.com/docs/flex-processing: as on demand
}

_Calculation = Callable[[TokenUsage], float | None]

logger = logging.getLogger("infermesh")


def reported_cost(usage: TokenUsage) -> float | None:
    """What the server says that it bills for the answer, in US dollars; ``None`` where it does not say."""
    told = usage.details.get("reported_cost") if usage.details is not None else None
    return float(told) if told is not None else None


def served_by(usage: TokenUsage) -> str | None:
    """The tier that served an answer, in lower case; ``None``: the standard one, or the server does not say."""
    details = usage.details
    tier = None if details is None else details.get("service_tier") or details.get("speed")
    return None if tier is None else str(tier).lower()


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


@dataclass(slots=True)
class _Listed:
    """A model of the list."""

    provider: Any
    info: Any
    standard: _Calculation | None
    tiers: dict[str, _Calculation | None] = field(default_factory=dict)  # by what :func:`served_by` says


class Prices:
    """The cost of answers. Each model is looked up once; after that, a call is three multiplications.

    Parameters
    ----------
    tell
        Called once for each tier of a model that the list does not price, with what is assumed.
    told
        Models and tiers, in lower case, of which that was told before.
    """

    def __init__(
        self, tell: Callable[[str], object] = logger.warning, told: Collection[tuple[str, str]] = frozenset()
    ) -> None:
        self._tell = tell
        self._told = told
        self._fetching = False
        self._known: dict[str, _Listed | None] = {}

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
            to the cache, and sound; so has each tier that served the answer (``service_tier``, ``speed``). A tier that
            the list does not price is told once for each model. What the server says it bills takes the
            place of the list.
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
            listed = self._known[model]
        except KeyError:
            listed = self._known[model] = _look_up(model)
        if listed is None:
            return None
        calculate = listed.standard
        if (tier := served_by(usage)) is not None:
            try:
                calculate = listed.tiers[tier]
            except KeyError:
                calculate, unsaid = _tier_price(model, listed, tier)
                listed.tiers[tier] = calculate
                if unsaid is not None and (model, tier) not in self._told:
                    self._tell(unsaid)
        return None if calculate is None else calculate(usage)

    def _at_given_prices(
        self, model: str, usage: TokenUsage, input_cost: float | None, output_cost: float | None
    ) -> float:
        details = {key: value for key, value in (usage.details or {}).items() if key != "reported_cost"}
        read = {key: value for key, value in details.items() if not key.startswith("output_")}
        written = {key: value for key, value in details.items() if key.startswith(("output_", "service_tier", "speed"))}
        if input_cost is None:
            prompt = TokenUsage(usage.prompt_tokens, cached_tokens=usage.cached_tokens, details=read or None)
            input_part = self.cost(model, prompt) or 0.0
        else:
            input_part = usage.prompt_tokens * input_cost
        if output_cost is None:
            answer = TokenUsage(0, usage.completion_tokens, 0, usage.reasoning_tokens, details=written or None)
            return input_part + (self.cost(model, answer) or 0.0)
        return input_part + usage.completion_tokens * output_cost


def _load() -> None:
    with contextlib.suppress(Exception):
        importlib.import_module("genai_prices.data_snapshot").get_snapshot()


def _look_up(model: str) -> _Listed | None:
    if not Prices.listed(model):
        return None
    prefix, name = split_model(model)
    known = PROVIDERS[prefix] if prefix else named_bare(name)
    provider_id = None if known is None else known.prices
    try:
        # Imported late: it takes a quarter of a second, and models of one's own servers do not need it.
        from genai_prices.data_snapshot import get_snapshot

        provider, info = get_snapshot().find_provider_model(name, None, provider_id, None)
        return _Listed(provider, info, _calculation(provider, info))
    except Exception:  # the answer is good even if the list fails over its price
        return None


def asked_params(experiment: Experiment, stage: ModelStageConfig) -> Mapping[str, Any]:
    """The parameters of a stage's requests, those of its model and those below ``extra_body`` among them."""
    return all_params({**experiment.models[stage.model].params, **stage.params})


def asked_tiers(experiment: Experiment) -> list[tuple[str, str]]:
    """The labels of deployments, and the tiers other than the standard one that requests to them ask for."""
    found = dict.fromkeys(
        (label, str(tier))
        for stage in experiment.stages.values()
        if isinstance(stage, ModelStageConfig)
        for tier in tier_named(asked_params(experiment, stage)).values()
        for label in experiment.models[stage.model].deployments
    )
    return [*found]


def unlisted_tier(model: str, tier: str) -> str | None:
    """What is to be said of a tier that the price list does not have for a model, which it has.

    Examples
    --------
    >>> unlisted_tier("openai/o3", "flex")
    >>> unlisted_tier("openai/gpt-4.1-mini", "flex")
    'openai/gpt-4.1-mini: the price list has no price for its tier flex: these answers count as 0.5 of the standard …'
    """
    listed = _look_up(model)
    return None if listed is None else _tier_price(model, listed, tier.lower())[1]


def _tier_price(model: str, listed: _Listed, tier: str) -> tuple[_Calculation | None, str | None]:
    """How answers of a tier are priced, and what is to be said of it where the list does not have it."""
    for key in ("processing", "service_tier", "speed"):  # the list's names for what sets an answer apart
        context = {key: tier}
        if _has_variant(listed.info, context):
            return partial(_by_list, listed.provider, listed.info, context=context), None
    share = _SHARES.get((listed.provider.id, tier))
    standard = listed.standard
    told = f"{model}: the price list has no price for its tier {tier}: "
    if share is None or standard is None:
        told += (
            "what these answers cost is not known, and no budget counts it. Set input_cost_per_token and "
            "output_cost_per_token of the deployment"
        )
        return None, told

    def calculate(usage: TokenUsage) -> float | None:
        cost = standard(usage)
        return None if cost is None else cost * share

    told += (
        f"these answers count as {share:g} of the standard price, as the provider's guide says. input_cost_per_token "
        "and output_cost_per_token of the deployment set another one"
    )
    return calculate, told


def _has_variant(info: Any, context: Mapping[str, str]) -> bool:
    """Whether the list has a price for what sets an answer apart, today."""
    now = datetime.now(tz=UTC)
    return any(
        all(context.get(key) == value for key, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(now))
        for variant in getattr(info, "price_variants", None) or ()
    )


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


def _by_list(provider: Any, info: Any, usage: TokenUsage, context: Mapping[str, str] | None = None) -> float | None:
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
                output_reasoning_tokens=usage.reasoning_tokens or None,  # within output_tokens, as everywhere here
                **apart,
            )
            return float(info.calc_price(counted, provider, price_context=context).total_price)
    except Exception:
        return None
