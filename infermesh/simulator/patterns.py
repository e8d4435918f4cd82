"""Write a text that matches a regular expression, for schemas with a `pattern`."""

from __future__ import annotations

import re
import string
from importlib import import_module
from typing import Any

__all__ = ["example"]

# The standard library's parser, which is private since 3.11: no other one has exactly the syntax of `re`.
_parser: Any = import_module("re._parser")

_PRINTABLE = string.ascii_lowercase + string.digits + string.ascii_uppercase + " " + string.punctuation
_CATEGORIES = {"CATEGORY_DIGIT": r"\d", "CATEGORY_SPACE": r"\s", "CATEGORY_WORD": r"\w"}
_CATEGORIES |= {name.replace("_", "_NOT_"): pattern.upper() for name, pattern in _CATEGORIES.items()}


def example(pattern: str, minimum: int = 0, maximum: int | None = None) -> str | None:
    """Return a text in which the pattern is found. None: no such text was found.

    Parameters
    ----------
    pattern
        In the syntax that JSON Schema's dialect and `re` have in common; lookarounds and backreferences mostly fail.
    minimum, maximum
        Bounds of the text's length, in characters.
    """
    try:
        compiled = re.compile(pattern)
        tree = _parser.parse(pattern)
    except (re.error, RecursionError):
        return None
    for repeats in (1, 0, 2, 4, 8, minimum, 32):
        try:
            text = _sequence(tree, repeats)
        except ValueError:
            return None
        if not pattern.endswith("$"):
            text = text.ljust(minimum, "a")
        if not pattern.startswith("^"):
            text = text.rjust(minimum, "a")
        if len(text) >= minimum and (maximum is None or len(text) <= maximum) and compiled.search(text):
            return text
    return None


def _sequence(tree: Any, repeats: int) -> str:
    return "".join(_token(str(operation), argument, repeats) for operation, argument in tree)


def _token(operation: str, argument: Any, repeats: int) -> str:
    """Write one node of a parsed pattern. A repetition is written `repeats` times if its bounds allow it."""
    match operation:
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return next(char for char in _PRINTABLE if ord(char) != argument)
        case "ANY":
            return "a"
        case "IN":
            return _member(argument)
        case "AT" | "ASSERT_NOT":
            return ""
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, inner = argument
            return _sequence(inner, repeats) * max(int(least), min(repeats, int(most)))
        case "SUBPATTERN":
            return _sequence(argument[-1], repeats)
        case "ATOMIC_GROUP":
            return _sequence(argument, repeats)
        case "BRANCH":
            return _sequence(argument[1][0], repeats)
        case _:
            raise ValueError(f"cannot write an example of {operation}")


def _member(items: Any) -> str:
    """Return the first printable character that a class in brackets allows, else its first one."""
    negated = str(items[0][0]) == "NEGATE"
    members = items[1:] if negated else items
    for char in _PRINTABLE:
        if any(_allows(str(operation), argument, char) for operation, argument in members) != negated:
            return char
    operation, argument = members[0]
    return chr(argument[0] if str(operation) == "RANGE" else argument)


def _allows(operation: str, argument: Any, char: str) -> bool:
    if operation == "LITERAL":
        return ord(char) == int(argument)
    if operation == "RANGE":
        return int(argument[0]) <= ord(char) <= int(argument[1])
    return re.fullmatch(_CATEGORIES[str(argument)], char) is not None
