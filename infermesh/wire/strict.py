"""Which JSON schemas OpenAI's strict mode takes, and what makes one of a schema that it would refuse.

Sources: "Supported schemas" in OpenAI's guide to Structured Outputs, and ``to_strict_json_schema`` of its Python SDK
(``openai/lib/_pydantic.py``). In strict mode the server refuses a schema with anything else before it serves a row;
with strict off it takes any schema as a hint, and vLLM and SGLang enforce what they can in either case.

A schema is made strict where that changes nothing of what it accepts:

=========================================  ==========================================================================
in the schema                              what is done
=========================================  ==========================================================================
``default``, ``examples``, ``$comment`` …  annotations: left out
``$ref`` beside a title or description     the definition is written out, with that title or description; where it
                                           refers to itself, the title and description are left out
``allOf`` of one schema                    written out
``oneOf``                                  ``anyOf``, where no value can fit two of its schemas
``enum``, ``const`` without ``type``       the type of the values is added
a root that is a ``$ref``                  the definition is written out
an object without ``required``             ``required: []`` is added, where it has no properties
=========================================  ==========================================================================

Anything else that strict mode does not take (an open object, an optional property, a schema without a type,
``uniqueItems``, ``prefixItems``, ``minLength``, a ``format`` that is not on the list, a look-around, …) leaves
the schema as it is, with strict off. The answer is checked against the whole schema here, in any case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["NotStrictError", "strict_schema"]

_ANNOTATIONS = frozenset(("title", "description"))  # those that strict mode takes, too
_ASSERTIONS = frozenset(
    ("type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "$ref", "$defs",
     "definitions", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
     "minItems", "maxItems")
)  # fmt: skip
_UNSUPPORTED = frozenset(
    ("allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
     "patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties", "prefixItems",
     "additionalItems", "unevaluatedItems", "contains", "minContains", "maxContains", "uniqueItems", "minLength",
     "maxLength", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$anchor", "$id", "$vocabulary")
)  # fmt: skip
_FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"))
_DEEPEST = 10  # levels of nesting
_MOST_PROPERTIES = 5000
_MOST_ENUM_VALUES = 1000
_LONG_ENUM, _MOST_ENUM_CHARACTERS = 250, 15_000  # what the values of one enumeration may come to, if they are more
# Look-ahead, look-behind and references to groups, where the parenthesis or the backslash is not escaped.
_LOOKS_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\(\?P=|\\[1-9k])")


class NotStrictError(ValueError):
    """The schema cannot be made strict without a change of what it accepts. The message names the keyword and where."""


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as strict mode takes it.

    Raises
    ------
    NotStrictError
        There is none that accepts the same values.

    Examples
    --------
    >>> city = {"type": "string", "default": "Oslo"}
    >>> strict_schema(
    ...     {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    ... )["properties"]
    {'city': {'type': 'string'}}
    """
    return _Maker(schema).make()


class _Maker:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._properties = self._values = 0

    def make(self) -> dict[str, Any]:
        root = dict(self._root)
        if isinstance(root.get("$ref"), str):
            target = self._target(root.pop("$ref"), "its root")
            root = {**target, **root}
        if root.get("type") != "object" or "anyOf" in root:
            raise NotStrictError("its root is not an object")
        made = self._node(root, "", 0)
        if self._properties > _MOST_PROPERTIES or self._values > _MOST_ENUM_VALUES:
            raise NotStrictError(f"it has more than {_MOST_PROPERTIES} properties or {_MOST_ENUM_VALUES} enum values")
        return made

    def _node(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        where = path or "its root"
        if not isinstance(node, Mapping):
            raise NotStrictError(f"{where} is not an object with a type")
        if depth > _DEEPEST:
            raise NotStrictError(f"{where} is nested more than {_DEEPEST} levels deep")
        node = self._rewritten(dict(node), where)
        if (keyword := next((name for name in node if name in _UNSUPPORTED), None)) is not None:
            raise NotStrictError(f"{where} has '{keyword}'")
        kept = {name: value for name, value in node.items() if name in _ASSERTIONS or name in _ANNOTATIONS}
        if "$ref" in kept:
            return {"$ref": kept["$ref"]}
        self._check_values(kept, where)
        kind = kept.get("type")
        kinds = [kind] if isinstance(kind, str) else list(kind or ())
        if "object" in kinds or "properties" in kept:
            properties = kept.get("properties", {})
            if kept.get("additionalProperties") is not False:
                raise NotStrictError(f"{where} takes further properties ('additionalProperties' is not false)")
            if optional := [name for name in properties if name not in kept.get("required", ())]:
                raise NotStrictError(f"{where} has an optional property '{optional[0]}'")
            required = kept.setdefault("required", [])
            if missing := [name for name in required if name not in properties]:
                raise NotStrictError(f"{where} requires a property '{missing[0]}' that it does not have")
            self._properties += len(properties)
            kept["properties"] = {
                name: self._node(child, f"{path}.{name}".lstrip("."), depth + 1) for name, child in properties.items()
            }
        if "array" in kinds or "items" in kept:
            if "items" not in kept:
                raise NotStrictError(f"{where} is an array without 'items'")
            kept["items"] = self._node(kept["items"], f"{path}[]", depth + 1)
        if "anyOf" in kept:
            kept["anyOf"] = [self._node(child, where, depth) for child in kept["anyOf"]]
        for name in ("$defs", "definitions"):
            if name in kept:
                kept[name] = {key: self._node(child, f"{name}.{key}", 0) for key, child in kept[name].items()}
        return kept

    def _rewritten(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        """The node in the words of strict mode, as far as that changes nothing."""
        if isinstance(node.get("allOf"), Sequence) and len(node["allOf"]) == 1:
            inner = node["allOf"][0]
            rest = {name: value for name, value in node.items() if name != "allOf"}
            if isinstance(inner, Mapping) and rest.keys().isdisjoint(_ASSERTIONS | _UNSUPPORTED):
                node = {**inner, **rest}
        if isinstance(node.get("oneOf"), Sequence) and "anyOf" not in node and self._disjoint(node["oneOf"], where):
            node["anyOf"] = node.pop("oneOf")
        if isinstance(node.get("$ref"), str):
            beside = {name for name in node if name in _ASSERTIONS or name in _UNSUPPORTED} - {"$ref"}
            if beside - {"$defs", "definitions"}:
                raise NotStrictError(f"{where} has '{min(beside)}' beside '$ref'")
            said = {name: node[name] for name in _ANNOTATIONS if name in node}
            if said and not self._refers_to_itself(node["$ref"], where):
                return self._rewritten({**self._target(node["$ref"], where), **said}, where)
            return {"$ref": node["$ref"]}
        return node

    def _check_values(self, node: dict[str, Any], where: str) -> None:
        """Check what an untyped schema, an enumeration or a format says, and add the type that values have."""
        values = node["enum"] if isinstance(node.get("enum"), list) else [node["const"]] if "const" in node else []
        self._values += len(values)
        if len(values) > _LONG_ENUM and sum(len(str(value)) for value in values) > _MOST_ENUM_CHARACTERS:
            raise NotStrictError(
                f"{where} has more than {_LONG_ENUM} enum values with more than {_MOST_ENUM_CHARACTERS:,} characters"
            )
        if isinstance(pattern := node.get("pattern"), str) and _LOOKS_AROUND.search(pattern):
            raise NotStrictError(f"{where} has a pattern with look-around or a back-reference")
        if "type" not in node and "anyOf" not in node:
            kinds = {_type_of(value) for value in values}
            if len(kinds) != 1 or kinds == {None}:
                raise NotStrictError(f"{where} has no 'type'")
            node["type"] = kinds.pop()
        if "format" in node and node["format"] not in _FORMATS:
            raise NotStrictError(f"{where} has the format '{node['format']}'")

    def _target(self, reference: str, where: str) -> dict[str, Any]:
        target: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                part = part.replace("~1", "/").replace("~0", "~")
                target = target.get(part) if isinstance(target, Mapping) else None
        if not reference.startswith("#") or not isinstance(target, Mapping):
            raise NotStrictError(f"{where} has the reference '{reference}', which leads out of the schema")
        return dict(target)

    def _refers_to_itself(self, reference: str, where: str) -> bool:
        """Whether the definition comes to itself again, by whatever way."""
        waiting, seen = [reference], set()
        while waiting:
            current = waiting.pop()
            for found in _references(self._target(current, where)):
                if found in (reference, "#"):
                    return True
                if found not in seen:
                    seen.add(found)
                    waiting.append(found)
        return False

    def _disjoint(self, alternatives: Sequence[Any], where: str) -> bool:
        """Whether no value fits two of the schemas: their types differ, or a required property has other constants."""
        found = [
            self._target(item["$ref"], where)
            if isinstance(item, Mapping) and isinstance(item.get("$ref"), str)
            else item
            for item in alternatives
        ]
        if not all(isinstance(item, Mapping) for item in found):
            return False
        kinds = [str(item.get("type")).replace("integer", "number") for item in found]
        if all(isinstance(item.get("type"), str) for item in found) and len(set(kinds)) == len(kinds):
            return True
        constants = [_constants(item) for item in found]
        shared = set(constants[0]).intersection(*constants[1:]) if constants else set()
        return any(len({each[name] for each in constants}) == len(constants) for name in shared)


def _constants(schema: Mapping[str, Any]) -> dict[str, str]:
    """Required property → the only value that it may have."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {
        name: repr(child["const"] if "const" in child else child["enum"][0])
        for name, child in properties.items()
        if isinstance(child, Mapping)
        and name in schema.get("required", ())
        and ("const" in child or (isinstance(child.get("enum"), list) and len(child["enum"]) == 1))
    }


def _references(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for child in node.values() for found in _references(child)]
    if isinstance(node, list):
        return [found for child in node for found in _references(child)]
    return []


def _type_of(value: Any) -> str | None:
    names = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (type(None), "null"))
    return next((name for kind, name in names if isinstance(value, kind)), None)
