"""Merge JSON schemas that all have to be satisfied into one."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

__all__ = ["SchemaError", "follow_reference", "merge", "types_of"]

_GREATER = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_SMALLER = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_HINTS = {
    "object": frozenset({"properties", "required", "additionalProperties", "minProperties", "propertyNames"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}


class SchemaError(ValueError):
    """A schema cannot be understood."""


def types_of(schema: dict[str, Any]) -> list[str]:
    """Return the types that a schema allows. Without `type`, it is the one that its other keywords are about."""
    stated = schema.get("type")
    if stated is None:
        return [next((kind for kind, hints in _HINTS.items() if hints & schema.keys()), "string")]
    kinds = [stated] if isinstance(stated, str) else list(stated)
    if not kinds:
        raise SchemaError("a type without names")
    return kinds


def follow_reference(schema: Any, root: Any) -> Any:
    """Replace a schema's `$ref` (a JSON pointer into the root, RFC 6901). Its other keywords are kept."""
    for _ in range(32):
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        target = _at(str(schema["$ref"]), root)
        beside = {key: value for key, value in schema.items() if key not in ("$ref", "$defs", "definitions")}
        schema = merge(target, beside) if isinstance(target, dict) else target
    raise SchemaError("a $ref leads to itself")


def _at(reference: str, root: Any) -> Any:
    if not reference.startswith("#"):
        raise SchemaError(f"only references inside the schema are followed, not {reference!r}")
    place = root
    for step in reference[1:].split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        try:
            place = place[int(name)] if isinstance(place, list) else place[name]
        except (LookupError, TypeError, ValueError):
            raise SchemaError(f"nothing is at {reference!r}") from None
    return place


def merge(first: dict[str, Any], second: Any) -> dict[str, Any]:
    """Return a schema that allows what both allow, as far as it can be written without `allOf`."""
    if not isinstance(second, dict):
        return first
    merged = dict(first)
    for key, value in second.items():
        merged[key] = _both(key, merged[key], value) if key in merged else value
    return merged


def _both(key: str, first: Any, second: Any) -> Any:
    if first == second:
        return first
    if key in _GREATER:
        return max(first, second)
    if key in _SMALLER:
        return min(first, second)
    match key:
        case "required":
            return list(dict.fromkeys([*first, *second]))
        case "properties":
            shared = {name: {"allOf": [first[name], second[name]]} for name in first.keys() & second.keys()}
            return first | second | shared
        case "enum":
            return [value for value in first if value in second]
        case "type":
            return _common_types(types_of({"type": first}), types_of({"type": second}))
        case "items":
            return {"allOf": [first, second]}
        case "allOf":
            return [*first, *second]
        case "additionalProperties":
            return False if first is False or second is False else second
        case _:
            return second


def _common_types(first: list[str], second: list[str]) -> list[str]:
    both = [kind for kind in first if kind in second]
    if not both and "integer" in first + second:
        both = ["integer"]
    return both or first
