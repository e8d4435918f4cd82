"""JSON Schema's keywords where the jsonschema package's own would be wrong, or might never end.

- ``multipleOf`` goes by the digits that are written: 19.99 is a multiple of 0.01, which floats deny.
- Patterns are searched with the regex package: it knows ECMA-262's ``\\p{L}``, and it can be told when to give up. The
  standard library's search holds every thread of the process for as long as a pattern such as ``^(a+)+$`` takes on an
  answer, which may be years. The searches of one answer share a bound: see :func:`begin_answer`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from fractions import Fraction
from functools import cache
from typing import Any

import regex

__all__ = ["KEYWORDS", "VALUES", "begin_answer", "without_foreign_patterns"]

# Seconds of one search, and of all searches in one answer. A simple pattern takes some milliseconds on a megabyte.
_SEARCH_S = 0.5
_ANSWER_S = 2.0
_left_s: ContextVar[float] = ContextVar("left_s", default=_ANSWER_S)
# Keywords whose content is values, not schemas.
VALUES = ("enum", "const", "default", "examples")


def _check_multiple(validator: Any, factor: Any, instance: Any, schema: Any) -> Iterator[Exception]:
    import jsonschema

    if validator.is_type(instance, "number") and (
        (isinstance(instance, float) and not math.isfinite(instance)) or _fraction(instance) % _fraction(factor)
    ):
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {factor!r}")


def _fraction(number: float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


def _check_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Exception]:
    import jsonschema

    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[Exception]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for name, value in instance.items():
            if _matches(pattern, name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _check_additional_properties(validator: Any, additional: Any, instance: Any, schema: Any) -> Iterator[Exception]:
    import jsonschema

    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extras = [name for name in instance if name not in named and not any(_matches(each, name) for each in patterns)]
    if validator.is_type(additional, "object"):
        for extra in extras:
            yield from validator.descend(instance[extra], additional, path=extra)
    elif not additional and extras:
        listed = ", ".join(map(repr, extras))
        yield jsonschema.ValidationError(f"the schema does not allow the additional properties {listed}")


KEYWORDS: Mapping[str, Callable[..., Iterator[Exception]]] = {
    "multipleOf": _check_multiple,
    "pattern": _check_pattern,
    "patternProperties": _check_pattern_properties,
    "additionalProperties": _check_additional_properties,
}


def begin_answer() -> None:
    """Give the answer that is checked next, in this thread or task, the full time for its searches."""
    _left_s.set(_ANSWER_S)


def _matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text. Raises ``ValueError`` where that takes too long to say."""
    left = _left_s.get()
    begun = time.perf_counter()
    try:
        if left > 0:
            return bool(_compiled(pattern).search(text, timeout=min(left, _SEARCH_S)))
    except TimeoutError:
        pass
    finally:
        _left_s.set(left - (time.perf_counter() - begun))
    whole = f"more than {_ANSWER_S:g} s with all searches in it"
    raise ValueError(
        f"the answer cannot be checked: the schema's pattern {pattern!r} takes "
        f"{f'more than {_SEARCH_S:g} s on it' if left > _SEARCH_S else whole}. "
        f"Write it without repetitions of repetitions"
    )


@cache
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)


def without_foreign_patterns(node: Any, left: list[str]) -> Any:
    """A copy of a schema without the patterns that only other dialects know; they are added to ``left``."""
    if isinstance(node, list):
        return [without_foreign_patterns(item, left) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {name: value if name in VALUES else without_foreign_patterns(value, left) for name, value in node.items()}
    if isinstance(pattern := copy.get("pattern"), str) and not _compiles(pattern):
        left.append(copy.pop("pattern"))
    named = copy.get("patternProperties")
    if isinstance(named, dict) and (foreign := [pattern for pattern in named if not _compiles(pattern)]):
        left.extend(foreign)
        copy["patternProperties"] = {pattern: named[pattern] for pattern in named if pattern not in foreign}
        for rest in ("additionalProperties", "unevaluatedProperties"):  # nobody knows which properties these are
            copy.pop(rest, None)
    return copy


def _compiles(pattern: str) -> bool:
    try:
        _compiled(pattern)
    except (regex.error, RecursionError, OverflowError):
        return False
    return True
