"""What was set otherwise in one run than in another: overrides by key, and a column for each key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import yaml


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of Hydra's overrides by dotted key; a key that is taken out (``~stages.a``) is ``removed``."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if key.startswith("~"):
            found[key.lstrip("~")] = "removed"
        elif equals:
            found[key] = _parsed(value)
    return found


def config_value(config: Any, key: str) -> Any:
    """The value that a config has at a dotted key; ``None`` if there is none, or a mapping."""
    node = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return None if isinstance(node, Mapping) else node


def as_text(value: Any) -> str:
    """A value of a setting as JSON; equal values have equal texts."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS).decode()


def column_type(values: Sequence[Any]) -> str:
    """The DuckDB type of a column that holds the values of a setting."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int} and all(abs(value) < 2**63 for value in values if value is not None):
        return "BIGINT"
    return "DOUBLE" if kinds and kinds <= {int, float} else "VARCHAR"


def column_names(keys: Sequence[str], taken: Iterable[str]) -> dict[str, str]:
    """A column's name for each dotted key: the key's shortest end that no other key has and that is not taken.

    Parameters
    ----------
    taken
        Names that other columns have, in lower case.

    Examples
    --------
    >>> column_names(["stages.a.window", "stages.b.window", "models.m.timeout"], taken=[])
    {'stages.a.window': 'a_window', 'stages.b.window': 'b_window', 'models.m.timeout': 'timeout'}
    """
    taken = set(taken)
    parts = {key: [part for part in re.split(r"\W+", key) if part] for key in keys}

    def end(key: str, length: int) -> str:
        return "_".join(parts[key][-length:])

    names: dict[str, str] = {}
    for key in keys:
        for length in range(1, len(parts[key]) + 1):
            name = end(key, length)
            shared = any(end(other, length).lower() == name.lower() for other in keys if other != key)
            if not shared and name.lower() not in taken:
                break
        else:
            name = free_name("_".join(parts[key]), taken, "override")
        names[key] = name
        taken.add(name.lower())
    return names


def free_name(name: str, taken: Iterable[str], prefix: str) -> str:
    """``name`` with as many prefixes as it takes to be free; ``run_id`` and ``folder`` are never free."""
    taken = {"run_id", "folder", *taken}
    while name.lower() in taken:
        name = f"{prefix}_{name}"
    return name


def _parsed(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML reads 1e-3 as text
    return value
