"""What a percentile is, wherever one is computed in SQL."""

from __future__ import annotations


def percentile(value: str, share: float) -> str:
    """SQL for the nearest-rank percentile: the smallest value that at least ``share`` of the values do not exceed.

    It is always one of the values, and never lies between two of them. :func:`infermesh.bench.measure.percentile` is
    the same in Python. Source: definition 1 of R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical Packages",
    The American Statistician 50 (1996); DuckDB's ``quantile_disc`` follows it.

    Examples
    --------
    >>> percentile("service_s", 0.95)
    'quantile_disc(service_s, 0.95)'
    """
    return f"quantile_disc({value}, {share})"


MOST_EXACT = 5_000_000


def percentile_of(count: int, value: str, share: float) -> str:
    """SQL for a percentile of so many values: :func:`percentile` up to five million, a t-digest's estimate above.

    The exact one holds all values in memory, and cannot spill to disk.

    Examples
    --------
    >>> percentile_of(10, "service_s", 0.95), percentile_of(10_000_000, "service_s", 0.95)
    ('quantile_disc(service_s, 0.95)', 'approx_quantile(service_s, 0.95)')
    """
    return percentile(value, share) if count <= MOST_EXACT else f"approx_quantile({value}, {share})"
