"""JSON of any kind: exact both ways, found in what models write around it, and never more than a ``ValueError``."""

from __future__ import annotations

import contextlib
import json
import math
from decimal import Decimal
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from infermesh.exact_json import dumps, inexact_members, loads, loads_leniently, read, read_exactly, shown
from infermesh.wire.extraction import candidates, mended, split_thoughts
from infermesh.wire.structured import ResponseFormat, stored_json
from tests.mutations import any_text, clean_text, json_values, written

_exact = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | clean_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(clean_text, inner, max_size=4),
    max_leaves=10,
)
_objects = st.dictionaries(st.text("abcxyz", max_size=3), _exact, min_size=1, max_size=4)
_MARKS = [
    *("<think>", "</think>", "[THINK]", "[/THINK]", "◁/think▷", "<|channel|>final<|message|>", "<|end|>", "analysis"),
    *("assistantfinal", "```", "```json\n", "\n```\n", "~~~\n", "{", "}", "[", "]", '"', "\\", ",", ":", "\n", "null"),
    *(
        '{"a": 1}',
        "[1, 2]",
        "1e999",
        "9" * 5000,
        "NaN",
        "\\ud800",
        "deep",
        "[" * 400,
        '{"a":' * 400,
        "Here's my response:",
    ),
]
_answers = st.lists(st.sampled_from(_MARKS) | any_text, max_size=10).map("".join)
_words = st.text("abc .,!?\n", max_size=30)


class Item(BaseModel):
    name: str
    price: Decimal | None = None
    tags: list[str] = []
    inner: Item | None = None


_SCHEMA = {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.01}, "b": {"enum": [1, "x"]}}}
_FORMATS = [
    ResponseFormat.any_json(),
    ResponseFormat.of({"type": "json_object"}),
    ResponseFormat.of(_SCHEMA),
    ResponseFormat.of(Item),
    ResponseFormat.of({"$ref": "#"}),
]


def same(first: Any, second: Any) -> bool:
    """Equal in types too: 1 is neither 1.0 nor true."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


@given(_exact)
def test_what_is_written_is_read_again(value: Any) -> None:
    data = dumps(value)
    assert same(loads(data), value)
    assert same(read(data.decode()), value)
    assert same(loads_leniently(data), value)
    assert shown(value) == data.decode()


@given(json_values() | st.integers().map(lambda number: {number: [number]}))
def test_what_json_has_no_name_for_is_null_or_refused(value: Any) -> None:
    shown(value)
    with contextlib.suppress(TypeError):
        loads(dumps(value))


@given(json_values().map(written) | st.binary(max_size=30))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    for reader in (loads, read, loads_leniently):
        with contextlib.suppress(ValueError):
            shown(reader(data))
    text = data.decode("utf-8", "replace")
    inexact_members(text)
    with contextlib.suppress(ValueError):
        read_exactly(text)


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_every_digit_is_kept(digits: str) -> None:
    found = read_exactly(f'{{"n": {digits}}}')["n"]
    assert Decimal(repr(found) if isinstance(found, float) else found) == Decimal(digits)
    kept = inexact_members(f'{{"n": {digits}}}')
    assert kept == ({"n": digits} if isinstance(found, Decimal) else {})


@given(_answers | json_values().map(lambda value: written(value).decode()), st.sampled_from(_FORMATS), st.booleans())
def test_an_answer_is_read_or_refused(text: str, response_format: ResponseFormat, last: bool) -> None:
    thoughts, rest = split_thoughts(text)
    assert isinstance(rest, str)
    assert thoughts is None or isinstance(thoughts, str)
    for _, place in candidates(text, last=last):
        with contextlib.suppress(ValueError):
            mended(place)
    with contextlib.suppress(ValueError, TypeError):  # what a stage makes of both is an answer without `parsed`
        parsed = response_format.parse_apart(text)[0]
        orjson.loads(stored_json(parsed))


@given(_objects, _words, _words, st.sampled_from(["```", "```json", "~~~", "````"]), st.integers(0, 2))
def test_an_object_in_a_fence_is_found(value: dict[str, Any], before: str, after: str, fence: str, indent: int) -> None:
    text = dumps(value).decode() if not indent else json.dumps(value, indent=indent)
    answer = f"{before}\n{fence}\n{text}\n{fence.removesuffix('json')}\n{after}"
    for thoughts in ("", "<think>Is it {?</think>"):
        assert same(ResponseFormat.of({"type": "object"}).parse(thoughts + answer), value)
        assert same(ResponseFormat.of({"type": "json_object"}).parse(thoughts + answer), value)


@given(st.floats())
def test_a_stored_number_is_no_other(number: float) -> None:
    with contextlib.suppress(ValueError):
        assert same(loads(stored_json([number])), [number])
        assert math.isfinite(number)
