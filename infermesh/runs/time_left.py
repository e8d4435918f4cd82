"""How long a run will take yet, and how sure that is: from how much its recent rates differ. Pure."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["about", "at_least", "interval"]

_SLICES = 6  # of the recent past, each with a rate of its own
_LEAST = 0.1  # the rate of what is to come is not known better than so
_MOST = 0.75
_DEVIATIONS = 2.0  # of the mean: nineteen times of twenty, were the slices independent
_FEW_S = 10.0  # below it, the last requests in flight decide, and no rate
# Up to so many of a unit, round to so much of it.
_STEPS = (
    (60.0, 1.0, "s", 10.0),
    (120.0, 1.0, "s", 20.0),
    (20 * 60.0, 60.0, "min", 1.0),
    (2 * 3600.0, 60.0, "min", 5.0),
    (10 * 3600.0, 3600.0, "h", 0.5),
    (48 * 3600.0, 3600.0, "h", 1.0),
    (math.inf, 86400.0, "days", 0.5),
)


def interval(seen: Sequence[tuple[float, int]], pending: int) -> tuple[float, float] | None:
    """Seconds left, at least and at most.

    The past is cut into six equal slices. The standard error of their mean rate is how well the rate is known: as much
    as a count of so few has by chance at least (Poisson), and to it comes the chance of those that are pending. Twice
    that, and a tenth at least.

    Parameters
    ----------
    seen
        ``(time, count)`` of what had settled by then, ascending; the last one is now.
    pending
        How many are to settle.

    Returns
    -------
    tuple or None
        ``None`` where nothing has settled between the first and the last.

    Examples
    --------
    >>> low, high = interval([(second, 10 * second) for second in range(11)], 600)
    >>> round(low), round(high)
    (47, 82)
    """
    (first, before), (last, after) = seen[0], seen[-1]
    elapsed, settled = last - first, after - before
    if elapsed <= 0 or settled <= 0:
        return None
    times = [time for time, _ in seen]
    edges = [first + elapsed * part / _SLICES for part in range(_SLICES + 1)]
    counts = [seen[bisect_right(times, edge + 1e-9) - 1][1] for edge in edges]
    slices = [later - earlier for earlier, later in itertools.pairwise(counts)]
    mean = settled / _SLICES
    variance = sum((each - mean) ** 2 for each in slices) / (_SLICES - 1)
    error = _DEVIATIONS * math.sqrt(max(variance, mean) / _SLICES / mean**2 + 1 / pending)
    error = min(max(error, _LEAST), _MOST)
    left = pending * elapsed / settled
    return left / (1 + error), left / (1 - error)


def about(low: float, high: float) -> str:
    """An interval of seconds in words, rounded outwards.

    Examples
    --------
    >>> about(200, 290), about(31, 38), about(2, 6)
    ('about 3 to 5 min', 'about 30 to 40 s', 'a few seconds')
    """
    if high <= _FEW_S:
        return "a few seconds"
    size, unit, step = _unit(high)
    least, most = math.floor(low / size / step) * step, math.ceil(high / size / step) * step
    if not least:
        return f"up to {most:g} {unit}"
    return f"about {least:g} to {most:g} {unit}" if least != most else f"about {most:g} {unit}"


def at_least(low: float) -> str:
    """Seconds in words, for what has more to come than can be counted.

    Examples
    --------
    >>> at_least(200)
    'more than 3 min'
    """
    size, unit, step = _unit(low)
    return f"more than {math.floor(low / size / step) * step:g} {unit}"


def _unit(seconds: float) -> tuple[float, str, float]:
    return next((size, unit, step) for most, size, unit, step in _STEPS if seconds <= most)
