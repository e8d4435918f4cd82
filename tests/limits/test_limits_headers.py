from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

import pytest

from infermesh.limits import Limits, LocalRateLimiter, OpenLimiter
from infermesh.limits.headers import parse_reset
from infermesh.limits.server_gates import LOOK_EVERY, PATIENCE
from tests.fakes import header, now, virtual

NOON = dt.datetime(2025, 3, 14, 12, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("120ms", 0.12),
        ("0s", 0),
        ("1d2h", 93600),
        ("2m", 120),
        ("1m0.5s", 60.5),
        ("500us", 0.0005),
        ("1H30M", 5400),
        ("60", 60),
        ("0.25", 0.25),
        (" 17 ", 17),
        (str(NOON + 42), 42),
        (str(int((NOON + 42) * 1000)), 42),
        (str(int(NOON - 42)), 0),
        ("2025-03-14T12:00:30Z", 30),
        ("2025-03-14T12:00:30.250Z", 30.25),
        ("2025-03-14T12:00:30.123456789Z", 30.123456),
        ("2025-03-14T14:01:00+02:00", 60),
        ("2025-03-14T12:01:00", 60),
        ("2025-03-14T11:59:00Z", 0),
    ],
)
def test_parse_reset(text: str, seconds: float) -> None:
    assert parse_reset(text, NOON) == pytest.approx(seconds, abs=1e-4)


@pytest.mark.parametrize(
    "text",
    [None, "", " ", "soon", "s", "1x", "1s2", "nan", "inf", "1h-2m", "-3", "2025-99-14T12:00:00Z", "ms", "never"],
)
def test_parse_reset_refuses_the_rest(text: str | None) -> None:
    assert parse_reset(text, NOON) is None


async def waited(limiter: LocalRateLimiter, prompt_tokens: int = 0, output_tokens: int = 0) -> float:
    start = now()
    await limiter.acquire(prompt_tokens, output_tokens)
    return now() - start


def limiter(**limits: object) -> LocalRateLimiter:
    start = now()
    return LocalRateLimiter(Limits(**limits), wall=lambda: NOON + now() - start)  # type: ignore[arg-type]


@pytest.mark.parametrize("reset", ["20s", "20000ms", str(NOON + 20), "2025-03-14T12:00:20Z"])
@virtual
async def test_nothing_left_holds_until_the_reset(reset: str) -> None:
    limits = limiter(rpm=60_000)
    assert await waited(limits) < 0.1
    limits.observe(header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}))
    assert limits.paused_for == pytest.approx(20, abs=0.1)
    assert limits.ready_at == pytest.approx(now() + 20, abs=0.1)
    assert await waited(limits) == pytest.approx(20, abs=0.1)
    assert await waited(limits) < 0.1
    assert limits.ready_at == 0


@virtual
async def test_what_is_left_goes_out_at_once_and_the_rest_waits() -> None:
    limits = limiter(rpm=60_000)
    limits.observe(header({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "30s"}))
    waits = [await waited(limits) for _ in range(5)]
    assert waits[:3] == pytest.approx([0, 0, 0], abs=0.1)
    assert waits[3] == pytest.approx(30, abs=0.1)
    assert waits[4] < 0.1


@virtual
async def test_the_latest_word_counts() -> None:
    limits = limiter(rpm=60_000)
    limits.observe(header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}))
    limits.observe(header({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "29s"}))
    assert await waited(limits) < 0.1


@virtual
async def test_a_fresh_word_is_counted_down_and_a_zero_always_heard() -> None:
    limits = limiter(rpm=60_000)
    asked: list[str] = []

    def lookup(left: int) -> Callable[[str], str | None]:
        full = header({"x-ratelimit-remaining-requests": str(left), "x-ratelimit-reset-requests": "30s"})

        def look(name: str) -> str | None:
            asked.append(name)
            return full(name)

        return look

    limits.observe(lookup(100))
    asked.clear()
    limits.observe(lookup(99))
    assert asked == ["x-ratelimit-remaining-requests"]
    limits.observe(lookup(0))
    assert limits.paused_for == pytest.approx(30)


@virtual
async def test_a_generous_server_does_not_raise_the_users_own_limit() -> None:
    limits = limiter(rpm=60)
    limits.observe(
        header(
            {
                "x-ratelimit-limit-requests": "30000",
                "x-ratelimit-remaining-requests": "29999",
                "x-ratelimit-reset-requests": "2ms",
            }
        )
    )
    start = now()
    for _ in range(31):
        await limits.acquire()
    assert now() - start >= 30


@virtual
async def test_a_server_that_refills_is_waited_for_only_as_long_as_it_takes() -> None:
    limits = limiter(tpm=60_000_000)
    limits.observe(
        header(
            {
                "x-ratelimit-limit-tokens": "60000",
                "x-ratelimit-remaining-tokens": "1000",
                "x-ratelimit-reset-tokens": "59s",
            }
        )
    )
    assert await waited(limits, 2000) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("name", "prompt", "output", "held"),
    [
        ("tokens", 60, 60, True),
        ("input-tokens", 101, 0, True),
        ("input-tokens", 0, 101, False),
        ("output-tokens", 0, 101, True),
        ("output-tokens", 101, 0, False),
        ("requests", 10_000, 10_000, False),
    ],
)
@virtual
async def test_anthropic(name: str, prompt: int, output: int, held: bool) -> None:
    limits = limiter(tpm=60_000_000)
    limits.observe(
        header(
            {
                f"anthropic-ratelimit-{name}-limit": "50000",
                f"anthropic-ratelimit-{name}-remaining": "100",
                f"anthropic-ratelimit-{name}-reset": "2025-03-14T12:00:10Z",
            }
        )
    )
    assert await waited(limits, prompt, output) == pytest.approx(10 if held else 0, abs=0.1)


@virtual
async def test_auto_tells_day_from_minute_by_the_reset() -> None:
    limits = limiter(rpd=1000)
    limits.observe(header({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "59s"}))
    assert limits.used_today is not None
    assert limits.used_today.requests == 0
    await asyncio.sleep(1)
    limits.observe(header({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "3h"}))
    assert limits.used_today.requests == 995
    await asyncio.sleep(1)
    limits.observe(header({"x-ratelimit-remaining-requests": "500", "x-ratelimit-reset-requests": "3h"}))
    assert limits.used_today.requests == 995  # only ever down


@virtual
async def test_auto_tells_day_from_minute_by_the_limit() -> None:
    limits = limiter(rpm=60, rpd=1000)
    limits.observe(header({"x-ratelimit-limit-requests": "1000", "x-ratelimit-remaining-requests": "10"}))
    assert limits.used_today is not None
    assert limits.used_today.requests == 990


@virtual
async def test_a_set_scope_decides() -> None:
    minute = limiter(rpd=1000, header_bucket_scope="minute")
    minute.observe(header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "3h"}))
    assert minute.used_today is not None
    assert minute.used_today.requests == 0
    assert await waited(minute) == pytest.approx(60, abs=0.1)
    day = limiter(tpd=1000, header_bucket_scope="day")
    day.observe(header({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "30s"}))
    assert day.used_today is not None
    assert day.used_today.tokens == 1000
    assert await waited(day, 1) == pytest.approx(12 * 3600, abs=1)


@virtual
async def test_absent_headers_are_soon_not_looked_for_but_now_and_then() -> None:
    limits = limiter(rpm=60_000)
    asked = 0

    def silent(name: str) -> None:
        nonlocal asked
        asked += 1

    for _ in range(PATIENCE + 10 * LOOK_EVERY):
        limits.observe(silent)
    assert asked <= (PATIENCE + 10) * 6
    full = header({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "50s"})
    for _ in range(LOOK_EVERY + 1):
        limits.observe(full)
    assert limits.paused_for == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("value", ["", "many", "nan", "-1"])
@virtual
async def test_headers_that_make_no_sense_do_no_harm(value: str) -> None:
    limits = limiter(rpm=60_000)
    limits.observe(header({"x-ratelimit-remaining-requests": value, "x-ratelimit-reset-requests": value}))
    assert await waited(limits) == 0


@pytest.mark.parametrize(
    ("remaining", "limit", "reset"), [("-1", "-1", ""), ("-1", "1000", "-1"), ("0", "0", "60s"), ("-340", "", "5s")]
)
@virtual
async def test_a_quota_that_is_none_holds_nobody(remaining: str, limit: str, reset: str) -> None:
    for limits in (limiter(rpd=1000, header_bucket_scope="day"), OpenLimiter()):
        names = {"remaining": remaining, "limit": limit, "reset": reset}
        limits.observe(header({f"x-ratelimit-{name}-requests": value for name, value in names.items()}))
        assert limits.paused_for == 0
    assert limits.try_acquire() is not None
