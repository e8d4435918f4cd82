"""The JSON in an answer that holds more than JSON."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from pydantic import BaseModel

from infermesh.wire.extraction import split_thoughts
from infermesh.wire.structured import ResponseFormat, to_json

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class City(BaseModel):
    city: str


OSLO = '{"city": "Oslo"}'
MARKED = [
    "<|channel|>analysis<|message|>ROME?<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>OSLO",
    "analysisMaybe ROME?assistantfinalOSLO",
    "<seed:think>Maybe ROME?</seed:think>OSLO",
    "<|START_THINKING|>Maybe ROME?<|END_THINKING|><|START_RESPONSE|>OSLO<|END_RESPONSE|>",
    "Here is my thought process: Maybe ROME?\n\nHere is my response: OSLO",
    "<reason>Maybe ROME?</reason>OSLO",
    "<unused94>thought\nMaybe ROME?<unused95>OSLO",
    "<|channel>thought\nMaybe ROME?<channel|>OSLO",
    "<|inner_prefix|>Maybe ROME?<|inner_suffix|>OSLO",
    "For example ROME. Final answer: OSLO",
    "The input was\n```json\nROME\n```\nAnswer: OSLO",
    "<think>Maybe ROME?\n\nOSLO",
    "<think>Maybe ROME?\n```json\nOSLO\n```\n</think>",
    "{} " * 200 + "OSLO",
    'OSLO says {"cities": ["Rome"]}',
]


@pytest.mark.parametrize("format_of", [CITY, City])
@pytest.mark.parametrize(
    "text",
    [
        OSLO,
        f"\ufeff{OSLO}\n",
        f'<think>\nMaybe {{"city": "Rome"}}?\n</think>\n\n```json\n{OSLO}\n```',
        f'no first tag {{"city": "Rome"}}</think>{OSLO}',
        f"<thinking>x</thinking>{OSLO}",
        f'[THINK]{{"city": "Rome"}}[/THINK]{OSLO}',
        f'<|channel|>analysis<|message|>{{"city":"Rome"}}<|end|><|start|>assistant<|channel|>final<|message|>{OSLO}',
        f"<|channel|>final <|constrain|>json<|message|>{OSLO}<|return|>",
        f"```json\n{OSLO}\n```",
        f"```\n{OSLO}\n```",
        f"``` {OSLO} ```",
        f"~~~json\n{OSLO}\n~~~",
        f"Sure!\n```json\n{OSLO}\n```\nHope that helps {{x}}!",
        f'```json\n{OSLO}\n```\n```json\n{{"note": 1}}\n```',
        f'```json\n{{"city": "Rome"}}\n```\nNo, better:\n```json\n{OSLO}\n```',
        f'For example {{"name": 1}}. The answer is {OSLO}.',
        f"[1] says {OSLO}",
        f"```json\n{OSLO}",
        *(text.replace("ROME", '{"city": "Rome"}').replace("OSLO", OSLO) for text in MARKED),
    ],
)
def test_found(format_of: Any, text: str) -> None:
    parsed = ResponseFormat.of(format_of).parse(text)
    assert parsed == {"city": "Oslo"} or parsed == City(city="Oslo")


def test_what_is_json_as_it_stands_is_not_looked_into() -> None:
    inner = '<think>{"city": "Rome"}</think>```json {"city": "Rome"}```'
    assert ResponseFormat.of(CITY).parse(to_json({"city": inner})) == {"city": inner}
    assert ResponseFormat.any_json().parse('"```json 1```"') == "```json 1```"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Oslo", "is not JSON"),
        ("", "is not JSON"),
        ('<think>Maybe {"city": "Rome"}', "is not JSON"),
        ('```json\n{"town": "Oslo"}\n```', "does not fit"),
        ('{"city": "Oslo"', "is not JSON"),
    ],
)
@pytest.mark.parametrize("format_of", [CITY, City])
def test_not_found(format_of: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResponseFormat.of(format_of).parse(text)


def test_marks_within_the_json_are_its_text() -> None:
    form = ResponseFormat.of(CITY)
    tagged = '{"city": "Oslo </think>"}'
    assert form.parse_apart(f"<think>a</think>{tagged}") == ({"city": "Oslo </think>"}, "a")
    fenced = to_json({"city": '```json\n{"city": "Rome"}\n```'})
    assert form.parse(f"Sure: {fenced}.")["city"].startswith("```")


def test_the_thoughts_of_an_answer_are_those_before_it() -> None:
    form = ResponseFormat.of(CITY)
    assert form.parse_apart(OSLO) == ({"city": "Oslo"}, None)
    assert form.parse_apart(f"analysisHm.assistantfinal{OSLO}") == ({"city": "Oslo"}, "Hm.")
    assert form.parse_apart(f"<think>Hm.\n\n{OSLO}") == ({"city": "Oslo"}, "Hm.")


def test_a_part_of_unfinished_thoughts_is_no_answer() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        ResponseFormat.of(CITY).parse('<think>\n[\n{"city": "Rome"},\n{"city": "Oslo"}\n] or')


def test_any_json_prefers_the_whole_answer_to_a_footnote() -> None:
    assert ResponseFormat.any_json().parse('As [1] says: {"a": [1, 2]}') == {"a": [1, 2]}


def test_integers_are_exact() -> None:
    wei = 19876543210987654321
    schema = {"type": "object", "properties": {"wei": {"type": "integer"}}}
    parsed = ResponseFormat.of(schema).parse(f'{{"wei": {wei}}}')
    assert parsed == {"wei": wei}
    assert to_json(parsed) == f'{{"wei":{wei}}}'


def test_what_only_the_standard_forbids_is_no_loss() -> None:
    schema = {"type": "object", "properties": {"t": {"type": "string"}, "x": {"type": "number"}}}
    assert ResponseFormat.of(schema).parse('{"t": "half \\ud83d"}') == {"t": "half �"}
    parsed = ResponseFormat.of(schema).parse('{"x": NaN}')
    assert parsed["x"] is None or math.isnan(parsed["x"])


@pytest.mark.parametrize(
    "around", ["{}", "```json\n{}\n```", "<think>x</think>{}", "<think>x</think>So:\n```\n{}\n```"]
)
@pytest.mark.parametrize(
    ("text", "city"),
    [
        ('{"city": "Os\\ud83dlo"}', "Os\ufffdlo"),
        ('{"city": "Os\nlo"}', "Os\nlo"),
        ('{"city": "Os\tlo"}', "Os\tlo"),
        ('{"city": "Oslo, ]",}', "Oslo, ]"),
        ('{"city":\u00a0"Os\u00a0lo"\u200b}', "Os\u00a0lo"),
        ('{"city": "\\"Oslo\\",}",\n}', '"Oslo",}'),
    ],
)
@pytest.mark.parametrize("format_of", [CITY, City])
def test_what_only_the_standard_forbids(format_of: Any, text: str, city: str, around: str) -> None:
    parsed = ResponseFormat.of(format_of).parse(around.replace("{}", text))
    assert parsed == {"city": city} or parsed == City(city=city)


def test_raw_line_breaks_between_words() -> None:
    assert ResponseFormat.of(CITY).parse('It is {"city": "Os\nlo"}, I think.') == {"city": "Os\nlo"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>b", ("a", "b")),
        ("<think>a", ("a", "")),
        ("a</think>\n b", ("a", "b")),
        ("plain", (None, "plain")),
        ("I <think> so", (None, "I <think> so")),
    ],
)
def test_thoughts(text: str, expected: tuple[str | None, str]) -> None:
    assert split_thoughts(text) == expected


@pytest.mark.parametrize("part", ["{", "[", "```\n", '{"a":', "<think>", "</think>", '{"', "{} ", '\\"', "{,"])
def test_the_search_takes_linear_time(part: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match="the answer"):
        ResponseFormat.of(CITY).parse("x" + part * 100_000)
    assert time.perf_counter() - started < 15  # quadratic would take minutes
