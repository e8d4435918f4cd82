"""JSON without loss: integers of any size, and what paid answers contain against the standard."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import tracemalloc

import pytest

from infermesh.exact_json import dumps, loads, loads_leniently, read, try_enums


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 19876543210987654321, 10**300, 10**400])
def test_integers_are_exact_both_ways(number: int) -> None:
    assert loads(f'{{"n": [{number}]}}') == {"n": [number]}
    assert loads(f'{{"n": {number}}}'.encode()) == {"n": number}
    assert loads(dumps({"n": number})) == {"n": number}


def test_the_last_of_equal_keys_counts_whatever_the_size_of_the_numbers() -> None:
    assert loads('{"a": 1, "a": 2}') == {"a": 2}
    assert loads(f'{{"a": 1, "a": {2**70}}}') == {"a": 2**70}


def test_what_the_standard_forbids() -> None:
    for text in (
        f'{{"n": {10**400}.5}}',
        f'{{"n": [{10**400}, NaN]}}',
        f'{{"n": {10**400}, "t": "\\ud83d"}}',
        "0" * 400,
    ):
        with pytest.raises(ValueError, match=r"column|larger"):
            loads(text)
    for text in ('{"p": NaN}', '{"p": -Infinity}', '{"t": "\\ud83d"}'):
        with pytest.raises(ValueError, match="column"):
            loads(text)
    assert math.isnan(read('{"p": NaN}')["p"])
    assert loads_leniently(b'{"p": -Infinity}') == {"p": -math.inf}
    assert loads_leniently(b'{"half \\ud83d": ["\\udc00 pair"]}') == {"half �": ["� pair"]}
    assert loads_leniently(b'{"t": "caf\xe9"}') == {"t": "caf�"}
    assert loads_leniently(b'{"t": "\\ud83d\\ude00"}') == {"t": "\U0001f600"}
    with pytest.raises(ValueError, match="Expecting value"):
        loads_leniently(b"<html>")
    with pytest.raises(ValueError, match="deep"):
        loads_leniently(b"[" * 200_000 + b"NaN")


def test_a_number_longer_than_python_reads_costs_no_answer() -> None:
    assert read('{"t": "paid", "n": ' + "9" * 300 + "}")["n"] == int("9" * 300)
    assert read('{"t": "paid", "n": ' + "9" * 5000 + "}")["t"] == "paid"


def test_keys_are_written_as_json_writes_them() -> None:
    assert dumps({50256: -100, True: 1, None: 2, 1.5: 3}) == b'{"50256":-100,"true":1,"null":2,"1.5":3}'
    assert dumps({1: 2**64, "x": math.nan}) == b'{"1":18446744073709551616,"x":null}'


def test_deep_nesting_is_written_as_far_as_it_can_be_read() -> None:
    text = b"[" * 600 + b"9" * 300 + b"]" * 600
    assert dumps(loads(text)) == text
    assert b"null" in dumps(loads_leniently(b"[" * 300 + b"NaN" + b"]" * 300))
    with pytest.raises(ValueError, match="deep"):
        loads_leniently(b"[" * 900 + b'"\\ud83d"' + b"]" * 900)


@pytest.mark.parametrize("value", ["\ud800", object(), {(1, 2): 3}, ["\ud800", 2**70]])
def test_what_has_no_json(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)


class _Zone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta | None:
        raise ValueError("no zone")

    dst = utcoffset

    def tzname(self, when: dt.datetime | None) -> str | None:
        return None


@dataclasses.dataclass
class _Point:
    x: int
    when: dt.datetime
    _hidden: int = 3


@dataclasses.dataclass
class _Moody:
    x: int

    def __getattribute__(self, name: str) -> object:
        raise ValueError(name) if name == "x" else AttributeError(name)


def test_times_and_dataclasses() -> None:
    at = dt.datetime(2025, 1, 2, 3, 4, 5, 6, dt.UTC)
    assert dumps(_Point(2**70, at)) == b'{"x":%d,"when":"2025-01-02T03:04:05.000006+00:00"}' % (2**70)
    assert dumps([at.date(), at.time(), at.replace(tzinfo=None)]) == (
        b'["2025-01-02","03:04:05.000006","2025-01-02T03:04:05.000006"]'
    )


def test_a_value_that_raises_is_an_error_and_no_crash() -> None:
    for value in (dt.datetime(2025, 1, 1, tzinfo=_Zone()), _Moody(1), {"a": [_Moody(1)]}):
        with pytest.raises(TypeError):
            dumps(value)


class _Trap(enum.Enum):
    A = "a"

    @property
    def value(self) -> str:
        raise ValueError("no value today")


@dataclasses.dataclass
class _Holder:
    held: object
    _hidden: object = None


def test_an_enumeration_that_raises_is_found_wherever_it_is_held() -> None:
    for value in (_Trap.A, [(_Trap.A,)], {"a": {"b": _Trap.A}}, {_Trap.A: 1}, _Holder(_Trap.A), [_Holder([_Trap.A])]):
        with pytest.raises(ValueError, match="no value today"):
            try_enums(value)
    around = _Holder(None)
    around.held = [around, {"again": around}]
    for fine in (around, _Holder(1, _hidden=_Trap.A), _Holder, {"n": 1, "when": dt.date(2026, 1, 1)}):
        try_enums(fine)


def test_what_is_kept_takes_no_more_than_it_is_long() -> None:
    """orjson's own buffer is many times as long as a long text."""
    tracemalloc.start()
    try:
        kept = [dumps("x" * 100_000) for _ in range(8)]
        assert tracemalloc.get_traced_memory()[0] < 1.1 * sum(map(len, kept))
    finally:
        tracemalloc.stop()
