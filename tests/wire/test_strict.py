"""Schemas for strict mode: what is made strict, what is left as it is, and that it accepts the same values."""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from infermesh.wire.strict import NotStrictError, strict_schema
from infermesh.wire.structured import ResponseFormat

FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
TAKEN = {
    "type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "$ref", "$defs",
    "definitions", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minItems", "maxItems", "title", "description",
}  # fmt: skip


def refusal(node: Any, where: str = "#", *, named: bool = False) -> str | None:
    """Why OpenAI would refuse the schema, by its guide: an independent check of what is sent as strict."""
    if isinstance(node, list):
        return next((why for child in node if (why := refusal(child, where))), None)
    if not isinstance(node, dict):
        return None
    if not named:
        if unknown := set(node) - TAKEN:
            return f"{where}: {sorted(unknown)}"
        if "$ref" in node and len(node) > 1:
            return f"{where}: $ref cannot have keywords {sorted(set(node) - {'$ref'})}"
        if not node.keys() & {"type", "$ref", "anyOf"}:
            return f"{where}: no type"
        if node.get("format", "date") not in FORMATS:
            return f"{where}: format"
        if node.get("type") == "object" and (
            node.get("additionalProperties") is not False or set(node["required"]) != set(node["properties"])
        ):
            return f"{where}: object"
    inner = {"properties", "$defs", "definitions"}
    children = node.items() if named else ((k, v) for k, v in node.items() if k in {*inner, "items", "anyOf"})
    return next((why for k, v in children if (why := refusal(v, f"{where}/{k}", named=not named and k in inner))), None)


def holding(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"v": schema}, "required": ["v"], "additionalProperties": False, **more}


STAR = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"], "additionalProperties": False}
NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node", "description": "d"}, {"type": "null"}]}},
    "required": ["next"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "default": "x", "examples": ["y"], "x-order": 1}, {"type": "string"}),
        ({"allOf": [{"type": "string"}], "description": "d"}, {"type": "string", "description": "d"}),
        ({"enum": ["a", "b"]}, {"enum": ["a", "b"], "type": "string"}),
        ({"const": 1}, {"const": 1, "type": "integer"}),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"type": "string", "format": "date-time", "pattern": "^2"}, None),
    ],
)
def test_made_strict(schema: dict[str, Any], expected: dict[str, Any] | None) -> None:
    made = strict_schema(holding(schema))
    assert made["properties"]["v"] == (expected or schema)
    assert refusal(made) is None


def test_references() -> None:
    beside = holding({"$ref": "#/$defs/Star", "description": "the largest"}, **{"$defs": {"Star": STAR}})
    assert strict_schema(beside)["properties"]["v"] == {**STAR, "description": "the largest"}
    recursive = holding({"$ref": "#/$defs/Node", "title": "t"}, **{"$defs": {"Node": NODE}})
    made = strict_schema(recursive)
    assert made["properties"]["v"] == {"$ref": "#/$defs/Node"}
    assert refusal(made) is None
    root = strict_schema({"$ref": "#/$defs/Node", "$defs": {"Node": NODE}})
    assert root["type"] == "object"
    assert refusal(root) is None


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "format": "uri"}, "uri"),
        ({"type": "string", "minLength": 1}, "minLength"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, "prefixItems"),
        ({"type": "array"}, "items"),
        ({}, "type"),
        (True, "v"),
        ({"enum": ["a", 1]}, "type"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "additionalProperties"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}, "'a'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"allOf": [{"type": "string"}, {"pattern": "a"}]}, "allOf"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "#/$defs/None"}, "None"),
        ({"$ref": "https://example.com/s"}, "example.com"),
        ({"$ref": "#/$defs/Star", "minimum": 1}, "minimum"),
    ],
)
def test_not_strict(schema: Any, named: str) -> None:
    if isinstance(schema, dict) and schema.get("$ref") in ("#/$defs/None", "https://example.com/s"):
        schema = {**schema, "description": "d"}  # so that it has to be written out
    given = holding(schema, **{"$defs": {"Star": STAR}})
    with pytest.raises(NotStrictError, match=named):
        strict_schema(given)
    if isinstance(schema, dict) and "$ref" not in schema:
        wire = ResponseFormat.of(given).wire["json_schema"]
        assert (wire["strict"], wire["schema"]) == (False, given)


def test_an_open_root_and_a_root_of_alternatives() -> None:
    for root in ({"type": "array", "items": {"type": "string"}}, {**STAR, "anyOf": [STAR]}, {"type": "object"}):
        with pytest.raises(NotStrictError):
            strict_schema(root)


class Color(StrEnum):
    red = "red"
    blue = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    color: Color = Field(description="its color")


class Dog(BaseModel):
    kind: Literal["dog"]
    born: datetime.date
    other: Dog | None = Field(description="its friend")


class Zoo(BaseModel):
    """Animals."""

    first: Annotated[Cat | Dog, Field(discriminator="kind", description="the first")]
    cats: list[Cat] = Field(title="All cats", examples=[[]])
    weight: float | None


class Loose(BaseModel):
    names: set[str] = set()
    pair: tuple[int, str]
    table: dict[str, int]
    anything: Any = None


def test_pydantic_classes() -> None:
    wire = ResponseFormat.of(Zoo).wire["json_schema"]
    assert wire["strict"] is True
    assert refusal(wire["schema"]) is None
    loose = ResponseFormat.of(Loose)
    assert loose.wire["json_schema"]["strict"] is False
    assert loose.parse('{"pair": [1, "a"], "table": {"x": 1}, "names": ["b"]}').names == {"b"}


def test_a_strict_that_is_given_is_sent_as_given() -> None:
    inner = {"name": "n", "schema": holding({"type": "string", "default": "x"}), "strict": True}
    sent = ResponseFormat.of({"type": "json_schema", "json_schema": inner}).wire["json_schema"]
    assert (sent["strict"], sent["schema"]) == (True, inner["schema"])


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (holding({"type": "string", "pattern": "^(?=a)b"}), "v has a pattern"),
        (holding({"type": "string", "pattern": "(?<!a)b"}), "v has a pattern"),
        (holding({"type": "string", "pattern": r"(a)\1"}), "v has a pattern"),
        (holding({"type": "string"}, required=["v", "w"]), "'w'"),
        (holding({"enum": [f"{n:060d}" for n in range(251)]}), "enum values"),
    ],
)
def test_what_strict_mode_refuses(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(NotStrictError, match=why):
        strict_schema(schema)
    assert ResponseFormat.of(schema).wire["json_schema"] == {"name": "response", "schema": schema, "strict": False}


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": r"^\(?=\\1$"},
        {"type": "string", "pattern": "^(?:a|b)+$"},
        {"type": "string", "enum": [f"{n}" for n in range(251)]},
        {"type": "string", "enum": [f"{n:060d}" for n in range(250)]},
    ],
)
def test_what_strict_mode_takes(value: dict[str, Any]) -> None:
    assert strict_schema(holding(value)) == holding(value)


def test_an_object_without_properties_requires_none() -> None:
    made = strict_schema(holding({"type": "object", "additionalProperties": False}))
    assert (made["properties"]["v"]["properties"], made["properties"]["v"]["required"]) == ({}, [])
    assert refusal(made) is None
