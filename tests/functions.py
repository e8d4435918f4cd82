"""Functions for python stages, and what they were called with."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import threading
import time
from typing import Any

import pydantic

from infermesh.errors import InputError

calls: list[dict[str, Any]] = []
together: list[int] = []
_inside = 0
_lock = threading.Lock()


def length(row: dict[str, Any]) -> dict[str, Any]:
    calls.append(row)
    return {"chars": len(row["answers"]["text"]), "label": f"n={row['n']}"}


async def doubled(row: dict[str, Any]) -> Any:
    await asyncio.sleep(0)
    return [row["n"], row["n"] * 2]


def failing(row: dict[str, Any]) -> Any:
    if row["n"] == 1:
        raise ValueError("one is not allowed")
    if row["n"] == 2:
        raise InputError("two has no input")
    return row["n"]


def flaky(row: dict[str, Any]) -> Any:
    calls.append(row)
    if sum(call["n"] == row["n"] for call in calls) < 2:
        raise ConnectionError("not this time")
    return row["n"]


def wrong(row: dict[str, Any]) -> Any:
    return {"chars": "many"}


def crowded(row: dict[str, Any]) -> None:
    global _inside
    with _lock:
        _inside += 1
        together.append(_inside)
    time.sleep(0.005)  # the work
    with _lock:
        _inside -= 1


class Speechless(BaseException):
    def __str__(self) -> str:
        raise SystemExit("even its text")


def ending(row: dict[str, Any]) -> Any:
    """Ends as its row says."""
    ends: dict[str, BaseException] = {
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "cancelled": asyncio.CancelledError(),
        "stop": StopIteration(1),
        "generator": GeneratorExit(),
        "half": ValueError("half a surrogate \ud83d"),
        "speechless": Speechless(),
    }
    if row["end"] in ends:
        raise ends[row["end"]]
    return {"input": "fine", "metadata": {"end": row["end"]}}


async def ending_async(row: dict[str, Any]) -> Any:
    if row["end"] == "cancelled":  # something that it awaits is cancelled
        task = asyncio.ensure_future(asyncio.sleep(10))
        task.cancel()
        await task
    return ending(row)


def hanging(row: dict[str, Any]) -> Any:
    if row["n"] == 0:
        threading.Event().wait()
    return row["n"]


def large(row: dict[str, Any]) -> Any:
    return {"x": [10**400, 10**300, 1e300, 2**2000, 1.5][row["n"]]}


async def endless(row: dict[str, Any]) -> Any:
    await asyncio.Event().wait()


class Trap:
    """Whoever looks at it is made to exit."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit("its class")

    def __str__(self) -> str:
        raise SystemExit("its text")

    __repr__ = __str__


class TrapDict(dict[str, Any]):
    def __iter__(self) -> Any:
        raise KeyboardInterrupt

    def get(self, *_: Any) -> Any:
        raise SystemExit("its value")


def trap(row: dict[str, Any]) -> Any:
    """Returns what its row names: by itself, as a column, or as a mapper's input."""
    if row["value"] == "long":
        raise ValueError("x" * 1_000_000)
    value = {"object": Trap(), "dict": TrapDict(x=1), "words": "fine"}[row["value"]]
    return {"whole": value, "x": {"x": value}, "input": {"input": value}}[row["as"]]


async def trap_async(row: dict[str, Any]) -> Any:
    return trap(row)


def leaving(row: dict[str, Any]) -> Any:
    os.chdir("/")
    return row["n"]


class TrapTime(dt.datetime):
    """A time that exits where its year is asked for."""

    @property
    def year(self) -> int:
        raise SystemExit("its year")


def times(row: dict[str, Any]) -> Any:
    at = dt.datetime(2025, 1, 2, 3, 4, 5, 6)
    zone = dt.timezone(dt.timedelta(hours=2))
    return {"x": [at, at.replace(tzinfo=zone), TrapTime(2025, 1, 1)][row["n"]]}


class Fussy(pydantic.BaseModel):
    """Its check ends as nobody expects."""

    city: str

    @pydantic.field_validator("city")
    @classmethod
    def checked(cls, value: str) -> str:
        if value == "nowhere":
            time.sleep(1000)
        raise SystemExit(3)


def wide_values(row: dict[str, Any]) -> dict[str, Any]:
    """A dozen long values that take four times their length in HTML."""
    return {f"v{number}": "<" * 5000 for number in range(12)}
