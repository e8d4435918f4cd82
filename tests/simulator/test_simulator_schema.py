"""Filled schemas satisfy them, as the jsonschema library sees it."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest

from infermesh.simulator.content import Prompt
from infermesh.simulator.patterns import example
from infermesh.simulator.schema import SchemaError, fill
from infermesh.simulator.strings import Draft

PROMPT = (
    "Rate the review. Choose from: very_negative, neutral, very positive.\n\n"
    '"""The blender arrived on day 3 with order AB-1234 and cost 49.90 euro. It is neutral in taste. '
    'I like the blender, the jar of the blender and the 7 speeds."""'
)
NODE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["name", "next", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/Node",
}
UNION = {
    "$defs": {
        "Cat": {
            "type": "object",
            "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
            "required": ["kind"],
        },
        "Dog": {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]},
    },
    "type": "object",
    "properties": {"pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "discriminator": {"x": 1}}},
    "required": ["pet"],
}
PATTERNS = [r"^[A-Z]{2}-\d{4}$", r"^\d{3}-\d{2}$", "^(yes|no)$", "^#[0-9a-f]{6}$", r"^\S+@\S+\.\w{2,}$", "^.{3,}$"]
SCHEMAS: list[Any] = [
    True,
    {},
    {"type": "null"},
    {"type": "boolean"},
    {"const": {"a": [1]}},
    {"enum": [1, None, "x"]},
    {"type": ["string", "null"]},
    {"type": ["null", "integer"], "minimum": 3},
    {"type": "string", "minLength": 400, "maxLength": 410},
    {"type": "string", "maxLength": 5},
    {"type": "string", "maxLength": 0},
    {"type": "string", "minLength": 1, "maxLength": 1},
    *({"type": "string", "format": form} for form in ("date", "date-time", "email", "uuid", "ipv4", "time", "uri")),
    *(
        {"type": "string", "pattern": pattern}
        for pattern in PATTERNS
    ),
    {"type": "string", "pattern": "^[a-z]+$", "minLength": 12, "maxLength": 12},
    {"type": "integer", "minimum": 5, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 7},
    {"type": "integer", "minimum": 1000, "multipleOf": 7},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
    {"type": "number", "maximum": -5.5},
    {"type": "number", "minimum": 0.2, "maximum": 0.9, "multipleOf": 0.1},
    {"type": "array", "items": {"type": "string"}, "minItems": 5, "maxItems": 5, "uniqueItems": True},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 4}, "minItems": 4, "uniqueItems": True},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "object"},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
    {"type": "object", "propertyNames": {"pattern": "^k_[a-z]{3}$"}, "additionalProperties": {"type": "null"}},
    {"allOf": [{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 2}}},
               {"properties": {"a": {"maximum": 3}, "b": {"type": "string"}}, "required": ["b"]}]},
    {"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}]},
    {"$defs": {"S": {"type": "string", "maxLength": 9}}, "properties": {"s": {"$ref": "#/$defs/S", "minLength": 9}}},
    {"$defs": {"a/b": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/a~1b"}, "minItems": 1},
    {"$defs": {"N": {"type": "object", "properties": {"child": {"$ref": "#/$defs/N"}}}}, "$ref": "#/$defs/N"},
    NODE,
    UNION,
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("prompt", [PROMPT, "", "Hi."])
def test_the_value_satisfies_the_schema(schema: Any, prompt: str, variant: int) -> None:
    value = fill(schema, Draft(Prompt(prompt), seed=5, variant=variant))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


def filled(schema: Any, prompt: str = PROMPT) -> Any:
    return fill(schema, Draft(Prompt(prompt), seed=0))


def test_values_come_from_the_prompt() -> None:
    assert filled({"enum": ["very_negative", "very_positive", "neutral"]}) == "neutral"
    assert filled({"enum": ["bad", "very-positive"]}) == "very-positive"
    assert filled({"type": "string", "pattern": r"^[A-Z]{2}-\d{4}$"}) == "AB-1234"
    assert filled({"type": "integer", "minimum": 4, "maximum": 9}) == 7
    assert filled({"type": "number", "minimum": 10}) == 49.9
    assert filled({"type": "array", "items": {"type": "string"}}) == ["blender", "arrived"]
    texts = filled({"type": "object", "properties": {"title": {"type": "string"}, "reason": {"type": "string"}}})
    assert texts["title"] in PROMPT
    assert texts["reason"] in PROMPT
    assert texts["title"] != texts["reason"]


def test_a_list_does_not_change_what_comes_after_it() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array"}, "mood": {"enum": ["sad", "neutral"]}}}
    assert filled(schema)["mood"] == "neutral"


def test_all_properties_are_given() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}}}
    assert filled(schema).keys() == {"a", "b"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/nowhere"},
        {"$ref": "http://x/y"},
        {"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
        {"type": "colour"},
        {"enum": []},
        {"type": "number", "multipleOf": 0},
        {"type": "object", "properties": 7},
        {"type": "string", "minLength": "x"},
    ],
)
def test_senseless_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(SchemaError):
        filled(schema)


@pytest.mark.parametrize("pattern", [r"a|b", r"[^a-z]{2}", r"\d+(\.\d+)?", r"(?i:ab)c*?", r"^\w+\s\W$", "[^a]b"])
def test_examples_match_their_pattern(pattern: str) -> None:
    text = example(pattern)
    assert text is not None
    assert re.search(pattern, text)


def test_no_example() -> None:
    assert example("(unclosed") is None
    assert example(r"(a)\1(?<=b)") is None
    assert example("^aaa$", maximum=2) is None
