from __future__ import annotations

import logging
import time
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import regex
from pydantic import BaseModel, ConfigDict, field_validator

from infermesh.errors import ConfigError
from infermesh.wire import keywords
from infermesh.wire.structured import ResponseFormat, stored_json, to_json


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    name: str


class Answer(BaseModel):
    value: int
    colour: Colour
    parts: list[Part]


class Loose(BaseModel):
    value: int
    note: str = "none"


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    value: int


STRICT = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "kind": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    "required": ["value", "kind"],
    "additionalProperties": False,
}
GOOD = '{"value": 4, "colour": "red", "parts": [{"name": "a"}]}'


def test_a_pydantic_class() -> None:
    form = ResponseFormat.of(Answer)
    wire = form.wire["json_schema"]
    assert (form.wire["type"], wire["name"], wire["strict"]) == ("json_schema", "Answer", True)
    assert wire["schema"]["additionalProperties"] is False
    assert wire["schema"]["$defs"]["Part"]["additionalProperties"] is False
    parsed = form.parse(GOOD)
    assert parsed == Answer(value=4, colour=Colour.RED, parts=[Part(name="a")])
    assert form.parse(to_json(parsed)) == parsed
    assert ResponseFormat.of(form) is form


@pytest.mark.parametrize("model", [Loose, Open])
def test_what_strict_mode_refuses_is_not_strict(model: type[BaseModel]) -> None:
    assert ResponseFormat.of(model).wire["json_schema"]["strict"] is False


def test_a_field_called_default_is_closed_too() -> None:
    class Odd(BaseModel):
        default: Part

    assert ResponseFormat.of(Odd).wire["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (STRICT, True),
        ({**STRICT, "required": ["value"]}, False),
        ({k: v for k, v in STRICT.items() if k != "additionalProperties"}, False),
        ({**STRICT, "allOf": [{}]}, False),
        ({"type": "array", "items": {"type": "string"}}, False),
        ({**STRICT, "properties": {"value": {"type": "object"}, "kind": {}}}, False),
    ],
)
def test_strictness_of_a_schema(schema: dict[str, Any], strict: bool) -> None:
    form = ResponseFormat.of(schema)
    assert form.wire == {
        "type": "json_schema",
        "json_schema": {"name": "response", "schema": schema, "strict": strict},
    }


def test_the_openai_wrapper() -> None:
    spec = {"type": "json_schema", "json_schema": {"name": "my answer!", "schema": STRICT, "strict": False}}
    form = ResponseFormat.of(spec)
    assert form.wire["json_schema"] == {"name": "my_answer", "schema": STRICT, "strict": False}
    assert form.parse('{"value": 1, "kind": null}') == {"value": 1, "kind": None}
    flat = ResponseFormat.of({"type": "json_schema", "name": "a", "schema": STRICT})
    assert flat.wire["json_schema"] == {"name": "a", "schema": STRICT, "strict": True}


def test_json_object() -> None:
    form = ResponseFormat.of({"type": "json_object"})
    assert form.wire == {"type": "json_object"}
    assert form.parse('{"a": [1]}') == {"a": [1]}
    for bad in ("[1]", "nope", ""):
        with pytest.raises(ValueError, match="JSON"):
            form.parse(bad)


@pytest.mark.parametrize(
    "around", ["{}", "\n {} \n", "```json\n{}\n```", "```\n{}```", " ```JSON\n{}\n```\n", "\ufeff{}"]
)
@pytest.mark.parametrize("spec", [Answer, Answer.model_json_schema()])
def test_fences_and_white_space(around: str, spec: Any) -> None:
    assert to_json(ResponseFormat.of(spec).parse(around.replace("{}", GOOD))).replace(" ", "") == GOOD.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("I'd say 4", "not JSON"),
        ('{"value": 4', "not JSON"),
        ('{"value": "four", "colour": "red", "parts": []}', "value"),
        ('{"value": 4, "colour": "red"}', "parts"),
        ('{"value": 4, "colour": "red", "parts": [{"name": 7}]}', "name"),
    ],
)
@pytest.mark.parametrize("spec", [Answer, Answer.model_json_schema()])
def test_answers_that_do_not_fit(spec: Any, text: str, said: str) -> None:
    with pytest.raises(ValueError, match="the answer") as caught:
        ResponseFormat.of(spec).parse(text)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [None, "Answer", int, [], {"type": "nonsense"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 7}],
)
def test_what_is_no_format(spec: Any) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        ResponseFormat.of(spec)


def test_a_remote_reference_is_not_downloaded() -> None:
    form = ResponseFormat.of({"$ref": "http://elsewhere.invalid/schema.json"})
    with pytest.raises(ValueError, match="leads nowhere"):
        form.parse("{}")


def test_to_json_of_plain_values() -> None:
    assert to_json({"a": [1, None, "é"]}) == '{"a":[1,null,"é"]}'


class Price(BaseModel):
    amount: Decimal
    parts: list[Decimal] = []
    rate: float = 0.0
    note: str | float = ""


@pytest.mark.parametrize("number", ["3.14159265358979323846", "12345678901234567890.123456789", "0.1", "-1e-30"])
def test_decimals_keep_every_digit(number: str) -> None:
    parsed = ResponseFormat.of(Price).parse(f'{{"amount": {number}, "parts": [{number}], "note": "{number}"}}')
    assert parsed == Price(amount=Decimal(number), parts=[Decimal(number)], note=number)


def test_other_numbers_beside_decimals_stay_what_they_are() -> None:
    parsed = ResponseFormat.of(Price).parse('{"amount": 1.5, "rate": 3.14159265358979323846}')
    assert parsed.rate == 3.141592653589793
    parsed = ResponseFormat.of(Price).parse('{"amount": 3.14159265358979323846, "note": 3.14159265358979323846}')
    assert parsed.note == 3.141592653589793


@pytest.mark.parametrize(
    ("number", "factor", "fits"),
    [
        ("19.99", 0.01, True),
        ("4.35", 0.01, True),
        ("0.3", 0.1, True),
        ("1e300", 0.01, True),
        ("19.995", 0.01, False),
        ("7", 2, False),
        (str(2**70), 2, True),
        ("NaN", 2, False),
    ],
)
def test_multiples_go_by_the_digits(number: str, factor: float, fits: bool) -> None:
    form = ResponseFormat.of({"type": "object", "properties": {"x": {"multipleOf": factor}}})
    if fits:
        assert form.parse(f'{{"x": {number}}}')
        return
    with pytest.raises(ValueError, match="is not a multiple of"):
        form.parse(f'{{"x": {number}}}')


def test_patterns_that_nobody_here_can_read_are_left_to_the_server(caplog: pytest.LogCaptureFixture) -> None:
    word = {"type": "string", "pattern": r"^\p{Script=NoSuch}+$"}
    schema = {
        "type": "object",
        "properties": {"word": word, "pattern": {"type": "string", "pattern": "^a+$"}},
        "patternProperties": {r"^(?<=b+)c": {"type": "integer"}, "^b": {"type": "integer"}, "^(": {}},
        "additionalProperties": False,
    }
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            form = ResponseFormat.of(schema)
    assert ["NoSuch" in line or "'^('" in line for line in caplog.messages] == [True, True]
    assert form.wire["json_schema"]["schema"] == schema
    good = {"word": "Öl", "pattern": "aa", "b": 1, "X": 1}
    assert form.parse(to_json(good)) == good
    for bad in ({"pattern": "b"}, {"b": "x"}):
        with pytest.raises(ValueError, match="does not fit"):
            form.parse(to_json(bad))
    with pytest.raises(ConfigError, match="not a valid JSON schema"):
        ResponseFormat.of({"type": "object", "properties": {"a": {"pattern": 7}}})


def test_patterns_as_json_schema_has_them() -> None:
    """ECMA-262's classes of letters; what a pattern names is no additional property."""
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "pattern": r"^\p{L}+$"}},
        "patternProperties": {r"^\p{Lu}": {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
    }
    form = ResponseFormat.of(schema)
    good = {"word": "Öl", "Äpfel": 3, "birne": True}
    assert form.parse(to_json(good)) == good
    closed = ResponseFormat.of(schema | {"additionalProperties": False})
    assert closed.parse(to_json({"word": "Öl", "Äpfel": 3})) == {"word": "Öl", "Äpfel": 3}
    for bad, of in (
        ({"word": "1"}, form),
        ({"Äpfel": "3"}, form),
        ({"birne": 1}, form),
        ({"birne": True}, closed),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            of.parse(to_json(bad))


@pytest.mark.parametrize("where", ["pattern", "patternProperties", "additionalProperties"])
def test_a_pattern_that_never_ends_costs_its_answer_half_a_second(where: str) -> None:
    endless, text = "^(a|a)*$", "a" * 60 + "b"
    schemas: dict[str, dict[str, Any]] = {
        "pattern": {"type": "object", "properties": {"x": {"type": "string", "pattern": endless}}},
        "patternProperties": {"type": "object", "patternProperties": {endless: {}}},
        "additionalProperties": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {endless: {}},
        },
    }
    answer = {"x": text} if where == "pattern" else {text: 1}
    with pytest.raises(
        ValueError, match=r"cannot be checked: the schema's pattern '\^\(a\|a\)\*\$' takes more than 0\.5 s"
    ):
        ResponseFormat.of(schemas[where]).parse(to_json(answer))


def test_many_slow_searches_of_one_answer_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, letters, took = "^(a|a)*$", 8, 0.0
    while took < 0.02:  # each letter doubles it
        letters += 1
        begun = time.perf_counter()
        regex.search(pattern, "a" * letters + "b")
        took = time.perf_counter() - begun
    monkeypatch.setattr(keywords, "_ANSWER_S", 0.2)
    strings = {"type": "array", "items": {"type": "string", "not": {"pattern": pattern}}}
    of = ResponseFormat.of({"type": "object", "properties": {"x": strings}})
    slow = ["a" * letters + "b"] * 100
    with pytest.raises(ValueError, match=r"cannot be checked: .* more than 0\.2 s with all searches in it"):
        of.parse(to_json({"x": slow}))
    assert of.parse(to_json({"x": slow[:2]})) == {"x": slow[:2]}  # the next answer has its own


class Loaded(BaseModel):
    x: float | None
    text: str = "null"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", "9" * 5000])
def test_what_json_has_no_name_for_is_not_stored_as_something_else(number: str) -> None:
    with pytest.raises(ValueError, match="no name for"):
        stored_json(ResponseFormat.any_json().parse(f'{{"x": [{number}, null]}}'))
    if not number.startswith("9"):
        with pytest.raises(ValueError, match="no name for"):
            stored_json(ResponseFormat.of(Loaded).parse(f'{{"x": {number}}}'))


def test_what_json_has_is_stored() -> None:
    assert stored_json({"x": None, "y": ["NaN", 1.5]}) == '{"x":null,"y":["NaN",1.5]}'
    assert stored_json(Loaded(x=None)) == '{"x":null,"text":"null"}'


def test_whether_a_class_runs_code_of_its_own() -> None:
    class Plain(BaseModel):
        city: str
        at: Decimal
        kind: Enum
        place: Path

    class Checked(BaseModel):
        city: str

        @field_validator("city")
        @classmethod
        def check(cls, value: str) -> str:
            return value

    class Around(BaseModel):
        places: list[Checked | None]

    class Late(BaseModel):
        city: str

        def model_post_init(self, context: Any) -> None:
            self.city = "x"

    models: list[type[BaseModel]] = [Checked, Around, Late]
    assert [ResponseFormat.of(model).runs_code for model in models] == [True, True, True]
    assert not ResponseFormat(wire={}, model=Plain).runs_code
    assert not ResponseFormat.of({"type": "object"}).runs_code
