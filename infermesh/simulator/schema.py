"""Make JSON that satisfies a JSON schema, from quotes of a prompt.

A schema is compiled once into nested functions, which are cached: to fill one takes microseconds. `not`, `if`,
`dependent*`, `contains` and `patternProperties` are ignored, and the branches of a `oneOf` are assumed to exclude each
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson

from infermesh.simulator import strings
from infermesh.simulator.content import pick
from infermesh.simulator.merging import SchemaError, follow_reference, merge, types_of
from infermesh.simulator.strings import Draft

__all__ = ["SchemaError", "fill"]

Filler = Callable[[Draft], Any]

# Below this depth only required properties are written, so that recursive schemas end.
_DEEP = 5
_NEARBY = sorted(range(-8, 64), key=abs)


def fill(schema: Any, draft: Draft) -> Any:
    """Return a value which satisfies the schema.

    Raises
    ------
    SchemaError
        If the schema cannot be understood (a `$ref` to nowhere, a malformed keyword).
    """
    try:
        return _compiled(orjson.dumps(schema))(draft)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise SchemaError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=256)
def _compiled(blob: bytes) -> Filler:
    root = orjson.loads(blob)
    return _Compiler(root).compile(root)


class _Compiler:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._named: dict[bytes, Filler | None] = {}

    def compile(self, schema: Any) -> Filler:
        if not isinstance(schema, dict):
            return strings.compile_string({}) if schema else lambda draft: None
        if "$ref" not in schema:
            return self._compile_inline(schema)
        key = orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
        if key not in self._named:
            # Entered before it is compiled: a schema that contains itself finds the entry, and reads it when it runs.
            self._named[key] = None
            self._named[key] = self._compile_inline(follow_reference(schema, self._root))
        return self._named[key] or (lambda draft: self._late(key)(draft))

    def _late(self, key: bytes) -> Filler:
        filler = self._named[key]
        if filler is None:
            raise SchemaError("a $ref leads to itself")
        return filler

    def _compile_inline(self, schema: dict[str, Any]) -> Filler:
        for part in schema.get("allOf", ()):
            schema = merge(schema, follow_reference(part, self._root))
        schema = {key: value for key, value in schema.items() if key != "allOf"}
        if "const" in schema:
            constant = schema["const"]
            return lambda draft: constant
        if "enum" in schema:
            return _enum(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                base = {name: value for name, value in schema.items() if name != key}
                return self._branches(base, schema[key])
        return self._typed(schema)

    def _typed(self, schema: dict[str, Any]) -> Filler:
        kinds = types_of(schema)
        kind = next((kind for kind in kinds if kind != "null"), "null")
        filler: Filler
        match kind:
            case "object":
                filler = self._object(schema)
            case "array":
                filler = self._array(schema)
            case "integer" | "number":
                filler = _number_filler(schema, whole=kind == "integer")
            case "boolean":
                filler = _flag
            case "string":
                filler = strings.compile_string(schema)
            case "null":
                return lambda draft: None
            case _:
                raise SchemaError(f"unknown type {kind!r}")
        if "null" in kinds and kind in ("object", "array"):
            return lambda draft: None if draft.depth >= _DEEP else filler(draft)
        return filler

    def _branches(self, base: dict[str, Any], branches: list[Any]) -> Filler:
        whole = [
            follow_reference(branch, self._root) if not _is_reference(branch, base) else branch for branch in branches
        ]
        merged = [merge(base, branch) if base and isinstance(branch, dict) else branch for branch in whole]
        shallow = [_is_shallow(branch) for branch in whole]
        fillers = [self.compile(branch) for branch in merged]
        usual = next((index for index, branch in enumerate(whole) if not _is_null(branch)), 0)
        # Below the depth limit the first branch without further levels is taken.
        last = next((index for index, flat in enumerate(shallow) if flat), usual)
        return lambda draft: fillers[last if draft.depth >= _DEEP else usual](draft)

    def _object(self, schema: dict[str, Any]) -> Filler:
        properties: dict[str, Any] = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        required = set(schema.get("required", ()))
        fillers = {name: self.compile(part) for name, part in properties.items()}
        fillers |= {name: self.compile(others) for name in sorted(required - fillers.keys())}
        least = int(schema.get("minProperties", 0))
        # Without this, a mapping with free keys would always be empty.
        free = not fillers and isinstance(others, dict) and "propertyNames" not in schema
        extra = max(least - len(fillers), int(free))
        extra = min(extra, int(schema.get("maxProperties", extra + len(fillers))) - len(fillers))
        other = self.compile(others)
        key = self.compile(schema["propertyNames"]) if "propertyNames" in schema else None

        def build(draft: Draft) -> dict[str, Any]:
            with draft.deeper():
                names = required if draft.depth > _DEEP else fillers
                value = {name: fillers[name](draft) for name in fillers if name in names}
                for attempt in range(4 * extra):
                    if len(value) >= len(fillers) + extra:
                        break
                    draft.salt += 1
                    name = str(key(draft)) if key else draft.keyword(attempt)
                    value.setdefault(name, other(draft))
                return value

        return build

    def _array(self, schema: dict[str, Any]) -> Filler:
        heads = [self.compile(part) for part in schema.get("prefixItems", ())]
        items = schema.get("items", True)
        item = self.compile(items)
        least = int(schema.get("minItems", 0))
        most = len(heads) if items is False else schema.get("maxItems", math.inf)
        unique = bool(schema.get("uniqueItems"))
        listed = isinstance(items, dict) and types_of(items) == ["string"] and not items.keys() & {"pattern", "format"}

        def build(draft: Draft) -> list[Any]:
            with draft.deeper(listing=listed):
                usual = 2 if draft.depth <= 2 else 1 if draft.depth <= _DEEP else 0
                wanted = min(max(usual, least, len(heads)), most)
                values = [head(draft) for head in heads[: int(min(len(heads), most))]]
                known = {orjson.dumps(value) for value in values} if unique else set()
                for _ in range(8 * int(wanted)):
                    if len(values) >= wanted:
                        break
                    draft.salt += 1
                    value = item(draft)
                    if unique:
                        blob = orjson.dumps(value)
                        if blob in known:
                            continue
                        known.add(blob)
                    values.append(value)
                return values

        return build


def _is_reference(branch: Any, base: dict[str, Any]) -> bool:
    # A reference that is left in place is compiled once, and may lead back to itself.
    return isinstance(branch, dict) and "$ref" in branch and not base


def _is_null(branch: Any) -> bool:
    return isinstance(branch, dict) and (branch.get("type") == "null" or branch.get("const", "") is None)


def _is_shallow(branch: Any) -> bool:
    if not isinstance(branch, dict) or "$ref" in branch:
        return False
    return "const" in branch or "enum" in branch or types_of(branch)[0] not in ("object", "array")


def _enum(values: list[Any]) -> Filler:
    if not values:
        raise SchemaError("an enum without values")
    phrases = [value if isinstance(value, str) else "" for value in values]

    def choose(draft: Draft) -> Any:
        return values[draft.choose(phrases)]

    return choose


def _flag(draft: Draft) -> bool:
    return bool(pick(draft.seed, draft.prompt.text, draft.tick()) & 1)


def _bounds(schema: dict[str, Any], whole: bool) -> tuple[float, float]:
    """Return the least and the greatest value, both allowed."""
    low = float(schema.get("minimum", -math.inf))
    high = float(schema.get("maximum", math.inf))
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if whole:
        low, high = math.ceil(low) if low > -math.inf else low, math.floor(high) if high < math.inf else high
        low = low if above is None else max(low, math.floor(above) + 1)
        return low, high if below is None else min(high, math.ceil(below) - 1)
    low = low if above is None else max(low, math.nextafter(above, math.inf))
    return low, high if below is None else min(high, math.nextafter(below, -math.inf))


def _number_filler(schema: dict[str, Any], whole: bool) -> Filler:
    low, high = _bounds(schema, whole)
    step = schema.get("multipleOf", 1 if whole else None)
    start = low if low > -math.inf else (high - 100 if high < math.inf else 0)
    end = high if high < math.inf else start + 100

    def allowed(value: float) -> bool:
        return low <= value <= high and (step is None or (value / step).is_integer())

    def choose(draft: Draft) -> float:
        mentioned = [number for number in draft.prompt.numbers if allowed(number)]
        rank = max(draft.salt - 1, 0)
        # Steps by the golden ratio spread the values of a list, whatever their range.
        share = (pick(draft.seed, draft.prompt.text) % 1000 / 1000 + 0.618034 * draft.tick()) % 1
        value = start + (end - start) * share
        if step is None:
            # Scores of services look like 0.37. The exact value follows, if rounding would leave the bounds.
            invented = [round(value, 2), value]
        else:
            origins = (round(value / step), math.ceil(start / step))
            invented = [(origin + offset) * step for origin in origins for offset in _NEARBY]
        candidates = (*mentioned[rank : rank + 1], *invented)
        return next((candidate for candidate in candidates if allowed(candidate)), start)

    if whole:
        return lambda draft: int(choose(draft))
    return choose
