"""What the client costs beside bare HTTP loops and other clients: `python -m benchmarks.client`.

The same prompts go to the same static endpoint, by turns: through hand-written loops (serialize, post, read, decode,
keep), through the OpenAI SDK and LiteLLM, and through the client's own faces.
"""

from __future__ import annotations

import statistics
from functools import partial

from benchmarks.endpoint import static_endpoint
from benchmarks.harness import BARE, RATE_HEADER, Result, Target, isolated, rate_rows, ratio, rounds, script
from benchmarks.loops import SLOW, WAYS, timed

WINDOW = 64


def measure(quick: bool) -> Result:
    """Every way, some rounds."""
    requests, few, count = (2_000, 100, 2) if quick else (20_000, 400, 3)
    with static_endpoint() as url:

        def once(way: str, number: int) -> float:
            taken = isolated(timed, way=way, url=url, requests=number, window=WINDOW)
            return float(taken["seconds"]) / number

        seconds = rounds(count, {way: partial(once, way, few if way in SLOW else requests) for way in WAYS})
    batch = seconds["generate_batch"]
    targets = [
        Target("generate_batch, of the bare pyreqwest loop", ratio(seconds[BARE], batch), 0.65),
        Target("generate_batch, of the bare aiohttp loop", ratio(seconds["bare aiohttp loop"], batch), 1.0),
    ]
    middle = {way: statistics.median(each) for way, each in seconds.items()}
    added = 1e6 * (middle["generate_batch"] - middle[BARE])
    return Result(
        "client",
        "The client beside bare loops and other clients",
        f"{requests:,} requests to a static endpoint ({few} where it is slow), {WINDOW} in flight, {count} rounds by "
        "turns, each way in a process of its own; medians.",
        RATE_HEADER,
        rate_rows(seconds),
        targets,
        [f"generate_batch adds {added:.0f} µs to a request of the bare loop."],
    )


if __name__ == "__main__":
    script(measure)
