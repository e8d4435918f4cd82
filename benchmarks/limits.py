"""How near a quota is met and what that costs: `python -m benchmarks.limits`.

`generate_batch` with rpm=30,000 against an endpoint that tells when each request came; then the limiter alone, asked
and settled by as many workers as the batch has in flight, once under that quota and once under one that never binds.
A process under a quota sleeps most of the time, and waking it up costs more than all that it then does. So the same
workers are woken without a limiter too, as many at a time and as often, by turns with the limiter; the limiter's own
cost is what it takes beyond that. Beside them stand a batch that a slow endpoint holds to the same pace and a timer for
each request, which is what pacing by other means costs.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque

from benchmarks.endpoint import arrivals, watching_endpoint
from benchmarks.harness import Result, Target, isolated, say, script
from benchmarks.loops import batch, prompts

RPM = 30_000
WINDOW = 64


def batch_cpu(url: str, requests: int, rpm: float | None) -> dict[str, float]:
    """CPU seconds of each request of a batch, and the rate a minute; made for ``isolated``."""
    batch(url, prompts(64), WINDOW)
    arrivals(url)
    before = time.process_time()
    answers = batch(url, prompts(requests), WINDOW, rpm=rpm)
    assert len(answers) == requests
    cpu = time.process_time() - before
    seen = arrivals(url)
    assert seen.total == requests
    fullest = max(seen.buckets(seen.first, seen.last, 1.0), default=0)
    return {"cpu_s": cpu / requests, "rpm": 60 * (requests - 1) / (seen.last - seen.first), "fullest": fullest}


async def _asking(requests: int, rpm: float | None) -> float:
    """CPU seconds of workers that ask a limiter, observe and settle, one request after the other."""
    from infermesh.limits import Limits, make_limiter

    limiter, left = make_limiter(None if rpm is None else Limits(rpm=rpm)), iter(range(requests))

    async def worker() -> None:
        for _ in left:
            grant = limiter.try_acquire(12, None) or await limiter.acquire(12, None)
            limiter.observe(_no_header)
            grant.settle(12, 11)

    before = time.process_time()
    await asyncio.gather(*[worker() for _ in range(WINDOW)])
    return time.process_time() - before


def _no_header(name: str) -> None:
    return None


async def _waking(requests: int) -> float:
    """CPU seconds of waking as many workers as often as the limiter does, and nothing else."""
    from infermesh.limits.bucket import PIECE_S

    loop, left, line = asyncio.get_running_loop(), iter(range(requests)), deque[asyncio.Future[None]]()

    async def worker() -> None:
        for _ in left:
            turn = loop.create_future()
            line.append(turn)
            await turn

    def tick() -> None:
        for _ in range(min(round(RPM / 60 * PIECE_S), len(line))):
            line.popleft().set_result(None)
        if line:
            loop.call_later(PIECE_S, tick)

    before = time.process_time()
    loop.call_later(PIECE_S, tick)
    await asyncio.gather(*[worker() for _ in range(WINDOW)])
    return time.process_time() - before


def waiting_and_waking(requests: int, turns: int) -> dict[str, float]:
    """CPU seconds of a request that waits in the limiter's line, of waking alone, and between the two, by turns."""
    import uvloop

    async def main() -> list[tuple[float, float, float]]:
        await _asking(requests, RPM)
        found = []
        for _ in range(turns):
            nothing, waiting, waking = (
                await _asking(requests, None),
                await _asking(requests, RPM),
                await _waking(requests),
            )
            found.append((waiting - nothing, waking, max(waiting - nothing - waking, 0.0)))
        return found

    medians = [statistics.median(values) / requests for values in zip(*uvloop.run(main()), strict=True)]
    return dict(zip(("waiting", "waking", "own"), medians, strict=True))


def passing(requests: int) -> dict[str, float]:
    """CPU seconds of a request that a limiter lets through at once; made for ``isolated``."""
    import uvloop

    async def main() -> float:
        await _asking(requests, None)
        return await _asking(requests, 1e9) - await _asking(requests, None)

    return {"cpu_s": max(uvloop.run(main()), 0.0) / requests}


def bare_timer(requests: int) -> dict[str, float]:
    """CPU seconds of waking up for each request at the quota's pace, and nothing else; made for ``isolated``."""
    import uvloop

    async def main() -> float:
        before = time.process_time()
        for _ in range(requests):
            await asyncio.sleep(60 / RPM)
        return time.process_time() - before

    return {"cpu_s": uvloop.run(main()) / requests}


def measure(quick: bool) -> Result:
    """The batch under its quota for real seconds, and the limiter alone."""
    seconds, asked, free = (3, 1_000, 3_000) if quick else (20, 2_500, 30_000)
    requests = RPM // 60 * seconds
    with watching_endpoint() as url:
        say(f"a batch of {requests:,} at {RPM:,} a minute")
        limited = isolated(batch_cpu, url=url, requests=requests, rpm=RPM)
        say("the same without a limit")
        unlimited = isolated(batch_cpu, url=url, requests=free, rpm=None)["cpu_s"]
    with watching_endpoint(WINDOW * 60 / RPM) as url:
        say("the same at the quota's pace, which the endpoint keeps")
        paced = isolated(batch_cpu, url=url, requests=asked, rpm=None)["cpu_s"]
    say("the limiter alone")
    alone = isolated(waiting_and_waking, requests=RPM // 60 * 2, turns=2 if quick else 10)
    free_pass = isolated(passing, requests=40 * asked)["cpu_s"]
    whole, rate, own = limited["cpu_s"], limited["rpm"], alone["own"]
    costs = {
        f"generate_batch under rpm={RPM:,}": whole,
        "generate_batch without a limit, at that pace by a slow endpoint": paced,
        "generate_batch without a limit, at full speed": unlimited,
        "the limiter, every request waits for its turn, from a sleeping process": alone["waiting"],
        "waking a sleeping process for as many requests as often, no limiter": alone["waking"],
        "the limiter's own, of the two rows above": own,
        "a bare timer for every request, no limiter": isolated(bare_timer, requests=asked)["cpu_s"],
        "the limiter, no request waits": free_pass,
    }
    return Result(
        "limits",
        "Limits",
        f"`generate_batch` of {requests:,} requests with rpm={RPM:,}, {WINDOW} in flight, as they came in at the "
        f"endpoint over {seconds} s; the limiter's acquire, observe and settle by themselves, less the same loop "
        "without one.",
        ["CPU of one request", "µs", "of one under the limit"],
        [[name, f"{1e6 * cpu:.1f}", f"{cpu / whole:.1%}"] for name, cpu in costs.items()],
        [
            Target(f"rate under rpm={RPM:,}, off the quota by", 100 * abs(rate / RPM - 1), 2, "%", at_least=False),
            Target("limiter's share of the CPU, no request waits", 100 * free_pass / whole, 5, "%", at_least=False),
            Target(
                "limiter's own share of the CPU, every request waits",
                100 * own / whole,
                5,
                "%",
                at_least=False,
            ),
        ],
        [f"{rate:,.0f} requests a minute came in; {limited['fullest']:,.0f} in the fullest second, of {RPM // 60:,}."],
    )


if __name__ == "__main__":
    script(measure)
