"""A run that goes on with another engine: the one key that may change without composing its declaration anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from infermesh.config.compose import compose
from infermesh.config.declaration import Declaration, declare
from infermesh.errors import ConfigError

__all__ = ["with_engine"]


def with_engine(stored: Declaration, overrides: Sequence[str], home: Path) -> Declaration:
    """A stored declaration with what overrides say of its engine.

    Parameters
    ----------
    overrides
        ``engine=NAME``, a file of ``conf/engine/``, and ``engine.KEY=VALUE``, as ``infermesh run`` takes them.
    home
        The project's folder.

    Raises
    ------
    ConfigError
        An override is of something else, or wrong.

    Examples
    --------
    ``with_engine(stored, ["engine=local", "engine.workers=4"], Path.cwd())``
    """
    names, values = [], dict[str, Any]()
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        if equals and key == "engine":
            names.append(f"engine={text}")
        elif equals and key.startswith("engine."):
            values[key.removeprefix("engine.")] = _value(text)
        else:
            raise ConfigError(
                f"{override}: a resumed run keeps its declaration, but for engine and engine.*. To change more: "
                "infermesh run EXPERIMENT with its overrides and hydra.run.dir=FOLDER"
            )
    engine = compose(names, cwd=home).mapping["engine"] if names else dict(stored.mapping.get("engine") or {})
    for key, value in values.items():
        node = engine
        *parents, last = key.split(".")
        for parent in parents:  # resources.GPU
            node = node.setdefault(parent, {})
        node[last] = value
    return declare({**stored.mapping, "engine": engine}, stored.roots, stored.overrides)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
