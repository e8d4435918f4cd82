"""What of a run went through batch APIs: what is out, what came back, and what it has saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infermesh.dispatch.pricing import Prices
from infermesh.exact_json import loads
from infermesh.results import TokenUsage

__all__ = ["InBatches", "in_batches", "prices_of"]

Rows = Callable[[str], list[Any]]
Price = Callable[[str, TokenUsage], float | None]
_OUT = "('creating', 'submitted')"


@dataclass(frozen=True, slots=True)
class InBatches:
    """What of a run went through batch APIs.

    Attributes
    ----------
    out
        Deployment → the batches that are not back, and the requests in them.
    answered
        Requests that a batch has answered.
    cost_usd
        What they have cost; ``None`` where no price is known.
    saved_usd
        About what they would have cost more, live: by the list prices of as many requests of their mean size.
    """

    out: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    answered: int = 0
    cost_usd: float | None = None
    saved_usd: float | None = None


def in_batches(rows: Rows, price: Price) -> InBatches | None:
    """Look into a run's tables; ``None`` if it has made no batch.

    Parameters
    ----------
    rows
        Runs a query.
    price
        Deployment and usage → US dollars of a live request.
    """
    if not rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'batches'"):
        return None
    out = rows(f"SELECT deployment, count(*), sum(requests) FROM batches WHERE state IN {_OUT} GROUP BY 1 ORDER BY 1")
    found = rows(
        "SELECT deployment, count(*), avg(prompt_tokens), avg(completion_tokens), sum(cost_usd) FROM attempts WHERE "
        "service_tier = 'batch' AND error_type IS NULL AND prompt_tokens IS NOT NULL GROUP BY 1"
    )
    saved = cost = None
    for label, answered, prompt, completion, paid in found:
        if paid is not None:
            cost = (cost or 0.0) + paid
            # A thousand requests of the mean size: half a token is a token else.
            live = price(label, TokenUsage(round(1000 * prompt), round(1000 * (completion or 0))))
            if live is not None:
                saved = (saved or 0.0) + live * answered / 1000 - paid
    return InBatches(
        {label: (int(batches), int(requests)) for label, batches, requests in out},
        sum(answered for _, answered, *_ in found),
        cost,
        saved,
    )


def prices_of(rows: Rows) -> Price:
    """The prices of a run's deployments, by the config that it stores."""
    ((stored,),) = rows("SELECT config FROM run")
    deployments = loads(stored).get("deployments") or {}
    prices = Prices(lambda text: None)

    def price(label: str, usage: TokenUsage) -> float | None:
        entry = deployments.get(label) or {}
        own = {name: entry.get(name) for name in ("input_cost_per_token", "output_cost_per_token")}
        return prices.cost(str(entry.get("model")), usage, **own)

    return price
